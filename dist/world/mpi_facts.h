// What the MPI library of this process says of itself.
#pragma once

#include <map>
#include <string>

namespace tmamba {

// One line: "Open MPI v4.1.4, ...". Before and after MPI too.
std::string mpi_library();

// Effective values of the library's settings that decide how messages travel and where ranks run (transports,
// interfaces, binding, single-copy), by name, from its tools interface; those it does not have are left out. After MPI
// has started.
std::map<std::string, std::string> mpi_settings();

}  // namespace tmamba
