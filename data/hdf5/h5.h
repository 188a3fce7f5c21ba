// HDF5 files. Writing goes through the HDF5 library: every call is checked, error messages contain the library's error
// stack, and ids are closed by their owners. Only h5_internal.h includes hdf5.h.
//
// Reading does not use the library (h5_objects.h), because the files are untrusted input. H5File::open_read and
// H5File::dataset follow hard links only. They refuse virtual datasets, external storage, filters other than shuffle,
// deflate and fletcher32, element types that are not in H5Type, and a declared size that the bytes in the file cannot
// hold. Failed reads throw UserError, failed writes throw Error; both name the file. After a failed write the file is
// unusable and can only be deleted.
//
// All functions are thread-safe; writes are serialized.
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

// The sizes of a tensor, one for each dimension.
std::vector<int64_t> sizes_of(const ConstTensor& x);

// Element types in files, little-endian.
enum class H5Type : uint8_t { u8, u16, u32, u64, i32, i64, f32, f64 };

size_t size_of(H5Type type);
const char* name_of(H5Type type);
// The type that stores a DType; bfloat16 is stored as the uint16 of its bits.
H5Type h5_type(DType dtype);

enum class H5Format : uint8_t {
  earliest,     // readable by every version of HDF5
  checksummed,  // readable by HDF5 1.10 (2016) and later; checksums protect all metadata
};

struct H5Info {
  H5Type type = H5Type::u8;
  std::vector<int64_t> shape;  // empty: a scalar
  std::vector<int64_t> chunk;  // empty: contiguous
  bool fletcher32 = false;     // every chunk has a checksum, which reads verify
  int64_t stored_bytes = 0;    // bytes in the file, after filters

  int64_t numel() const;
};

struct H5DatasetOptions {
  std::vector<int64_t> chunk;  // one size per dimension; empty: contiguous
  bool growable = false;       // the first dimension is unlimited; needs chunks
  bool fletcher32 = false;     // needs chunks
  int deflate = 0;             // 1..9, with the shuffle filter; needs chunks
  int64_t cache_bytes = 0;     // chunk cache; 0: the library's default (1 MiB)
  bool reserved = false;       // allocated now, for bytes that the caller writes at position(); contiguous only
};

namespace h5_detail {
struct FileHandle;     // of a file being written
struct DatasetHandle;  // of a dataset being written
class ReadFile;
class DatasetReader;
}  // namespace h5_detail

// An open dataset. It keeps its file open.
class H5Dataset {
 public:
  const std::string& name() const;
  const H5Info& info() const { return info_; }

  // Reads or writes the hyperslab that starts at `offset` and has `count` elements per dimension. `out` and `data` are
  // row-major and of type `memory`; values out of the target type's range are clamped to it. For a scalar, `offset` and
  // `count` are empty.
  void read(std::span<const int64_t> offset, std::span<const int64_t> count, H5Type memory, void* out) const;
  void write(std::span<const int64_t> offset, std::span<const int64_t> count, H5Type memory, const void* data);
  // The same with the tensor's sizes as `count`. The tensor is in host memory and its last dimension is contiguous.
  void read(std::span<const int64_t> offset, const Tensor& out) const;
  void write(std::span<const int64_t> offset, const ConstTensor& data);
  // Extends the first dimension to `rows`.
  void grow(int64_t rows);
  // File offset of the data, which is row-major and without gaps. Only for a `reserved` dataset.
  int64_t position() const;

 private:
  friend class H5File;
  H5Dataset(std::shared_ptr<h5_detail::DatasetHandle> handle, H5Info info);
  explicit H5Dataset(std::shared_ptr<h5_detail::DatasetReader> reader);
  h5_detail::DatasetHandle& written() const;
  std::shared_ptr<h5_detail::DatasetHandle> handle_;  // null unless the dataset is being written
  std::shared_ptr<h5_detail::DatasetReader> reader_;  // null unless the file was opened for reading
  H5Info info_;
};

class H5File {
 public:
  // Creates a file; overwrites an existing one.
  static H5File create(const std::filesystem::path& path, H5Format format = H5Format::earliest);
  // Throws UserError if the file is missing, a folder, empty, not HDF5, truncated or damaged.
  static H5File open_read(const std::filesystem::path& path);

  const std::filesystem::path& path() const;
  int64_t file_bytes() const;
  void flush();
  // Flushes and closes; throws Error if either fails. The destructor also closes but cannot report a failure, so a
  // writer must call close().
  void close();

  // `name` is a path such as "model/embedding.weight"; missing groups are created.
  H5Dataset create_dataset(const std::string& name, H5Type type, std::vector<int64_t> shape,
                           const H5DatasetOptions& options = {});
  // Creates a contiguous dataset that holds the tensor.
  void write(const std::string& name, const ConstTensor& data);

  // The functions from here to the attributes are for files that were opened for reading.
  bool has(const std::string& name) const;
  // An existing dataset; throws UserError if it breaks the rules above. `cache_bytes` bounds its cache of decoded
  // chunks; 0 means 1 MiB.
  H5Dataset dataset(const std::string& name, int64_t cache_bytes = 0) const;
  // Full names of all datasets, sorted. Throws UserError if the file has soft or external links, or a loop of groups.
  std::vector<std::string> datasets() const;

  // Attributes of a group or dataset; "/" is the root group. Values are scalars: int64, float64 or a fixed-length
  // string. set_attribute needs a file that is being written, all others one that was opened for reading. A missing
  // attribute or one of another type throws UserError.
  void set_attribute(const std::string& object, const std::string& name, const std::string& value);
  void set_attribute(const std::string& object, const std::string& name, int64_t value);
  void set_attribute(const std::string& object, const std::string& name, double value);
  bool has_attribute(const std::string& object, const std::string& name) const;
  std::string string_attribute(const std::string& object, const std::string& name) const;
  int64_t int_attribute(const std::string& object, const std::string& name) const;
  // A one-dimensional attribute with at most 65536 elements.
  std::vector<int64_t> int_list_attribute(const std::string& object, const std::string& name) const;
  double double_attribute(const std::string& object, const std::string& name) const;
  std::vector<std::string> attributes(const std::string& object) const;

 private:
  H5File() = default;
  const h5_detail::ReadFile& reader() const;
  h5_detail::FileHandle& writer() const;
  std::shared_ptr<h5_detail::FileHandle> handle_;      // null unless the file is being written
  std::shared_ptr<const h5_detail::ReadFile> reader_;  // null unless it was opened for reading
};

}  // namespace tmamba
