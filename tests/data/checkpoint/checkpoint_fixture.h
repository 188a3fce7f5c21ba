// Tensors with known bits, cut into rectangles, for the checkpoint tests.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "data/checkpoint/checkpoint.h"
#include "data/checkpoint/manifest.h"
#include "kernels/base/rng.h"

namespace tmamba {

// A fresh folder, removed with all in it at the end.
class TempFolder {
 public:
  explicit TempFolder(const std::filesystem::path& parent = std::filesystem::temp_directory_path()) {
    std::string name = (parent / "tmamba-checkpoint-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw Error("cannot make a temporary folder");
    path_ = name;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  // One in memory where there is such a place, for tests that look at calls and would else wait for the disk.
  static std::filesystem::path memory() {
    return std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : std::filesystem::temp_directory_path();
  }
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

// A whole tensor in memory: every bit is a function of its name and `seed`, so floats hold NaNs and infinities too.
struct Logical {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;

  Logical(std::string tensor, DType type, std::vector<int64_t> sizes, uint64_t seed)
      : name(std::move(tensor)), dtype(type), shape(std::move(sizes)) {
    bytes.resize(static_cast<size_t>(checked_bytes(shape, dtype)));
    const Philox random(seed, stream_id(name));
    for (size_t begin = 0; begin < bytes.size(); begin += 16) {
      const auto words = random.words(begin / 16);
      std::memcpy(bytes.data() + begin, words.data(), std::min<size_t>(16, bytes.size() - begin));
    }
  }

  Tensor view() {
    return shape.size() == 1 ? Tensor(bytes.data(), {shape[0]}, dtype)
                             : Tensor(bytes.data(), {shape[0], shape[1]}, dtype);
  }
  // A rectangle of it; rows keep the stride of the whole.
  Tensor part(const std::vector<int64_t>& offset, const std::vector<int64_t>& size) {
    Tensor out = view();
    for (size_t i = 0; i < size.size(); ++i) out = out.slice(static_cast<int>(i), offset[i], size[i]);
    return out;
  }
};

// One tensor of every type, small ones and one of several blocks.
inline std::vector<Logical> sample_tensors(uint64_t seed) {
  std::vector<Logical> out;
  out.emplace_back("model/embedding.weight", DType::f32, std::vector<int64_t>{37, 24}, seed);
  out.emplace_back("model/layers.0.mixer.q.weight", DType::bf16, std::vector<int64_t>{24, 24}, seed);
  out.emplace_back("model/norm.weight", DType::bf16, std::vector<int64_t>{24}, seed);
  out.emplace_back("optim/m/embedding.weight", DType::f64, std::vector<int64_t>{600, 301}, seed);
  out.emplace_back("optim/steps", DType::i64, std::vector<int64_t>{7}, seed);
  out.emplace_back("state/cursor", DType::i32, std::vector<int64_t>{3, 9}, seed);
  out.emplace_back("state/tokens", DType::u16, std::vector<int64_t>{1001}, seed);
  out.emplace_back("state/flags", DType::u8, std::vector<int64_t>{50, 3}, seed);
  return out;
}

struct Part {
  std::vector<int64_t> offset, size;
};

// Cuts a rectangle into at most `pieces` smaller ones, at random.
inline std::vector<Part> cut(const std::vector<int64_t>& shape, int pieces, std::mt19937_64& random) {
  std::vector<Part> parts{{std::vector<int64_t>(shape.size(), 0), shape}};
  for (int tries = 0; static_cast<int>(parts.size()) < pieces && tries < 100 * pieces; ++tries) {
    Part& part = parts[random() % parts.size()];
    const size_t dim = random() % shape.size();
    if (part.size[dim] < 2) continue;
    const int64_t first = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(part.size[dim] - 1));
    Part second = part;
    second.offset[dim] += first, second.size[dim] -= first;
    part.size[dim] = first;
    parts.push_back(std::move(second));
  }
  return parts;
}

inline TensorSlice slice_of(Logical& tensor, const Part& part) {
  return {tensor.name, tensor.shape, part.offset, tensor.part(part.offset, part.size)};
}

// The slices of rank `rank` of `ranks` if every tensor is split into `pieces`, assigned round-robin.
inline std::vector<TensorSlice> deal(std::vector<Logical>& tensors, int pieces, uint64_t seed, int rank = 0,
                                     int ranks = 1) {
  std::mt19937_64 random(seed);
  std::vector<TensorSlice> out;
  int next = 0;
  for (Logical& tensor : tensors) {
    for (const Part& part : cut(tensor.shape, pieces, random)) {
      if (next++ % ranks == rank) out.push_back(slice_of(tensor, part));
    }
  }
  return out;
}

inline std::vector<uint8_t> read_whole(const CheckpointReader& reader, const Logical& like) {
  std::vector<uint8_t> bytes(like.bytes.size());
  const Tensor out = like.shape.size() == 1 ? Tensor(bytes.data(), {like.shape[0]}, like.dtype)
                                            : Tensor(bytes.data(), {like.shape[0], like.shape[1]}, like.dtype);
  reader.read(like.name, std::vector<int64_t>(like.shape.size(), 0), out);
  return bytes;
}

inline std::string file_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

inline void put_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

// What `work` throws, as text; "" where it does not.
template <class Exception = Error, class Work>
std::string thrown(Work&& work) {
  try {
    work();
    return "";
  } catch (const Exception& error) {
    return error.what();
  }
}

// Names in a folder, sorted.
inline std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) out.push_back(entry.path().filename().string());
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace tmamba
