#include "data/hdf5/h5_datasets.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>

namespace tmamba::h5_detail {

namespace {

constexpr size_t kMaxRank = 8;
constexpr size_t kMaxFilters = 8;
constexpr int64_t kMaxChunkBytes = int64_t{256} << 20;
constexpr int64_t kMaxDeflateRatio = 1032;  // the largest compression ratio of the deflate format

// Reverses HDF5's shuffle filter, which stores byte 0 of all elements of `size` bytes, then byte 1 of all, and so on.
std::vector<uint8_t> unshuffle(const std::vector<uint8_t>& in, size_t size) {
  const size_t elements = in.size() / size;
  std::vector<uint8_t> out = in;
  for (size_t byte = 0; size > 1 && byte < size; ++byte) {
    for (size_t i = 0; i < elements; ++i) out[i * size + byte] = in[byte * elements + i];
  }
  return out;
}

// Decompresses one zlib stream; nullopt if it is invalid or decompresses to more than `max_bytes`.
std::optional<std::vector<uint8_t>> inflated(const std::vector<uint8_t>& in, size_t max_bytes) {
  std::vector<uint8_t> out(max_bytes);
  uLongf bytes = max_bytes;
  if (uncompress(out.data(), &bytes, in.data(), in.size()) != Z_OK) return std::nullopt;
  out.resize(bytes);
  return out;
}

// Calls f(first element in the array, first element in the hyperslab, number of elements) for each contiguous run of
// the hyperslab in a row-major array of these sizes.
template <class F>
void each_run(std::span<const int64_t> sizes, std::span<const int64_t> offset, std::span<const int64_t> count, F&& f) {
  size_t outer = sizes.size();  // the dimensions from this one on are contiguous
  int64_t run = 1;
  while (outer > 0) {
    --outer;
    run *= count[outer];
    if (count[outer] != sizes[outer]) break;
  }
  int64_t rows = 1;
  for (size_t d = 0; d < outer; ++d) rows *= count[d];
  for (int64_t row = 0; row < rows; ++row) {
    int64_t rest = row, at = 0, stride = 1;
    for (size_t d = sizes.size(); d-- > 0;) {
      const int64_t index = d < outer ? rest % count[d] : 0;
      if (d < outer) rest /= count[d];
      at += (offset[d] + index) * stride;
      stride *= sizes[d];
    }
    f(at, row * run, run);
  }
}

}  // namespace

void DatasetReader::refuse(const std::string& problem) const { source().refuse(str("dataset ", name_, " ", problem)); }

DatasetReader::DatasetReader(std::shared_ptr<const ReadFile> file, const std::string& name, int64_t cache_bytes)
    : file_(std::move(file)), name_(name), object_(file_->object(name, "dataset")) {
  if (!object_->dataset) source().refuse(str("\"", name, "\" is not a dataset"));
  check_storage();
  if (!object_->type.known) {
    refuse("has an element type that is not allowed; allowed are little-endian integers and IEEE floats");
  }
  info_.type = *object_->type.known;
  info_.shape = object_->dataspace.shape;
  if (object_->dataspace.null || info_.shape.size() > kMaxRank) {
    refuse(str("has a null dataspace or more than ", kMaxRank, " dimensions"));
  }
  int64_t bytes = static_cast<int64_t>(size_of(info_.type));
  for (int64_t size : info_.shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) refuse("declares an impossible size");
  }
  if (bytes == 0) return;
  if (object_->layout.storage == Storage::contiguous) {
    check_contiguous(bytes);
    info_.stored_bytes = bytes;
  } else {
    check_chunks(bytes);
    const int64_t budget = cache_bytes > 0 ? cache_bytes : int64_t{1} << 20;
    cache_chunks_ = static_cast<size_t>(std::clamp<int64_t>(budget / chunk_bytes_, 1, 4096));
  }
}

void DatasetReader::check_storage() {
  const DataLayout& layout = object_->layout;
  if (layout.storage == Storage::virtual_) refuse("is virtual (its data is in other files), which is not allowed");
  if (layout.storage != Storage::contiguous && layout.storage != Storage::chunked) {
    refuse("is stored neither contiguously nor in chunks; recreate it with one of these layouts");
  }
  if (object_->external_storage) refuse("stores its data in an external file, which is not allowed");
  const auto& ids = object_->filters.ids;
  for (int id : ids) {
    if (id != kShuffle && id != kDeflate && id != kFletcher32) {
      refuse(str("uses filter ", id, "; allowed are shuffle, deflate and fletcher32"));
    }
  }
  if (ids.size() > kMaxFilters) refuse(str("uses more than ", kMaxFilters, " filters"));
  info_.fletcher32 = object_->filters.has(kFletcher32);
}

