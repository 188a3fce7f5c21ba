// Version and settings of this process's MPI library.
#pragma once

#include <map>
#include <string>

namespace tmamba {

// One line such as "Open MPI v4.1.4, ...". May be called before MPI starts and after it ends.
std::string mpi_library();

// Effective values, by name, of the library's settings that affect communication and placement (transports, interfaces,
// binding, single-copy), from the MPI tools interface. Settings that the library does not have are omitted. Requires
// that MPI has started.
std::map<std::string, std::string> mpi_settings();

}  // namespace tmamba
