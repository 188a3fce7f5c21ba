#!/bin/sh
# Tests of the CUDA backend.
#   tests/gpu.sh [GPUS]          builds and runs the tests of one GPU (the default) or of two; fails if there are fewer
#   tests/gpu.sh --sanitize      builds the tests and runs the kernels under compute-sanitizer (tests/sanitize.sh)
#   tests/gpu.sh --pack FOLDER   builds the tests and transmamba, and packs them with their libraries into FOLDER, for a
#                                machine with Open MPI, OpenSSL, the CUDA toolkit and NCCL but no compilers. There:
#                                  FOLDER/run.sh all 1                      every test of one GPU
#                                  FOLDER/run.sh all 2                      every test of two GPUs
#                                  FOLDER/run.sh sanitize                   every kernel under compute-sanitizer
#                                  FOLDER/run.sh -n 2 dist_cuda_test        one of them on two ranks
#                                  FOLDER/run.sh launch_cuda_test --gtest_filter='CudaTrain.*'
#                                  FOLDER/run.sh [-n RANKS] transmamba VERB ...
set -eu
cd "$(dirname "$0")/.."
programs="tests/kernels/cuda/cuda_ops_test tests/dist/dist_cuda_test tests/launch/launch_cuda_test
  tests/launch/launch_cuda_ranks_test tests/model/model_cuda_golden_test launch/transmamba"

build() {
  cmake --preset cuda "$@" > /dev/null
  cmake --build build/cuda --target $(for program in $programs; do basename "$program"; done)
}

if [ "${1:-}" != --pack ]; then
  build
  case ${1:-1} in
    --sanitize) exec tests/sanitize.sh build/cuda/tests/kernels/cuda/cuda_ops_test ;;
    1) exec ctest --test-dir build/cuda --output-on-failure -L '^cuda$' ;;
    2) exec ctest --test-dir build/cuda --output-on-failure -L '^two-gpus$' ;;
    *) echo "tests/gpu.sh: unknown number of GPUs: $1; valid: 1, 2" >&2; exit 2 ;;
  esac
fi

folder=${2:?"tests/gpu.sh --pack needs a folder"}
build -DTMAMBA_NATIVE=OFF  # the other machine may have a different CPU
mkdir -p "$folder/pack"
cp -r tests/golden tests/sanitize.sh "$folder/pack/"
for program in $programs; do strip -o "$folder/pack/$(basename "$program")" "build/cuda/$program"; done
# Programs need the HDF5 release that they were compiled with. The C and C++ libraries are those of the other machine.
mkdir -p "$folder/pack/lib"
ldd build/cuda/launch/transmamba | awk '$1 ~ /^lib(openblas|gfortran|quadmath|gomp|hdf5_serial|sz|aec|sentencepiece|tomlplusplus|boost)/ { print $3 }' |
  while read -r library; do cp -L "$library" "$folder/pack/lib/"; done
tar -C "$folder" -czf "$folder/pack.tar.gz" pack  # a third of the size: each kernel is included as sm_90a code and as PTX
rm -r "$folder/pack"
cat > "$folder/run.sh" <<'RUN'
#!/bin/sh
# run.sh all 1|2
# run.sh sanitize [GTEST_FILTER]
# run.sh [-n RANKS] PROGRAM [ARGUMENTS]
set -eu
here=$(cd "$(dirname "$0")" && pwd)/pack
usage="run.sh needs 'all 1', 'all 2', 'sanitize', or a program: cuda_ops_test, dist_cuda_test, launch_cuda_test, launch_cuda_ranks_test, model_cuda_golden_test or transmamba"
[ "$here" -nt "$here.tar.gz" ] || { rm -rf "$here"; tar -C "${here%/*}" -xzf "$here.tar.gz"; touch "$here"; }
cuda=${CUDA_HOME:-/usr/local/cuda}
# NCCL of the toolkit, or of Python packages.
nccl=
for folder in ${NCCL_HOME:+"$NCCL_HOME/lib"} "$cuda/lib64" /usr/lib/x86_64-linux-gnu \
  /usr/local/lib/python3*/*-packages/nvidia/nccl/lib /usr/lib/python3*/*-packages/nvidia/nccl/lib; do
  [ -e "$folder/libnccl.so.2" ] && nccl=$folder && break
done
[ -n "$nccl" ] || { echo "run.sh: libnccl.so.2 was not found; set NCCL_HOME" >&2; exit 2; }
export LD_LIBRARY_PATH="$here/lib:$cuda/lib64:$nccl${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export TMAMBA_GOLDEN="${TMAMBA_GOLDEN:-$here/golden}"
export TRANSMAMBA_PROGRAM="$here/transmamba" TRANSMAMBA_MPIEXEC="${TRANSMAMBA_MPIEXEC:-mpirun}"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
mpi="$TRANSMAMBA_MPIEXEC --allow-run-as-root --oversubscribe"
if [ "${1:-}" = all ]; then
  failed=
  run() {
    echo "== $*"
    "$@" || failed="$failed $*;"
  }
  case ${2:-} in
    1) run "$here/cuda_ops_test"; run "$here/dist_cuda_test"; run "$here/launch_cuda_test"; run "$here/model_cuda_golden_test" ;;
    2) run $mpi -n 2 "$here/dist_cuda_test"; run "$here/launch_cuda_ranks_test" ;;
    *) echo "$usage" >&2; exit 2 ;;
  esac
  [ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
  exit 0
fi
if [ "${1:-}" = sanitize ]; then shift; exec "$here/sanitize.sh" "$here/cuda_ops_test" "$@"; fi
launcher=
if [ "${1:-}" = -n ]; then launcher="$mpi -n ${2:?"$usage"}"; shift 2; fi
program=${1:?"$usage"}
shift
exec $launcher "$here/$program" "$@"
RUN
chmod +x "$folder/run.sh"
echo "packed into $folder: $(du -sh "$folder" | cut -f1)"
