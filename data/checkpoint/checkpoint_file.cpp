// Writing has two passes. First HDF5 creates all datasets, contiguous and with allocated space, and closes the file.
// Then one loop streams the tensor bytes to these positions with plain writes and computes both checksums while the
// bytes are in the cache. Nothing is read back, disk errors have the system's message, and the HDF5 library is not
// locked during the writes.
#include "data/checkpoint/checkpoint_file.h"

#include <algorithm>
#include <cstring>
#include <iomanip>
#include <numeric>

#include "data/hdf5/h5.h"
#include "data/io/crc32c.h"
#include "data/io/fs.h"
#include "data/io/sha256.h"

namespace tmamba {

namespace {

constexpr size_t kBlock = size_t{1} << 20;  // fits the L2 cache

// "128,0".
std::string join(const std::vector<int64_t>& numbers) {
  std::string text;
  for (int64_t number : numbers) text += str(text.empty() ? "" : ",", number);
  return text;
}

// Creates the file with all its datasets; returns their names and positions.
std::vector<StoredSlice> create_datasets(const std::filesystem::path& path, std::span<const TensorSlice> slices) {
  std::vector<StoredSlice> stored;
  H5DatasetOptions reserved;
  reserved.reserved = true;
  H5File file = H5File::create(path);
  for (const TensorSlice& slice : slices) {
    StoredSlice out = describe(slice);
    const bool complete = out.shape == slice.shape;
    const std::string offset = join(out.offset), tensor_shape = join(slice.shape);
    out.dataset = complete ? str("/", slice.name) : str("/", slice.name, "/", offset);
    out.position = file.create_dataset(out.dataset, h5_type(slice.data.dtype()), out.shape, reserved).position();
    if (slice.data.dtype() == DType::bf16) file.set_attribute(out.dataset, "dtype", name_of(DType::bf16));
    if (!complete) {
      file.set_attribute(out.dataset, "offset", offset);
      file.set_attribute(out.dataset, "tensor_shape", tensor_shape);
    }
    stored.push_back(std::move(out));
  }
  file.close();
  return stored;
}

// Streams once through a file that create_datasets() has made, writing tensors and hashing all bytes.
class FileFiller {
 public:
  FileFiller(File& file, const std::atomic<bool>& cancelled) : file_(file), cancelled_(cancelled), block_(kBlock) {}

  // Hashes the bytes that HDF5 wrote, up to `end`.
  void hash_until(int64_t end) {
    while (position_ < end) {
      const size_t bytes = std::min(kBlock, static_cast<size_t>(end - position_));
      file_.read(position_, block_.data(), bytes);
      sha_.add(block_.data(), bytes);
      position_ += static_cast<int64_t>(bytes);
    }
  }

  // Writes the tensor at the current position; returns its CRC32C.
  uint32_t fill(const ConstTensor& x) {
    crc_ = 0;
    const int64_t runs = x.contiguous() ? 1 : x.size(0);
    const size_t run_bytes = static_cast<size_t>(x.bytes() / runs);
    const size_t step = runs == 1 ? 0 : static_cast<size_t>(x.stride(0)) * size_of(x.dtype());
    const char* run = static_cast<const char*>(x.raw());
    if (run_bytes * 4 > kBlock) {
      for (int64_t i = 0; i < runs; ++i, run += step) put_long(run, run_bytes);
      return crc_;
    }
    size_t packed = 0;
    for (int64_t i = 0; i < runs; ++i, run += step) {
      if (packed + run_bytes > kBlock) put(block_.data(), std::exchange(packed, 0));
      std::memcpy(block_.data() + packed, run, run_bytes);
      packed += run_bytes;
    }
    put(block_.data(), packed);
    return crc_;
  }

  // Writes `bytes` bytes from `pull` at the current position; returns their CRC32C.
  uint32_t fill_from(int64_t bytes, const std::function<void(char* out, size_t bytes)>& pull) {
    crc_ = 0;
    while (bytes > 0) {
      const size_t count = std::min(kBlock, static_cast<size_t>(bytes));
      pull(block_.data(), count);
      put(block_.data(), count);
      bytes -= static_cast<int64_t>(count);
    }
    return crc_;
  }

  std::string sha256() { return sha_.hex(); }

 private:
  void put_long(const char* data, size_t bytes) {
    for (size_t begin = 0; begin < bytes; begin += kBlock) put(data + begin, std::min(kBlock, bytes - begin));
  }

  void put(const char* data, size_t bytes) {
    if (cancelled_) throw Error(str(file_.path().string(), ": the save was cancelled because the program is exiting"));
    crc_ = crc32c(crc_, data, bytes);
    sha_.add(data, bytes);
    file_.write(position_, data, bytes);
    position_ += static_cast<int64_t>(bytes);
  }

  File& file_;
  const std::atomic<bool>& cancelled_;
  Sha256 sha_;
  std::vector<char> block_;
  int64_t position_ = 0;
  uint32_t crc_ = 0;
};

}  // namespace

std::string rank_file_name(int rank) {
  std::ostringstream name;
  name << "rank-" << std::setw(5) << std::setfill('0') << rank << ".h5";
  return name.str();
}

StoredSlice describe(const TensorSlice& slice) {
  StoredSlice out;
  out.offset = slice.offset;
  out.shape = sizes_of(slice.data);
  return out;
}

void check_slice(const TensorSlice& slice) {
  check_tensor_name(slice.name);
  const ConstTensor& data = slice.data;
  const std::string where = str("slice ", data.shape(), " of tensor ", slice.name);
  if (data.device() != Device::cpu) throw Error(str(where, " is in device memory; copy it to the host first"));
  if (data.empty()) throw Error(str(where, " has no data"));
  if (!data.contiguous() && !(data.dims() == 2 && (data.stride(1) == 1 || data.size(1) == 1))) {
    throw Error(str(where, " has gaps inside its rows; rows must be contiguous"));
  }
  try {
    checked_bytes(slice.shape, data.dtype());
    checked_bytes(sizes_of(data), data.dtype());
  } catch (const Error& error) {
    throw Error(str(where, ": ", error.what()));
  }
}

void try_space(const std::filesystem::path& path, int64_t bytes) {
  File file = File::create(path);
  file.reserve(bytes);
  file.close();
}

RankFile write_rank_file(const std::filesystem::path& path, std::span<const TensorSlice> slices,
                         const std::atomic<bool>& cancelled, const PullBytes& pull) {
  int64_t bytes = 0;
  for (const TensorSlice& slice : slices) bytes += slice.data.bytes();
  try_space(path, bytes);
  RankFile out{{path.filename().string(), 0, ""}, create_datasets(path, slices)};
  File file = File::open_update(path);
  out.file.bytes = file.bytes();
  file.reserve(out.file.bytes);
  std::vector<size_t> order(slices.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return out.slices[a].position < out.slices[b].position; });
  FileFiller filler(file, cancelled);
  for (size_t i : order) {
    filler.hash_until(out.slices[i].position);
    const ConstTensor& data = slices[i].data;
    out.slices[i].crc = data.empty() ? filler.fill_from(data.bytes(), [&](char* to, size_t size) { pull(i, to, size); })
                                     : filler.fill(data);
  }
  filler.hash_until(out.file.bytes);
  out.file.sha256 = filler.sha256();
  file.sync();
  file.close();
  return out;
}

}  // namespace tmamba
