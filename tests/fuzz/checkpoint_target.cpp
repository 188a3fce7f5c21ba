// Checkpoints of one or two files and a few tensors, made from the fuzzer's bytes: sliced arbitrarily, optionally with
// one wrong number in the manifest. Reading must give the same as a plain copy of the slices.
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "data/checkpoint/checkpoint.h"
#include "data/checkpoint/manifest.h"
#include "data/io/crc32c.h"
#include "data/io/sha256.h"
#include "tests/fuzz/target.h"

namespace tmamba::fuzz {

namespace {

constexpr DType kTypes[] = {DType::f32, DType::u8, DType::bf16, DType::i64, DType::f64, DType::i32, DType::u16};

struct Made {
  Manifest manifest;
  std::vector<std::string> files;
};

// Splits rows, then columns, at positions taken from the bytes. After the end of the bytes nothing is split, so that
// short inputs are fast.
std::vector<std::pair<int64_t, int64_t>> cuts(Bytes& bytes, int64_t size) {
  std::vector<std::pair<int64_t, int64_t>> out;
  for (int64_t begin = 0; begin < size;) {
    const int64_t count = size - begin - bytes.below(size - begin);
    out.emplace_back(begin, count);
    begin += count;
  }
  return out;
}

void add_slice(Made& made, ManifestTensor& tensor, Bytes& bytes, std::vector<int64_t> offset,
               std::vector<int64_t> shape) {
  const size_t file = static_cast<size_t>(bytes.below(std::ssize(made.files)));
  int64_t size = static_cast<int64_t>(size_of(tensor.dtype));
  for (int64_t n : shape) size *= n;
  const int64_t gap = bytes.below(4);
  std::string data(static_cast<size_t>(size), '\0');
  for (char& c : data) c = static_cast<char>(bytes.number(1));
  StoredSlice slice{.file = file,
                    .dataset = "/" + tensor.name + "/" + std::to_string(tensor.slices.size()),
                    .position = std::ssize(made.files[file]) + gap,
                    .offset = std::move(offset),
                    .shape = std::move(shape),
                    .crc = crc32c(0, data.data(), data.size())};
  made.files[file].append(static_cast<size_t>(gap), '.').append(data);
  tensor.slices.push_back(std::move(slice));
}

// Makes one number of the manifest wrong.
void spoil(Made& made, Bytes& bytes) {
  ManifestTensor& tensor = made.manifest.tensors[static_cast<size_t>(bytes.below(std::ssize(made.manifest.tensors)))];
  StoredSlice& slice = tensor.slices[static_cast<size_t>(bytes.below(std::ssize(tensor.slices)))];
  ManifestFile& file = made.manifest.files[static_cast<size_t>(bytes.below(std::ssize(made.manifest.files)))];
  const int64_t kind = bytes.below(9), value = static_cast<int64_t>(bytes.number(8));
  if (kind == 0) slice.position = value;
  if (kind == 1) slice.offset.back() = value;
  if (kind == 2) slice.shape.front() = value;
  if (kind == 3) tensor.shape.back() = value;
  if (kind == 4) slice.file = static_cast<size_t>(value & INT64_MAX);
  if (kind == 5) slice.crc ^= static_cast<uint32_t>(value);
  if (kind == 6) file.bytes = value;
  if (kind == 7) file.name = "rank-" + std::to_string(value) + ".h5";
  if (kind == 8) file.sha256[0] = file.sha256[0] == '0' ? '1' : '0';
}

Made make(Bytes& bytes) {
  Made made;
  made.files.resize(static_cast<size_t>(1 + bytes.below(2)));
  made.manifest.step = 1;
  made.manifest.state = {{"step", 1}};
  const int64_t tensors = 1 + bytes.below(3);
  for (int64_t i = 0; i < tensors; ++i) {
    ManifestTensor tensor{.name = "model/" + std::to_string(i),
                          .dtype = kTypes[bytes.below(std::size(kTypes))],
                          .shape = {1 + bytes.below(9)},
                          .slices = {}};
    if (bytes.below(4) > 0) tensor.shape.push_back(1 + bytes.below(9));
    for (const auto& [row, rows] : cuts(bytes, tensor.shape[0])) {
      if (tensor.shape.size() == 1) {
        add_slice(made, tensor, bytes, {row}, {rows});
        continue;
      }
      for (const auto& [column, columns] : cuts(bytes, tensor.shape[1])) {
        add_slice(made, tensor, bytes, {row, column}, {rows, columns});
      }
    }
    made.manifest.tensors.push_back(std::move(tensor));
  }
  for (size_t i = 0; i < made.files.size(); ++i) {
    if (made.files[i].empty()) made.files[i] = ".";
    made.manifest.files.push_back(
        {"rank-" + std::to_string(i) + ".h5", std::ssize(made.files[i]), sha256_hex(made.files[i])});
  }
  return made;
}

// The tensor's bytes, copied slice by slice.
std::string plain_copy(const Made& made, const ManifestTensor& tensor) {
  const size_t width = size_of(tensor.dtype);
  const bool flat = tensor.shape.size() == 1;
  const size_t columns = static_cast<size_t>(tensor.shape.back());
  std::string out(columns * width * static_cast<size_t>(flat ? 1 : tensor.shape[0]), '\0');
  for (const StoredSlice& slice : tensor.slices) {
    const size_t rows = static_cast<size_t>(flat ? 1 : slice.shape[0]), run = static_cast<size_t>(slice.shape.back());
    for (size_t row = 0; row < rows; ++row) {
      const size_t to =
          (static_cast<size_t>(flat ? 0 : slice.offset[0]) + row) * columns + static_cast<size_t>(slice.offset.back());
      std::memcpy(out.data() + to * width,
                  made.files[slice.file].data() + slice.position + static_cast<int64_t>(row * run * width),
                  run * width);
    }
  }
  return out;
}

Tensor tensor_at(std::string& data, const std::vector<int64_t>& shape, DType dtype) {
  return shape.size() == 1 ? Tensor(data.data(), {shape[0]}, dtype) : Tensor(data.data(), {shape[0], shape[1]}, dtype);
}

// Reads a rectangle of the tensor, before or after it was verified.
void read_part(const CheckpointReader& reader, const ManifestTensor& tensor, const std::string& whole, Bytes& bytes) {
  std::vector<int64_t> offset, shape;
  int64_t elements = 1;
  for (int64_t n : tensor.shape) {
    offset.push_back(bytes.below(n));
    shape.push_back(1 + bytes.below(n - offset.back()));
    elements *= shape.back();
  }
  const size_t width = size_of(tensor.dtype);
  std::string part(static_cast<size_t>(elements) * width, '\0');
  reader.read(tensor.name, offset, tensor_at(part, shape, tensor.dtype));
  const bool flat = shape.size() == 1;
  const size_t run = static_cast<size_t>(shape.back()) * width;
  for (int64_t row = 0; row < (flat ? 1 : shape[0]); ++row) {
    const size_t from = static_cast<size_t>((flat ? 0 : offset[0] + row) * tensor.shape.back() + offset.back()) * width;
    require(part.compare(static_cast<size_t>(row) * run, run, whole, from, run) == 0, "a part of a tensor is wrong");
  }
}

void bytes(const std::string& input) {
  Bytes bytes(input);
  const Made whole = make(bytes);
  Made made = whole;
  const bool spoiled = bytes.below(2) == 1;
  if (spoiled) spoil(made, bytes);
  for (size_t i = 0; i < made.files.size(); ++i) scratch_file("rank-" + std::to_string(i) + ".h5", made.files[i]);
  scratch_file(kManifestName, manifest_text(made.manifest));
  const CheckpointReader reader(scratch_folder());
  for (const ManifestTensor& tensor : whole.manifest.tensors) {
    const std::string expected = plain_copy(whole, tensor);
    read_part(reader, tensor, expected, bytes);
    std::string found(expected.size(), '\0');
    reader.read(tensor.name, std::vector<int64_t>(tensor.shape.size(), 0),
                tensor_at(found, tensor.shape, tensor.dtype));
    require(found == expected, "a tensor is not that of its slices");
    read_part(reader, tensor, expected, bytes);
  }
  const int64_t files = std::ssize(whole.files);  // one file per call: starting threads would take most of the time
  for (int64_t i = 0; i < files; ++i) {
    require(reader.verify(i, files).empty() || spoiled, "a whole checkpoint is called damaged");
  }
}

void file(const std::filesystem::path& path) {
  const CheckpointReader reader(path);
  for (const StoredTensor& tensor : reader.tensors()) {
    int64_t size = static_cast<int64_t>(size_of(tensor.dtype));
    for (int64_t n : tensor.shape) size *= n;
    std::string data(static_cast<size_t>(size), '\0');
    reader.read(tensor.name, std::vector<int64_t>(tensor.shape.size(), 0), tensor_at(data, tensor.shape, tensor.dtype));
  }
  const auto problems = reader.verify();
  if (!problems.empty()) throw DamagedCheckpoint(problems.front());
}

}  // namespace

const Target checkpoint{"checkpoint", bytes, file};

}  // namespace tmamba::fuzz
