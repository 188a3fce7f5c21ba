#include "tests/model/golden_file.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>

#include "data/hdf5/h5.h"
#include "kernels/base/buffer.h"
#include "tests/source_dir.h"

namespace tmamba {

namespace fs = std::filesystem;

GoldenFile::GoldenFile(const fs::path& path) : path_(path) {
  const H5File file = H5File::open_read(path);
  auto integer = [&](const char* name) { return file.int_attribute("/", name); };
  batch_ = integer("batch"), seq_len_ = integer("seq");
  config_.vocab = integer("vocab"), config_.dim = integer("dim"), config_.heads = integer("heads");
  config_.layers = integer("layers"), config_.ffn = integer("ffn"), config_.conv = integer("conv_width");
  config_.norm_eps = file.double_attribute("/", "norm_eps"),
  config_.rope_theta = file.double_attribute("/", "rope_theta");
  config_.chunk = 8;  // small, so that short sequences have several chunks and segments
  // Every other layer that is all attention says so by "1/1", so has no SSM parameters; the others have unused ones.
  for (int64_t point : file.int_list_attribute("/", "schedule")) {
    const bool never = point == seq_len_ && config_.schedule.size() % 2 == 1;
    config_.schedule.push_back(never ? TransPoint::of_fraction(1, 1) : TransPoint::of_tokens(point));
  }
  transpoints_ = tmamba::transpoints(config_.schedule, config_.layers, seq_len_);
  for (const std::string& name : file.datasets()) {
    const H5Dataset dataset = file.dataset(name);
    const H5Info& info = dataset.info();
    GoldenArray array{name, info.shape, std::vector<double>(static_cast<size_t>(info.numel()))};
    dataset.read(std::vector<int64_t>(info.shape.size(), 0), info.shape, H5Type::f64, array.values.data());
    if (name == "loss") loss_ = array.values.at(0);
    if (name == "tokens") tokens_.assign(array.values.begin(), array.values.end());
    arrays_.push_back(std::move(array));
  }
}

std::vector<const GoldenArray*> GoldenFile::arrays(const std::string& prefix) const {
  std::vector<const GoldenArray*> found;
  for (const GoldenArray& array : arrays_) {
    if (array.name.starts_with(prefix)) found.push_back(&array);
  }
  return found;
}

void GoldenFile::fill_params(const ParameterTable& table, const Tensor& flat) const {
  for (const GoldenArray* array : arrays("params/")) {
    if (std::ranges::find(table.unused(), array->name.substr(7)) != table.unused().end()) continue;
    const Tensor view = table.view(flat, array->name.substr(7));
    TM_CHECK(view.numel() == static_cast<int64_t>(array->values.size()), array->name, " of ", path_.string(),
             " has another size");
    dispatch_float(flat.dtype(),
                   [&]<class T>() { std::copy(array->values.begin(), array->values.end(), view.data<T>()); });
  }
}

void GoldenFile::fill_params_sharded(const ParameterTable& table, const Tensor& flat) const {
  for (const Parameter& p : table.all()) {
    const std::vector<double>& whole = arrays("params/" + p.name).at(0)->values;
    const int64_t block_rows = p.rows / static_cast<int64_t>(p.stored.size());
    dispatch_float(flat.dtype(), [&]<class T>() {
      T* local = table.view(flat, p).data<T>();
      for (const StoredRange& range : table.stored_ranges(p, 0, p.local_rows)) {
        const int64_t block = std::find(p.stored.begin(), p.stored.end(), range.name) - p.stored.begin();
        for (int64_t r = 0; r < range.rows; ++r) {
          const int64_t from =
              (block * block_rows + range.offset[0] + r) * p.cols + (p.dims == 2 ? range.offset[1] : 0);
          std::copy_n(whole.begin() + from, p.local_cols, local + (range.local_row + r) * p.local_cols);
        }
      }
    });
  }
}

std::vector<fs::path> golden_files() {
  std::vector<fs::path> files;
  auto add = [&](const fs::path& folder) {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (entry.path().extension() == ".h5") found.push_back(entry.path());
    }
    TM_CHECK(!found.empty(), folder.string(), " holds no golden files");
    std::sort(found.begin(), found.end());
    files.insert(files.end(), found.begin(), found.end());
  };
  const fs::path own = fs::path(TMAMBA_SOURCE_DIR) / "tests/golden";
  const char* other = std::getenv("TMAMBA_GOLDEN");
  const bool has_other = other != nullptr && *other != '\0';
  // Packed tests run on machines without the sources.
  if (!has_other || fs::exists(own)) add(own);
  if (has_other) add(other);
  return files;
}

double relative_error(const std::vector<double>& actual, const std::vector<double>& expected) {
  TM_CHECK(actual.size() == expected.size(), actual.size(), " elements, expected ", expected.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return difference == 0 ? 0 : std::sqrt(difference / norm);
}

std::vector<double> values_of(const ConstTensor& tensor) {
  TM_CHECK(tensor.contiguous(), "values_of needs a contiguous tensor");
  if (tensor.device() != Device::cpu) {
    const Buffer host(static_cast<size_t>(tensor.bytes()), Device::cpu);
    const Tensor copy = host.tensor({tensor.numel()}, tensor.dtype());
    copy_blocking(copy, tensor.view({tensor.numel()}));
    return values_of(copy);
  }
  if (tensor.dtype() == DType::bf16) {
    std::vector<double> values;
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      values.push_back(std::bit_cast<float>(static_cast<uint32_t>(tensor.data<bf16_t>()[i].bits) << 16));
    }
    return values;
  }
  return dispatch_float(tensor.dtype(), [&]<class T>() {
    const T* data = tensor.data<T>();
    return std::vector<double>(data, data + tensor.numel());
  });
}

}  // namespace tmamba
