// Checks of MPI calls.
#pragma once

#include <mpi.h>

#include <string>

namespace tmamba {

// MPI_Error_string of `code`.
std::string mpi_error_text(int code);

// Throws Error "WHERE: CALL failed: TEXT" unless code is MPI_SUCCESS. Communicators must have MPI_ERRORS_RETURN.
void check_mpi(int code, const char* call, const std::string& where);

}  // namespace tmamba
