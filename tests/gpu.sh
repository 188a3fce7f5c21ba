#!/bin/sh
# Tests of the CUDA backend.
#   tests/gpu.sh [ARGUMENTS]     builds them and runs them on this machine's GPU; fails where there is none
#   tests/gpu.sh --pack FOLDER   builds them, and puts into FOLDER all that a machine without this one's compilers and
#                                libraries needs but the CUDA toolkit's own; there, run FOLDER/run.sh [ARGUMENTS]
# ARGUMENTS go to GoogleTest, for example --gtest_filter='CudaSsd.*'.
set -eu
cd "$(dirname "$0")/.."
program=build/cuda/tests/kernels/cuda/cuda_ops_test

build() {
  cmake --preset cuda "$@" > /dev/null
  cmake --build build/cuda --target cuda_ops_test
}

if [ "${1:-}" != --pack ]; then
  build
  exec "$program" "$@"
fi

folder=${2:?"tests/gpu.sh --pack needs a folder"}
build -DTMAMBA_NATIVE=OFF  # the other machine's processor may be another
mkdir -p "$folder"
strip -o "$folder/cuda_ops_test" "$program"
# OpenBLAS and what it brings; the C and C++ libraries of the other machine are used.
ldd "$program" | awk '$1 ~ /^(libopenblas|libgfortran|libquadmath|libgomp)/ { print $3 }' | while read -r library; do
  cp -L "$library" "$folder/"
done
cat > "$folder/run.sh" <<'RUN'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
cuda=${CUDA_HOME:-/usr/local/cuda}
export LD_LIBRARY_PATH="$here:$cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$here/cuda_ops_test" "$@"
RUN
chmod +x "$folder/run.sh"
echo "packed into $folder: $(du -sh "$folder" | cut -f1)"
