// What the program was built from and with: for --version, checkpoints, events and reports.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace tmamba {

struct BuildInfo {
  std::string version, commit;  // "unknown" outside of a git repository
  std::string compiler, cuda;   // "none" without CUDA
  std::string mpi, hdf5;
};

const BuildInfo& build_info();

// {"version": "0.1.0", "commit": ...}: a member per field.
nlohmann::json build_json();
// "transmamba 0.1.0", and a line for each of the others.
std::string build_text();

}  // namespace tmamba