void DatasetReader::check_contiguous(int64_t bytes) const {
  const int64_t start = object_->layout.address, size = source().bytes();
  if (start != kUndefined && bytes <= size - start && object_->layout.bytes >= bytes) return;
  refuse(str("declares ", bytes, " bytes, which the file of ", size, " bytes does not hold"));
}

void DatasetReader::check_chunks(int64_t bytes) {
  const std::vector<int64_t>& all = object_->layout.chunk;
  const auto width = static_cast<int64_t>(size_of(info_.type));
  if (all.size() != info_.shape.size() + 1 || all.back() != width)
    refuse(str("has chunks whose rank or element size differs from its own", kDamagedAdvice));
  info_.chunk.assign(all.begin(), all.end() - 1);
  chunk_bytes_ = width;
  for (int64_t size : info_.chunk) {
    if (size < 1 || __builtin_mul_overflow(chunk_bytes_, size, &chunk_bytes_))
      refuse(str("has chunks of an impossible size", kDamagedAdvice));
  }
  if (chunk_bytes_ > kMaxChunkBytes) {
    refuse(str("has chunks of ", chunk_bytes_, " bytes; at most ", kMaxChunkBytes, " are allowed"));
  }
  const FilterPipeline& filters = object_->filters;
  const int64_t ratio = filters.has(kDeflate) ? kMaxDeflateRatio : 1, file_bytes = source().bytes();
  int64_t chunks = 1;
  for (size_t i = 0; i < info_.shape.size() && chunks <= file_bytes; ++i) {
    chunks *= (info_.shape[i] - 1) / info_.chunk[i] + 1;
  }
  // A chunk index has at least 8 bytes per chunk.
  if (bytes / ratio > file_bytes || chunks > file_bytes / 8) {
    refuse(str("declares ", bytes, " bytes, which the file of ", file_bytes, " bytes does not hold"));
  }
  chunks_ = read_chunks(source(), name_, *object_, chunk_bytes_);
  int64_t missing = 0;
  for (const Chunk& chunk : chunks_) {
    if (chunk.address == kUndefined) {
      ++missing;
      continue;
    }
    if (chunk.bytes < 1 || chunk.bytes > file_bytes - chunk.address) {
      refuse(str("has a chunk outside the file", kDamagedAdvice));
    }
    if (filters.ids.empty() && chunk.bytes != chunk_bytes_) {
      refuse(str("has a chunk of ", chunk.bytes, " bytes, expected ", chunk_bytes_, kDamagedAdvice));
    }
    info_.stored_bytes += chunk.bytes;
    if (info_.stored_bytes > file_bytes) break;
  }
  if (missing > 0) refuse(str("lacks ", missing, " of its ", chunks, " chunks"));
  if (info_.stored_bytes > file_bytes || info_.stored_bytes / chunks < chunk_bytes_ / ratio) {
    refuse(str("declares ", bytes, " bytes, but ", info_.stored_bytes, " are stored"));
  }
}

void DatasetReader::read(std::span<const int64_t> offset, std::span<const int64_t> count, uint8_t* out) {
  for (int64_t n : count) {
    if (n == 0) return;
  }
  object_->layout.storage == Storage::contiguous ? read_contiguous(offset, count, out)
                                                 : read_chunked(offset, count, out);
}

void DatasetReader::read_contiguous(std::span<const int64_t> offset, std::span<const int64_t> count,
                                    uint8_t* out) const {
  const auto width = static_cast<int64_t>(size_of(info_.type));
  each_run(info_.shape, offset, count, [&](int64_t at, int64_t place, int64_t run) {
    source().read(object_->layout.address + at * width, run * width, name_.c_str(), out + place * width);
  });
}

