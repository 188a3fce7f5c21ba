#!/usr/bin/env bash
# tests/run.sh [CTEST OPTIONS]   installs missing packages, builds and runs every test
# tests/run.sh --lint            checks format and clang-tidy's findings on the whole tree instead
# With a CUDA compiler the CUDA code is compiled too, beside the tests; its tests need a GPU (tests/gpu.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/packages.sh
install_packages "${build_packages[@]}" "${lint_packages[@]}"
tests/lint.sh format
cmake --preset cpu -DTMAMBA_TESTS=ON
if [ "${1:-}" = --lint ]; then exec tests/lint.sh all; fi

install_packages "${test_packages[@]}" "${slurm_packages[@]}" &  # mostly waits for the network
packages=$!
cmake --build --preset cpu
wait "$packages"

cuda=none
if command -v nvcc >/dev/null || [ -n "${CUDACXX:-}" ]; then
  mkdir -p build
  { nice -n 19 cmake --preset cuda && nice -n 19 cmake --build build/cuda --target transmamba cuda_ops_test dist_cuda_test launch_cuda_test \
      launch_cuda_ranks_test model_cuda_golden_test; } >build/cuda.log 2>&1 &
  cuda=$!
fi
# The tests sync thousands of small files: their folders are in memory where 8 GB of it are free. Each run has its own, so
# that it does not meet what another one has left; those of runs that were killed are removed.
memory=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)
if [ "${memory:-0}" -gt 8000000 ]; then TMPDIR=/dev/shm; fi
for old in "${TMPDIR:=/tmp}"/tmamba-tests.*; do kill -0 "${old##*.}" 2>/dev/null || rm -rf "$old"; done
export TMPDIR=$TMPDIR/tmamba-tests.$$
mkdir "$TMPDIR"
# Open MPI names its session directories and shared memory after process numbers, which are soon used again.
export OMPI_MCA_btl_vader_backing_directory=$TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
failed=0
tests/lint.sh changed || { echo "clang-tidy has findings in changed files"; failed=1; }
# More tests at once than processors: many of them wait for processes or for SLURM.
ctest --preset cpu -j $((2 * $(nproc))) --no-tests=error "$@" || failed=1
if [ "$cuda" != none ]; then
  echo "compiling the CUDA code and its tests"
  if wait "$cuda"; then
    echo "CUDA code compiled; tests/gpu.sh runs its tests on a GPU"
  else
    cat build/cuda.log
    failed=1
  fi
fi
exit $failed
