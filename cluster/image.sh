#!/usr/bin/env bash
# The steps of the container images, in a Debian 12 as root, from the folder of the sources: cluster/Dockerfile and
# cluster/transmamba.def run them in this order.
#   image.sh tools      what the trainer is built with; with CUDA=ON also NVIDIA's compiler, where there is none yet
#   image.sh program    builds it and installs it in /opt/transmamba, with the CUDA libraries that it is linked with
#   image.sh libraries  in the image that runs: Debian's libraries and programs
# shellcheck disable=SC1091,SC2154
set -euo pipefail
CUDA=${CUDA:-ON}
prefix=/opt/transmamba
PATH="$PATH:/usr/local/cuda/bin"

# Open MPI 4.1 with PMIx 4.2, and the library of every package with which the program is built.
run_packages=(
  openmpi-bin libopenmpi3 libpmix2 libhdf5-103-1 libboost-program-options1.74.0 libtomlplusplus3 libopenblas0
  libsentencepiece0 libssl3 libgomp1 zlib1g
)

apt_install() {
  apt-get update
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
  apt-get clean
  rm -rf /var/lib/apt/lists/*
}

tools() {
  source launch/packages.sh
  apt_install "${build_packages[@]}" ca-certificates curl
  if [ "$CUDA" != ON ] || command -v nvcc >/dev/null; then return; fi
  curl -fsSL -o /tmp/keyring.deb \
    https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/cuda-keyring_1.1-1_all.deb
  dpkg -i /tmp/keyring.deb
  apt_install cuda-nvcc-13-0 cuda-cudart-dev-13-0 libcublas-dev-13-0 libnccl-dev libnccl2
}

program() {
  # No instructions of the machine that builds: the nodes may have other CPUs.
  cmake -S . -B build/image -G Ninja -DCMAKE_BUILD_TYPE=Release -DTMAMBA_NATIVE=OFF -DTMAMBA_TESTS=OFF \
    -DTMAMBA_CUDA="$CUDA"
  cmake --build build/image
  cmake --install build/image --prefix "$prefix"
  # NVIDIA's libraries go with it, from wherever they are; all others are Debian's.
  mkdir -p "$prefix/lib"
  ldd "$prefix/bin/transmamba" | awk '$1 ~ /^lib(cudart|cublas|nccl)/ {print $3}' | xargs -r cp -t "$prefix/lib"
}

libraries() { apt_install "${run_packages[@]}"; }

case "${1:-}" in
  tools | program | libraries) "$1" ;;
  *) echo "usage: image.sh tools|program|libraries" >&2; exit 2 ;;
esac
