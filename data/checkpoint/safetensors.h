// safetensors files (github.com/huggingface/safetensors): 8 bytes length, little-endian; a JSON header of that length;
// then the tensors' bytes. Files that are read are untrusted.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "data/checkpoint/checkpoint.h"
#include "data/io/fs.h"

namespace tmamba {

class SafetensorsReader {
 public:
  // Reads and checks the header. Throws UserError saying what is wrong: a length that does not fit the file or is over
  // 100 MB, JSON that is not of this form (nested deeper, a name twice), an element type that is not known here,
  // sizes whose product is not the bytes of the tensor, tensors that overlap, leave a hole or do not fill the file.
  explicit SafetensorsReader(const std::filesystem::path& file);

  const std::vector<StoredTensor>& tensors() const { return tensors_; }  // sorted by name
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // `bytes` bytes of tensor `name` from byte `begin` of it.
  void read(const std::string& name, int64_t begin, void* out, size_t bytes) const;

 private:
  File file_;
  int64_t data_begin_ = 0;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, int64_t> begin_;  // of each tensor, after data_begin_
  std::map<std::string, std::string> metadata_;
};

// The header of such a file, with its length before it, and the order in which the tensors' bytes follow it: wide
// elements first, so that each tensor is aligned.
struct SafetensorsHeader {
  std::string bytes;
  std::vector<StoredTensor> order;
};
SafetensorsHeader safetensors_header(std::vector<StoredTensor> tensors,
                                     const std::map<std::string, std::string>& metadata);

}  // namespace tmamba
