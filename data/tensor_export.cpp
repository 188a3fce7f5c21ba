// TensorSource to and from one file.
#include <algorithm>
#include <memory>

#include "data/fs.h"
#include "data/h5.h"
#include "data/manifest.h"
#include "data/safetensors.h"
#include "data/tensor_source.h"

namespace tmamba {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* kStateDataset = "state_json";
constexpr const char* kStepKey = "transmamba.step";
constexpr const char* kStateKey = "transmamba.state";
constexpr std::string_view kModelFolder = "model/";
constexpr int64_t kMaxState = int64_t{64} << 20;

json parse_state(const std::string& text, const fs::path& file) {
  const auto depth_guard = [&](int depth, json::parse_event_t, json&) {
    if (depth > 64) throw UserError(str(file.string(), ": the state of the run is nested too deep"));
    return true;
  };
  json state = json::parse(text, depth_guard, false);
  if (state.is_discarded()) throw UserError(str(file.string(), ": the state of the run is not valid JSON"));
  return state;
}

void sort_by_name(std::vector<StoredTensor>& tensors) {
  std::sort(tensors.begin(), tensors.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
}

// --- HDF5

void write_h5(const TensorSource& source, const fs::path& file) {
  H5File out = H5File::create(file);
  for (const StoredTensor& tensor : source.tensors) {
    if (tensor.name == kStateDataset) throw Error(str("a tensor may not have the name ", tensor.name));
    H5Dataset dataset = out.create_dataset(tensor.name, h5_type(tensor.dtype), tensor.shape);
    each_block(source, tensor, [&](int64_t row, const Tensor& block) {
      std::vector<int64_t> offset(tensor.shape.size(), 0);
      offset[0] = row;
      dataset.write(offset, block);
    });
    if (tensor.dtype == DType::bf16) out.set_attribute(tensor.name, "dtype", name_of(DType::bf16));
  }
  const std::string state = source.state.dump();
  out.write(kStateDataset, ConstTensor(state.data(), {static_cast<int64_t>(state.size())}, DType::u8));
  out.set_attribute("/", "step", source.step);
  out.close();
}

DType dtype_of(const H5File& file, const std::string& name, H5Type type) {
  const bool marked = file.has_attribute(name, "dtype");
  if (marked && (type != H5Type::u16 || file.string_attribute(name, "dtype") != name_of(DType::bf16))) {
    throw UserError(str(file.path().string(), ": dataset ", name, ": the attribute dtype is not one of an export"));
  }
  if (marked) return DType::bf16;
  for (DType dtype : {DType::f64, DType::f32, DType::i64, DType::i32, DType::u16, DType::u8}) {
    if (h5_type(dtype) == type) return dtype;
  }
  throw UserError(
      str(file.path().string(), ": dataset ", name, " holds ", tmamba::name_of(type), ", which no checkpoint does"));
}

// What a checkpoint can hold: a proper name, 1 or 2 sizes, none of them 0.
void check_tensor(const StoredTensor& tensor, const fs::path& path) {
  try {
    check_tensor_name(tensor.name);
    checked_bytes(tensor.shape, tensor.dtype);
  } catch (const Error& error) {
    throw UserError(str(path.string(), ": dataset ", tensor.name, ": ", error.what()));
  }
}

TensorSource open_h5(const fs::path& path) {
  const auto file = std::make_shared<H5File>(H5File::open_read(path));
  if (!file->has(kStateDataset) || !file->has_attribute("/", "step")) {
    throw UserError(str(path.string(), ": is no export of a checkpoint: it has no ", kStateDataset, " or no step"));
  }
  TensorSource source{.path = path, .step = file->int_attribute("/", "step"), .state = {}, .tensors = {}, .read = {}};
  for (std::string name : file->datasets()) {
    if (name.starts_with('/')) name = name.substr(1);
    const H5Dataset dataset = file->dataset(name);
    if (name == kStateDataset) {
      const int64_t bytes = dataset.info().numel();
      if (dataset.info().type != H5Type::u8 || dataset.info().shape.size() != 1 || bytes > kMaxState) {
        throw UserError(str(path.string(), ": ", kStateDataset, " is not a text"));
      }
      std::string text(static_cast<size_t>(bytes), '\0');
      dataset.read(std::vector<int64_t>{0}, Tensor(text.data(), {bytes}, DType::u8));
      source.state = parse_state(text, path);
      continue;
    }
    source.tensors.push_back({name, dtype_of(*file, name, dataset.info().type), dataset.info().shape});
    check_tensor(source.tensors.back(), path);
  }
  sort_by_name(source.tensors);
  source.read = [file](const std::string& name, int64_t row, const Tensor& out) {
    std::vector<int64_t> offset(static_cast<size_t>(out.dims()), 0);
    offset[0] = row;
    file->dataset(name).read(offset, out);
  };
  return source;
}

// --- safetensors

std::string outer_name(const std::string& name) {
  const bool model = name.starts_with(kModelFolder) && name.find('/', kModelFolder.size()) == std::string::npos;
  if (!model && name.find('/') == std::string::npos) {
    throw Error(str("tensor ", name, " lies in no folder and would come back as ", kModelFolder, name));
  }
  return model ? name.substr(kModelFolder.size()) : name;
}

std::string inner_name(const std::string& name) {
  return name.find('/') == std::string::npos ? std::string(kModelFolder) + name : name;
}

void write_safetensors(const TensorSource& source, const fs::path& file) {
  std::vector<StoredTensor> tensors = source.tensors;
  for (StoredTensor& tensor : tensors) tensor.name = outer_name(tensor.name);
  const SafetensorsHeader header = safetensors_header(
      tensors, {{"format", "pt"}, {kStepKey, std::to_string(source.step)}, {kStateKey, source.state.dump()}});
  File out = File::create(file);
  out.reserve(static_cast<int64_t>(header.bytes.size()) + source.bytes());
  out.write(0, header.bytes.data(), header.bytes.size());
  int64_t position = static_cast<int64_t>(header.bytes.size());
  for (StoredTensor tensor : header.order) {
    tensor.name = inner_name(tensor.name);
    each_block(source, tensor, [&](int64_t, const Tensor& block) {
      out.write(position, block.raw(), static_cast<size_t>(block.bytes()));
      position += block.bytes();
    });
  }
  out.close();
}

TensorSource open_safetensors(const fs::path& path) {
  const auto reader = std::make_shared<SafetensorsReader>(path);
  const auto& metadata = reader->metadata();
  if (!metadata.contains(kStepKey) || !metadata.contains(kStateKey)) {
    throw UserError(
        str(path.string(), ": is no export of a checkpoint: its metadata has no ", kStepKey, " or no ", kStateKey));
  }
  const std::string& digits = metadata.at(kStepKey);
  if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != std::string::npos) {
    throw UserError(str(path.string(), ": the metadata's ", kStepKey, " is not a number"));
  }
  TensorSource source{.path = path,
                      .step = std::stoll(digits),
                      .state = parse_state(metadata.at(kStateKey), path),
                      .tensors = reader->tensors(),
                      .read = {}};
  for (StoredTensor& tensor : source.tensors) {
    if (outer_name(inner_name(tensor.name)) != tensor.name) {
      throw UserError(str(path.string(), ": tensor ", tensor.name, " has a name that no export gives"));
    }
    tensor.name = inner_name(tensor.name);
  }
  sort_by_name(source.tensors);
  source.read = [reader](const std::string& name, int64_t row, const Tensor& out) {
    const int64_t row_elements = out.dims() == 2 ? out.size(1) : 1;
    reader->read(outer_name(name), row * row_elements * static_cast<int64_t>(size_of(out.dtype())), out.raw(),
                 static_cast<size_t>(out.bytes()));
  };
  return source;
}

bool is_h5(const fs::path& file) { return file.extension() == ".h5" || file.extension() == ".hdf5"; }

void require_known_ending(const fs::path& file) {
  if (is_h5(file) || file.extension() == ".safetensors") return;
  throw UserError(str(file.string(), ": the name must end in .h5 or .safetensors"));
}

}  // namespace

TensorSource open_export(const fs::path& file) {
  require_known_ending(file);
  return is_h5(file) ? open_h5(file) : open_safetensors(file);
}

void export_tensors(const TensorSource& source, const fs::path& file) {
  require_known_ending(file);
  if (fs::exists(fs::symlink_status(file))) throw UserError(str(file.string(), ": exists; remove it or give another"));
  const fs::path full = fs::absolute(file), temporary = full.string() + ".tmp-" + random_nonce();
  make_folders(full.parent_path());
  try {
    is_h5(file) ? write_h5(source, temporary) : write_safetensors(source, temporary);
    File written = File::open_update(temporary);
    written.sync();
    written.close();
    rename_new(temporary, full);
  } catch (...) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw;
  }
  sync_folder(full.parent_path());
}

}  // namespace tmamba
