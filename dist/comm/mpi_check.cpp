#include "dist/comm/mpi_check.h"

#include "kernels/base/check.h"

namespace tmamba {

std::string mpi_error_text(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return str("MPI error ", code);
  return std::string(text, static_cast<size_t>(length));
}

void check_mpi(int code, const char* call, const std::string& where) {
  if (code != MPI_SUCCESS) throw Error(str(where, ": ", call, " failed: ", mpi_error_text(code)));
}

}  // namespace tmamba
