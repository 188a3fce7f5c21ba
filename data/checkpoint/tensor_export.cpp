// Reads and writes TensorSources as single files.
#include <algorithm>
#include <charconv>
#include <memory>

#include "data/checkpoint/manifest.h"
#include "data/checkpoint/safetensors.h"
#include "data/checkpoint/tensor_source.h"
#include "data/hdf5/h5.h"
#include "data/io/crc32c.h"
#include "data/io/fs.h"
#include "data/io/sha256.h"

namespace tmamba {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* kStateDataset = "state_json";
constexpr const char* kStepKey = "transmamba.step";
constexpr const char* kStateKey = "transmamba.state";
constexpr const char* kCrcKey = "transmamba.crc32c";
constexpr const char* kSealKey = "transmamba.sha256";
constexpr const char* kCrcAttribute = "crc32c";
constexpr const char* kSealAttribute = "sha256";
constexpr std::string_view kModelFolder = "model/";
constexpr int64_t kMaxState = int64_t{64} << 20;

json parse_state(const std::string& text, const fs::path& file) {
  const auto depth_guard = [&](int depth, json::parse_event_t, json&) {
    if (depth > 64) throw UserError(str(file.string(), ": the state of the run is nested deeper than 64 levels"));
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

// --- Checksums ---

// SHA-256 of the step, the state and the tensors' names, types, shapes and CRC32Cs.
std::string seal_of(const TensorSource& source) {
  json tensors = json::object();
  for (const StoredTensor& tensor : source.tensors) {
    tensors[tensor.name] = {name_of(tensor.dtype), tensor.shape, hex8(source.crc.at(tensor.name))};
  }
  return sha256_hex(json::array({source.step, source.state, tensors}).dump());
}

uint32_t parse_crc(const std::string& digits, const std::string& where) {
  uint32_t crc = 0;
  const char* end = digits.data() + digits.size();
  if (digits.size() == 8 && std::from_chars(digits.data(), end, crc, 16).ptr == end) return crc;
  throw DamagedCheckpoint(str(where, ": its CRC32C is not 8 hexadecimal digits: the file is damaged"));
}

// Throws DamagedCheckpoint unless the seal matches and either all tensors or none have a CRC32C.
void check_seal(const TensorSource& source, const std::string& seal) {
  if (source.crc.empty() && seal.empty()) return;
  for (const StoredTensor& tensor : source.tensors) {
    if (source.crc.contains(tensor.name)) continue;
    throw DamagedCheckpoint(str(source.path.string(), ": tensor ", tensor.name,
                                " has no checksum, though the file has some: it is damaged or was changed"));
  }
  if (seal == seal_of(source)) return;
  throw DamagedCheckpoint(str(source.path.string(),
                              ": SHA-256 mismatch of the step, the state and the tensors' names, types, sizes and "
                              "checksums: the file is damaged or was changed"));
}

// As each_block; also sets source.crc of the tensor.
void each_summed_block(TensorSource& source, const StoredTensor& tensor,
                       const std::function<void(int64_t row, const Tensor& block)>& f) {
  uint32_t crc = 0;
  each_block(source, tensor, [&](int64_t row, const Tensor& block) {
    crc = crc32c(crc, block.raw(), static_cast<size_t>(block.bytes()));
    f(row, block);
  });
  source.crc[tensor.name] = crc;
}

// --- HDF5 ---

void write_h5(TensorSource source, const fs::path& file) {
  H5File out = H5File::create(file);
  for (const StoredTensor& tensor : source.tensors) {
    if (tensor.name == kStateDataset) throw Error(str("the tensor name ", tensor.name, " is reserved in HDF5 exports"));
    H5Dataset dataset = out.create_dataset(tensor.name, h5_type(tensor.dtype), tensor.shape);
    each_summed_block(source, tensor, [&](int64_t row, const Tensor& block) {
      std::vector<int64_t> offset(tensor.shape.size(), 0);
      offset[0] = row;
      dataset.write(offset, block);
    });
    if (tensor.dtype == DType::bf16) out.set_attribute(tensor.name, "dtype", name_of(DType::bf16));
    out.set_attribute(tensor.name, kCrcAttribute, hex8(source.crc.at(tensor.name)));
  }
  const std::string state = source.state.dump();
  out.write(kStateDataset, ConstTensor(state.data(), {static_cast<int64_t>(state.size())}, DType::u8));
  out.set_attribute("/", "step", source.step);
  out.set_attribute("/", kSealAttribute, seal_of(source));
  out.close();
}

DType dtype_of(const H5File& file, const std::string& name, H5Type type) {
  const bool marked = file.has_attribute(name, "dtype");
  if (marked && (type != H5Type::u16 || file.string_attribute(name, "dtype") != name_of(DType::bf16))) {
    throw UserError(
        str(file.path().string(), ": dataset ", name, ": the attribute dtype is not \"bfloat16\" on uint16"));
  }
  if (marked) return DType::bf16;
  for (DType dtype : {DType::f64, DType::f32, DType::i64, DType::i32, DType::u16, DType::u8}) {
    if (h5_type(dtype) == type) return dtype;
  }
  throw UserError(str(file.path().string(), ": dataset ", name, " has type ", tmamba::name_of(type),
                      ", unsupported in checkpoints"));
}

// Throws UserError unless a checkpoint can store the tensor: valid name, 1 or 2 sizes, none of them 0.
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
    throw UserError(str(path.string(), ": is not an export of a checkpoint: it has no ", kStateDataset, " or no step"));
  }
  TensorSource source{.path = path, .step = file->int_attribute("/", "step"), .state = {}, .tensors = {}, .read = {}};
  for (std::string name : file->datasets()) {
    if (name.starts_with('/')) name = name.substr(1);
    const H5Dataset dataset = file->dataset(name);
    if (name == kStateDataset) {
      const int64_t bytes = dataset.info().numel();
      if (dataset.info().type != H5Type::u8 || dataset.info().shape.size() != 1 || bytes > kMaxState) {
        throw UserError(str(path.string(), ": ", kStateDataset, " is not a string"));
      }
      std::string text(static_cast<size_t>(bytes), '\0');
      dataset.read(std::vector<int64_t>{0}, Tensor(text.data(), {bytes}, DType::u8));
      source.state = parse_state(text, path);
      continue;
    }
    source.tensors.push_back({name, dtype_of(*file, name, dataset.info().type), dataset.info().shape});
    check_tensor(source.tensors.back(), path);
    if (!file->has_attribute(name, kCrcAttribute)) continue;
    source.crc[name] = parse_crc(file->string_attribute(name, kCrcAttribute), str(path.string(), ": tensor ", name));
  }
  check_seal(source, file->has_attribute("/", kSealAttribute) ? file->string_attribute("/", kSealAttribute) : "");
  sort_by_name(source.tensors);
  source.read = [file](const std::string& name, int64_t row, const Tensor& out) {
    std::vector<int64_t> offset(static_cast<size_t>(out.dims()), 0);
    offset[0] = row;
    file->dataset(name).read(offset, out);
  };
  return source;
}

// --- safetensors ---

std::string outer_name(const std::string& name) {
  const bool model = name.starts_with(kModelFolder) && name.find('/', kModelFolder.size()) == std::string::npos;
  if (!model && name.find('/') == std::string::npos) {
    throw Error(str("tensor ", name, " has no directory and would be read back as ", kModelFolder, name));
  }
  return model ? name.substr(kModelFolder.size()) : name;
}

std::string inner_name(const std::string& name) {
  return name.find('/') == std::string::npos ? std::string(kModelFolder) + name : name;
}

SafetensorsHeader header_of(const TensorSource& source, const std::string& seal) {
  std::vector<StoredTensor> tensors = source.tensors;
  json crc = json::object();
  for (StoredTensor& tensor : tensors) {
    const uint32_t sum = source.crc.at(tensor.name);
    tensor.name = outer_name(tensor.name);
    crc[tensor.name] = hex8(sum);
  }
  return safetensors_header(tensors, {{"format", "pt"},
                                      {kStepKey, std::to_string(source.step)},
                                      {kStateKey, source.state.dump()},
                                      {kCrcKey, crc.dump()},
                                      {kSealKey, seal}});
}

// Writes the header last, when the checksums are known. Its length does not depend on their values.
void write_safetensors(TensorSource source, const fs::path& file) {
  for (const StoredTensor& tensor : source.tensors) source.crc[tensor.name] = 0;
  const SafetensorsHeader place = header_of(source, seal_of(source));
  const auto header_bytes = static_cast<int64_t>(place.bytes.size());
  File out = File::create(file);
  out.reserve(header_bytes + source.bytes());
  int64_t position = header_bytes;
  for (StoredTensor tensor : place.order) {
    tensor.name = inner_name(tensor.name);
    each_summed_block(source, tensor, [&](int64_t, const Tensor& block) {
      out.write(position, block.raw(), static_cast<size_t>(block.bytes()));
      position += block.bytes();
    });
  }
  const std::string header = header_of(source, seal_of(source)).bytes;
  TM_CHECK(header.size() == place.bytes.size(), file.string(), ": the header grew while the tensors were written");
  out.write(0, header.data(), header.size());
  out.close();
}

// Fills source.crc from the metadata and checks the seal.
void read_sums(TensorSource& source, const std::map<std::string, std::string>& metadata) {
  const auto sums = metadata.find(kCrcKey), seal = metadata.find(kSealKey);
  if (sums != metadata.end()) {
    const std::string where = str(source.path.string(), ": the metadata's ", kCrcKey);
    const json listed = json::parse(sums->second, nullptr, false);
    if (!listed.is_object()) throw DamagedCheckpoint(where + " is not a JSON object: the file is damaged");
    for (const auto& [name, digits] : listed.items()) {
      if (!digits.is_string())
        throw DamagedCheckpoint(where + " has a value that is not a string: the file is damaged");
      source.crc[inner_name(name)] =
          parse_crc(digits.get<std::string>(), str(source.path.string(), ": tensor ", inner_name(name)));
    }
  }
  check_seal(source, seal == metadata.end() ? "" : seal->second);
}

TensorSource open_safetensors(const fs::path& path) {
  const auto reader = std::make_shared<SafetensorsReader>(path);
  const auto& metadata = reader->metadata();
  if (!metadata.contains(kStepKey) || !metadata.contains(kStateKey)) {
    throw UserError(
        str(path.string(), ": is not an export of a checkpoint: its metadata has no ", kStepKey, " or no ", kStateKey));
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
      throw UserError(str(path.string(), ": tensor ", tensor.name, " has a name that exports do not use"));
    }
    tensor.name = inner_name(tensor.name);
  }
  read_sums(source, metadata);
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
  if (fs::exists(fs::symlink_status(file)))
    throw UserError(str(file.string(), ": exists; remove it or give another name"));
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
