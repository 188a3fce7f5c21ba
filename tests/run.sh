#!/usr/bin/env bash
# Installs what is missing, builds and runs every test. Where there is a CUDA compiler the CUDA code is compiled too; its
# tests run where there is a GPU (tests/gpu.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/packages.sh
install_packages "${build_packages[@]}"

preset=cpu
cmake --preset $preset
cmake --build --preset $preset
ctest --preset $preset -j 2 "$@"
