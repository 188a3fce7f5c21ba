#include "data/checkpoint/tensor_source.h"
#include "tests/fuzz/target.h"

namespace tmamba::fuzz {

namespace {

void file(const std::filesystem::path& path) {
  const TensorSource source = open_export(path);
  int64_t left = int64_t{4} << 20;  // see token_file_target.cpp
  for (const StoredTensor& tensor : source.tensors) {
    int64_t bytes = static_cast<int64_t>(size_of(tensor.dtype));
    for (int64_t n : tensor.shape) require(n > 0 && !__builtin_mul_overflow(bytes, n, &bytes), "an impossible size");
    left -= bytes;
    if (left < 0) return;
    each_block(source, tensor, [](int64_t, const Tensor&) {});
  }
}

void bytes(const std::string& input) { file(scratch_file("fuzz-export.h5", input)); }

}  // namespace

const Target hdf5_export{"hdf5_export", bytes, file};

}  // namespace tmamba::fuzz