// Copies the intersection of the hyperslab with each chunk it touches, row by row.
void DatasetReader::read_chunked(std::span<const int64_t> offset, std::span<const int64_t> count, uint8_t* out) {
  const std::lock_guard lock(mutex_);
  const auto width = static_cast<int64_t>(size_of(info_.type));
  const size_t rank = info_.shape.size();
  std::vector<int64_t> first(rank), touched(rank), from(rank), part(rank), target(rank);
  int64_t chunks = 1;
  for (size_t d = 0; d < rank; ++d) {
    first[d] = offset[d] / info_.chunk[d];
    touched[d] = (offset[d] + count[d] - 1) / info_.chunk[d] - first[d] + 1;
    chunks *= touched[d];
  }
  for (int64_t i = 0; i < chunks; ++i) {
    int64_t rest = i, index = 0, stride = 1;
    for (size_t d = rank; d-- > 0;) {
      const int64_t place = first[d] + rest % touched[d], begin = place * info_.chunk[d];
      rest /= touched[d];
      index += place * stride;
      stride *= ceil_div(info_.shape[d], info_.chunk[d]);
      const int64_t low = std::max(offset[d], begin), high = std::min(offset[d] + count[d], begin + info_.chunk[d]);
      from[d] = low - begin, part[d] = high - low, target[d] = low - offset[d];
    }
    const std::vector<uint8_t>& bytes = chunk(index);
    const int64_t row = rank == 0 ? 1 : part[rank - 1];
    int64_t rows = 1;
    for (size_t d = 0; d + 1 < rank; ++d) rows *= part[d];
    for (int64_t r = 0; r < rows; ++r) {
      int64_t left = r, source_at = rank == 0 ? 0 : from[rank - 1], out_at = rank == 0 ? 0 : target[rank - 1];
      int64_t source_stride = rank == 0 ? 1 : info_.chunk[rank - 1], out_stride = rank == 0 ? 1 : count[rank - 1];
      for (size_t d = rank - (rank > 0); d-- > 0;) {
        const int64_t k = left % part[d];
        left /= part[d];
        source_at += (from[d] + k) * source_stride, out_at += (target[d] + k) * out_stride;
        source_stride *= info_.chunk[d], out_stride *= count[d];
      }
      std::memcpy(out + out_at * width, bytes.data() + source_at * width, static_cast<size_t>(row * width));
    }
  }
}

// The decoded chunk, from the least-recently-used cache.
const std::vector<uint8_t>& DatasetReader::chunk(int64_t index) {
  ++uses_;
  CachedChunk* oldest = nullptr;
  for (CachedChunk& cached : cache_) {
    if (cached.index == index) {
      cached.last_use = uses_;
      return cached.bytes;
    }
    if (oldest == nullptr || cached.last_use < oldest->last_use) oldest = &cached;
  }
  std::vector<uint8_t> bytes = decode(index);
  if (cache_.size() < cache_chunks_) oldest = &cache_.emplace_back();
  *oldest = {index, uses_, std::move(bytes)};
  return oldest->bytes;
}

// Reads a chunk and reverses its filters, the last one first.
std::vector<uint8_t> DatasetReader::decode(int64_t index) const {
  const Chunk& chunk = chunks_[static_cast<size_t>(index)];
  std::vector<uint8_t> bytes = source().read(chunk.address, chunk.bytes, name_.c_str());
  const std::vector<int>& ids = object_->filters.ids;
  for (size_t i = ids.size(); i-- > 0;) {
    if ((chunk.filter_mask >> i & 1) != 0) continue;
    if (ids[i] == kFletcher32) {
      if (bytes.size() < 4) refuse(str("has a chunk ", index, " too short for its checksum", kDamagedAdvice));
      const uint8_t* end = bytes.data() + bytes.size() - 4;
      const uint32_t stored = end[0] | end[1] << 8 | end[2] << 16 | static_cast<uint32_t>(end[3]) << 24;
      if (!fletcher32_holds(bytes.data(), bytes.size() - 4, stored)) {
        refuse(str("has a Fletcher32 checksum mismatch in chunk ", index, kDamagedAdvice));
      }
      bytes.resize(bytes.size() - 4);
    } else if (ids[i] == kShuffle) {
      bytes = unshuffle(bytes, size_of(info_.type));
    } else {
      auto larger = inflated(bytes, static_cast<size_t>(chunk_bytes_) + 4 * kMaxFilters);
      if (!larger) refuse(str("has a chunk ", index, " that cannot be decompressed", kDamagedAdvice));
      bytes = std::move(*larger);
    }
  }
  if (std::ssize(bytes) != chunk_bytes_) {
    refuse(str("has a chunk ", index, " of ", bytes.size(), " bytes, expected ", chunk_bytes_, kDamagedAdvice));
  }
  return bytes;
}

}  // namespace tmamba::h5_detail
