#!/bin/sh
# Tests of the CUDA backend.
#   tests/gpu.sh [ARGUMENTS]     builds them and runs them on this machine's GPU; fails where there is none
#   tests/gpu.sh --pack FOLDER   builds them and transmamba, and puts into FOLDER all that a machine without this one's
#                                compilers and libraries needs but Open MPI, OpenSSL and the CUDA toolkit; there, run
#                                FOLDER/run.sh cuda_ops_test [ARGUMENTS] or FOLDER/run.sh transmamba VERB ...
# ARGUMENTS go to GoogleTest, for example --gtest_filter='CudaSsd.*'.
set -eu
cd "$(dirname "$0")/.."
tests=build/cuda/tests/kernels/cuda/cuda_ops_test
train_tests=build/cuda/tests/launch/launch_cuda_test
transmamba=build/cuda/launch/transmamba

build() {
  cmake --preset cuda "$@" > /dev/null
  cmake --build build/cuda --target cuda_ops_test launch_cuda_test transmamba
}

if [ "${1:-}" != --pack ]; then
  build
  "$tests" "$@"
  exec "$train_tests" "$@"
fi

folder=${2:?"tests/gpu.sh --pack needs a folder"}
build -DTMAMBA_NATIVE=OFF  # the other machine's processor may be another
mkdir -p "$folder/lib"
for program in "$tests" "$train_tests" "$transmamba"; do strip -o "$folder/$(basename "$program")" "$program"; done
# HDF5 takes no library of another release than its headers; the C and C++ libraries of the other machine are used.
ldd "$transmamba" | awk '$1 ~ /^lib(openblas|gfortran|quadmath|gomp|hdf5_serial|sz|aec|sentencepiece|tomlplusplus|boost)/ { print $3 }' |
  while read -r library; do cp -L "$library" "$folder/lib/"; done
tar -C "$folder" -czf "$folder/lib.tar.gz" lib  # OpenBLAS has kernels for every processor: a third of its size packed
rm -r "$folder/lib"
cat > "$folder/run.sh" <<'RUN'
#!/bin/sh
# run.sh PROGRAM [ARGUMENTS]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
program=${1:?"run.sh needs a program: cuda_ops_test, launch_cuda_test or transmamba"}
shift
[ -d "$here/lib" ] || tar -C "$here" -xzf "$here/lib.tar.gz"
cuda=${CUDA_HOME:-/usr/local/cuda}
export LD_LIBRARY_PATH="$here/lib:$cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export TRANSMAMBA_PROGRAM="$here/transmamba"
exec "$here/$program" "$@"
RUN
chmod +x "$folder/run.sh"
echo "packed into $folder: $(du -sh "$folder" | cut -f1)"
