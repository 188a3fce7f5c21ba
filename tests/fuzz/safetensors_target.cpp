#include <vector>

#include "data/checkpoint/safetensors.h"
#include "data/checkpoint/tensor_source.h"
#include "tests/fuzz/target.h"

namespace tmamba::fuzz {

namespace {

void file(const std::filesystem::path& path) {
  {
    const SafetensorsReader reader(path);
    int64_t bytes = 0;
    for (const StoredTensor& tensor : reader.tensors()) {
      int64_t size = static_cast<int64_t>(size_of(tensor.dtype));
      for (int64_t n : tensor.shape) size *= n;
      require(size > 0 && size <= static_cast<int64_t>(std::filesystem::file_size(path)), "a tensor beyond the file");
      std::vector<char> data(static_cast<size_t>(size));
      reader.read(tensor.name, 0, data.data(), data.size());
      bytes += size;
    }
    require(bytes <= static_cast<int64_t>(std::filesystem::file_size(path)), "more tensors than bytes");
  }
  const TensorSource source = open_export(path);
  for (const StoredTensor& tensor : source.tensors) each_block(source, tensor, [](int64_t, const Tensor&) {});
}

void bytes(const std::string& input) { file(scratch_file("fuzz.safetensors", input)); }

}  // namespace

const Target safetensors{"safetensors", bytes, file};

}  // namespace tmamba::fuzz
