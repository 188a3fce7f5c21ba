// HDF5 files. Written by the HDF5 library, wrapped once: every call checked, its own error stack in the message, ids
// owned; the rest of the project does not see hdf5.h.
//
// Files that are read are untrusted, and read without the library (h5_objects.h). H5File::open_read and H5File::dataset
// follow hard links only and refuse virtual datasets, external storage, filters but shuffle, deflate and fletcher32,
// element types that are not in H5Type, and a declared size that the bytes in the file cannot hold. Failures on reading
// are UserErrors, on writing Errors; all name the file. A file that could not be written is given up: nothing more can
// be done with it but to delete it.
//
// Calls may come from several threads; those that write run one at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"

namespace tmamba {

// Element types in files, little-endian.
enum class H5Type : uint8_t { u8, u16, u32, u64, i32, i64, f32, f64 };

size_t size_of(H5Type type);
const char* name_of(H5Type type);
// The type that stores a DType; bfloat16 is stored as the uint16 of its bits.
H5Type h5_type(DType dtype);

enum class H5Format : uint8_t {
  earliest,     // read by every version of HDF5
  checksummed,  // by HDF5 1.10 (2016) and later; damage to anything but the data itself is found by checksums
};

struct H5Info {
  H5Type type = H5Type::u8;
  std::vector<int64_t> shape;  // empty: a scalar
  std::vector<int64_t> chunk;  // empty: contiguous
  bool fletcher32 = false;     // a checksum of every chunk, verified on reading
  int64_t stored_bytes = 0;    // bytes of the data in the file, after filters

  int64_t numel() const;
};

struct H5DatasetOptions {
  std::vector<int64_t> chunk;  // one size per dimension; empty: contiguous
  bool growable = false;       // the first dimension may grow; needs chunks
  bool fletcher32 = false;     // needs chunks
  int deflate = 0;             // 1..9, with the shuffle filter; needs chunks
  int64_t cache_bytes = 0;     // chunk cache; 0: the library's default (1 MiB)
  bool reserved = false;       // takes its place in the file now, for bytes written at position(); contiguous only
};

namespace h5_detail {
struct FileHandle;     // being written
struct DatasetHandle;  // the same
class ReadFile;
class DatasetReader;
}  // namespace h5_detail

// An open dataset. It keeps its file open.
class H5Dataset {
 public:
  const std::string& name() const;
  const H5Info& info() const { return info_; }

  // The rectangle of `count` elements from `offset`, row-major, converted to or from `memory` (what does not fit
  // becomes the nearest number that does). A scalar has neither.
  void read(std::span<const int64_t> offset, std::span<const int64_t> count, H5Type memory, void* out) const;
  void write(std::span<const int64_t> offset, std::span<const int64_t> count, H5Type memory, const void* data);
  // The rectangle from `offset` with the tensor's sizes. Host memory; the last dimension is contiguous.
  void read(std::span<const int64_t> offset, const Tensor& out) const;
  void write(std::span<const int64_t> offset, const ConstTensor& data);
  // Makes the first dimension `rows` long.
  void grow(int64_t rows);
  // Where in the file the data starts, row-major and without gaps. Only for a dataset that was made `reserved`.
  int64_t position() const;

 private:
  friend class H5File;
  H5Dataset(std::shared_ptr<h5_detail::DatasetHandle> handle, H5Info info);
  explicit H5Dataset(std::shared_ptr<h5_detail::DatasetReader> reader);
  h5_detail::DatasetHandle& written() const;
  std::shared_ptr<h5_detail::DatasetHandle> handle_;  // of a dataset being written, else
  std::shared_ptr<h5_detail::DatasetReader> reader_;
  H5Info info_;
};

class H5File {
 public:
  // A new file; one that is there is written over.
  static H5File create(const std::filesystem::path& path, H5Format format = H5Format::earliest);
  // Throws UserError where the file is missing, a folder, empty, not HDF5, truncated or damaged.
  static H5File open_read(const std::filesystem::path& path);

  const std::filesystem::path& path() const;
  int64_t file_bytes() const;
  void flush();
  // Writes what is buffered and closes; throws where that fails. The destructor closes too, but tells nobody of
  // failures, so a writer must call close().
  void close();

  // Names are paths, "model/embedding.weight"; groups on the way are made.
  H5Dataset create_dataset(const std::string& name, H5Type type, std::vector<int64_t> shape,
                           const H5DatasetOptions& options = {});
  // A contiguous dataset holding the tensor.
  void write(const std::string& name, const ConstTensor& data);

  // From here on: of a file that was opened for reading.
  bool has(const std::string& name) const;
  // An existing dataset; refuses what the rules above forbid. Of its chunks some are kept: `cache_bytes` of them, or 1
  // MiB.
  H5Dataset dataset(const std::string& name, int64_t cache_bytes = 0) const;
  // Full names of all datasets, sorted. Refuses files with links that are not hard links, and loops.
  std::vector<std::string> datasets() const;

  // Attributes of a group or dataset; "/" is the file itself. Scalars: int64, float64 or a string of fixed length. Set
  // while a file is written, read from one that was opened for reading.
  void set_attribute(const std::string& object, const std::string& name, const std::string& value);
  void set_attribute(const std::string& object, const std::string& name, int64_t value);
  void set_attribute(const std::string& object, const std::string& name, double value);
  bool has_attribute(const std::string& object, const std::string& name) const;
  std::string string_attribute(const std::string& object, const std::string& name) const;
  int64_t int_attribute(const std::string& object, const std::string& name) const;
  // A one-dimensional list, of at most 65536 numbers.
  std::vector<int64_t> int_list_attribute(const std::string& object, const std::string& name) const;
  double double_attribute(const std::string& object, const std::string& name) const;
  std::vector<std::string> attributes(const std::string& object) const;

 private:
  H5File() = default;
  const h5_detail::ReadFile& reader() const;
  h5_detail::FileHandle& writer() const;
  std::shared_ptr<h5_detail::FileHandle> handle_;  // of a file being written, else
  std::shared_ptr<const h5_detail::ReadFile> reader_;
};

}  // namespace tmamba
