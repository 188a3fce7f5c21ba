# Debian packages that the project is built and run with; read by launch/quickstart.sh and tests/run.sh.
#
#   MPI, HDF5, Boost.Program_options, TOML++ and GoogleTest   fixed parts of the project
#   OpenBLAS        GEMM on the CPU
#   SentencePiece   subword tokenizers
#   nlohmann-json   manifests, metrics, --json
#   OpenSSL         SHA-256 of files and corpora
#   zlib            reading *.gz text
#   ccache          the CPU and the CUDA build share most of their objects
build_packages=(
  g++ cmake ninja-build pkg-config ccache
  libopenmpi-dev openmpi-bin libhdf5-dev libboost-program-options-dev libtomlplusplus-dev libgtest-dev libgmock-dev
  libopenblas-dev libsentencepiece-dev nlohmann-json3-dev libssl-dev zlib1g-dev
)
# Only for tests: a browser and a font for the report, JUBE for configs/studies/jube.xml, Lmod for the module file.
test_packages=(chromium fonts-dejavu-core jube lmod)

# Format check and lint; Debian 12 has version 14, which .clang-format and .clang-tidy are written for.
lint_packages=(clang-format-14 clang-tidy-14)

# A SLURM of virtual nodes, for tests/slurm.
slurm_packages=(slurmctld slurmd slurm-client munge)

# install_packages NAME...: installs those that are missing, as root or through sudo.
install_packages() {
  local missing=() name
  for name in "$@"; do
    dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done
  [ ${#missing[@]} -eq 0 ] && return
  echo "installing Debian packages: ${missing[*]}"
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "error: not root and no sudo; install these packages first: ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
  fi
  local log; log=$(mktemp)
  if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -20 "$log" >&2
    echo "error: apt-get failed; its log is $log" >&2
    exit 1
  fi
  rm -f "$log"
}

# MPI settings for a machine with few cores: root may start ranks, and there may be more ranks than cores.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
