// Reads datasets of an untrusted HDF5 file. Implementation of H5Dataset::read.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "data/hdf5/h5_objects.h"

namespace tmamba::h5_detail {

class DatasetReader {
 public:
  // Throws UserError if the dataset breaks the rules of h5.h.
  DatasetReader(std::shared_ptr<const ReadFile> file, const std::string& name, int64_t cache_bytes);

  const std::string& name() const { return name_; }
  const H5Info& info() const { return info_; }
  const Source& source() const { return file_->source(); }
  // Reads the hyperslab, which must be inside the dataset, row-major and in the stored type. Thread-safe.
  void read(std::span<const int64_t> offset, std::span<const int64_t> count, uint8_t* out);

 private:
  struct CachedChunk {
    int64_t index = -1;
    int64_t last_use = 0;  // value of uses_
    std::vector<uint8_t> bytes;
  };

  [[noreturn]] void refuse(const std::string& problem) const;
  void check_storage();
  void check_contiguous(int64_t bytes) const;
  void check_chunks(int64_t bytes);
  void read_contiguous(std::span<const int64_t> offset, std::span<const int64_t> count, uint8_t* out) const;
  void read_chunked(std::span<const int64_t> offset, std::span<const int64_t> count, uint8_t* out);
  const std::vector<uint8_t>& chunk(int64_t index);
  std::vector<uint8_t> decode(int64_t index) const;

  std::shared_ptr<const ReadFile> file_;
  std::string name_;
  std::shared_ptr<const Object> object_;
  H5Info info_;
  int64_t chunk_bytes_ = 0;    // of a decoded chunk
  std::vector<Chunk> chunks_;  // row-major
  std::mutex mutex_;           // guards the members below
  size_t cache_chunks_ = 1;    // capacity of cache_
  int64_t uses_ = 0;
  std::vector<CachedChunk> cache_;
};

}  // namespace tmamba::h5_detail
