#include "dist/world/mpi_facts.h"

#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "dist/comm/mpi_check.h"
#include "kernels/base/check.h"

namespace tmamba {

namespace {

// Control variables of Open MPI and MPICH; each library has only its own.
constexpr std::array kOfInterest{"pml",
                                 "btl",
                                 "mtl",
                                 "coll",
                                 "osc",
                                 "btl_tcp_if_include",
                                 "btl_tcp_if_exclude",
                                 "btl_vader_single_copy_mechanism",
                                 "btl_vader_eager_limit",
                                 "pml_ucx_devices",
                                 "pml_ucx_tls",
                                 "mpi_leave_pinned",
                                 "mpi_yield_when_idle",
                                 "hwloc_base_binding_policy",
                                 "hwloc_base_mem_alloc_policy",
                                 "MPIR_CVAR_CH4_NETMOD",
                                 "MPIR_CVAR_CH4_SHM",
                                 "MPIR_CVAR_OFI_USE_PROVIDER",
                                 "MPIR_CVAR_NEMESIS_TCP_NETWORK_IFACE"};

// The name of a control variable's number, or its digits if the library has no name for it.
std::string name_of_number(int value, MPI_T_enum names) {
  int count = 0, length = 0;
  if (names == MPI_T_ENUM_NULL || MPI_T_enum_get_info(names, &count, nullptr, &length) != MPI_SUCCESS) {
    return std::to_string(value);
  }
  for (int i = 0; i < count; ++i) {
    int of_item = 0;
    std::array<char, 128> text{};
    length = static_cast<int>(text.size());
    if (MPI_T_enum_get_item(names, i, &of_item, text.data(), &length) == MPI_SUCCESS && of_item == value) {
      return text.data();
    }
  }
  return std::to_string(value);
}

// The value of a control variable; empty for types that users do not set.
std::string value_of(int index, MPI_Datatype type, MPI_T_enum names) {
  MPI_T_cvar_handle handle = nullptr;
  int count = 0;
  if (MPI_T_cvar_handle_alloc(index, nullptr, &handle, &count) != MPI_SUCCESS) return "";
  std::vector<char> value(std::max<size_t>(static_cast<size_t>(count), 8) + 1);
  const bool read = MPI_T_cvar_read(handle, value.data()) == MPI_SUCCESS;
  MPI_T_cvar_handle_free(&handle);
  if (!read) return "";
  const auto as = [&]<class T>(T number) {
    std::memcpy(&number, value.data(), sizeof number);
    return number;
  };
  if (type == MPI_CHAR) return value.data();
  if (type == MPI_C_BOOL) return as(false) ? "true" : "false";
  if (count != 1) return "";
  if (type == MPI_INT || type == MPI_UNSIGNED) return name_of_number(as(0), names);
  if (type == MPI_UNSIGNED_LONG || type == MPI_UNSIGNED_LONG_LONG) return std::to_string(as(0ULL));
  return "";
}

}  // namespace

std::string mpi_library() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  check_mpi(MPI_Get_library_version(text.data(), &length), "MPI_Get_library_version", "reading MPI's version");
  std::string line(text.data());
  return line.substr(0, line.find('\n'));
}

std::map<std::string, std::string> mpi_settings() {
  std::map<std::string, std::string> settings;
  int provided = 0;
  if (MPI_T_init_thread(MPI_THREAD_SINGLE, &provided) != MPI_SUCCESS) return settings;
  for (const char* name : kOfInterest) {
    int index = 0;
    if (MPI_T_cvar_get_index(name, &index) != MPI_SUCCESS) continue;
    int verbosity = 0, binding = 0, scope = 0, name_length = 0, text_length = 0;
    MPI_Datatype type = MPI_DATATYPE_NULL;
    MPI_T_enum values = nullptr;
    if (MPI_T_cvar_get_info(index, nullptr, &name_length, &verbosity, &type, &values, nullptr, &text_length, &binding,
                            &scope) != MPI_SUCCESS) {
      continue;
    }
    if (const std::string value = value_of(index, type, values); !value.empty()) settings[name] = value;
  }
  MPI_T_finalize();
  return settings;
}

}  // namespace tmamba
