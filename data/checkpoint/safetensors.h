// safetensors files (github.com/huggingface/safetensors): the header's length as 8 bytes, little-endian; the header,
// JSON; the tensors' bytes. Files are treated as untrusted input.
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
  // Reads and checks the header. Throws UserError for a length that exceeds the file or 100 MB, JSON of another form
  // (nested deeper, a name twice), an unsupported element type, a shape that disagrees with the tensor's bytes, and
  // tensors that overlap, leave a hole or do not fill the file.
  explicit SafetensorsReader(const std::filesystem::path& file);

  const std::vector<StoredTensor>& tensors() const { return tensors_; }  // sorted by name
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // Reads `bytes` bytes of tensor `name`, starting at its byte `begin`.
  void read(const std::string& name, int64_t begin, void* out, size_t bytes) const;

 private:
  File file_;
  int64_t data_begin_ = 0;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, int64_t> begin_;  // first byte of each tensor, relative to data_begin_
  std::map<std::string, std::string> metadata_;
};

struct SafetensorsHeader {
  std::string bytes;                // length and JSON
  std::vector<StoredTensor> order;  // in which the tensors' bytes follow: by falling element size, so all are aligned
};
SafetensorsHeader safetensors_header(std::vector<StoredTensor> tensors,
                                     const std::map<std::string, std::string>& metadata);

}  // namespace tmamba
