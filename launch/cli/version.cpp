#include "launch/cli/version.h"

#include "kernels/base/check.h"
#include "launch/cli/commit.h"

namespace tmamba {

const BuildInfo& build_info() {
  static const BuildInfo info{.version = TMAMBA_VERSION,
                              .commit = TMAMBA_COMMIT,
                              .compiler = TMAMBA_COMPILER,
                              .cuda = TMAMBA_CUDA_VERSION,
                              .mpi = TMAMBA_MPI_VERSION,
                              .hdf5 = TMAMBA_HDF5_VERSION};
  return info;
}

nlohmann::json build_json() {
  const BuildInfo& info = build_info();
  return {{"version", info.version}, {"commit", info.commit}, {"compiler", info.compiler},
          {"cuda", info.cuda},       {"mpi", info.mpi},       {"hdf5", info.hdf5}};
}

std::string build_text() {
  const BuildInfo& info = build_info();
  return str("transmamba ", info.version, "\ncommit    ", info.commit, "\ncompiler  ", info.compiler, "\nCUDA      ",
             info.cuda, "\nMPI       ", info.mpi, "\nHDF5      ", info.hdf5, "\n");
}

}  // namespace tmamba
