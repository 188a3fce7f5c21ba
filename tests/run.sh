#!/usr/bin/env bash
# Installs what is missing, builds and runs every test. Where there is a CUDA compiler the CUDA code is compiled too; its
# tests run where there is a GPU (tests/gpu.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/packages.sh
install_packages "${build_packages[@]}" "${test_packages[@]}" "${slurm_packages[@]}"

cmake --preset cpu -DTMAMBA_TESTS=ON
cmake --build --preset cpu
ctest --preset cpu -j 2 --no-tests=error "$@"

if command -v nvcc >/dev/null || [ -n "${CUDACXX:-}" ]; then
  echo "compiling the CUDA code and its tests"
  cmake --preset cuda >/dev/null
  cmake --build build/cuda --target transmamba cuda_ops_test dist_cuda_test launch_cuda_test launch_cuda_ranks_test model_cuda_golden_test
  echo "CUDA code compiled; tests/gpu.sh runs its tests on a GPU"
fi
