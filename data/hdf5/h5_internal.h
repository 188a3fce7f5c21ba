// The only header that includes hdf5.h. For the sources that write HDF5.
#pragma once

#include <hdf5.h>

#include <mutex>
#include <utility>

#include "data/hdf5/h5.h"

namespace tmamba::h5_detail {

// Serializes calls into the HDF5 library, which need not be built thread-safe; every public function holds one. The
// first one initializes the library.
class LibraryLock {
 public:
  LibraryLock();

 private:
  std::unique_lock<std::recursive_mutex> lock_;
};

// An HDF5 id and the function that closes it.
class Id {
 public:
  using Close = herr_t (*)(hid_t);
  Id() = default;
  Id(hid_t id, Close closer) : id_(id), close_(closer) {}
  Id(Id&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)), close_(other.close_) {}
  Id& operator=(Id&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  Id(const Id&) = delete;
  ~Id() { close(); }

  operator hid_t() const { return id_; }  // NOLINT(google-explicit-constructor): passed to C calls
  // Drops the id without closing it.
  void leak() { id_ = H5I_INVALID_HID; }
  // Negative if the library could not close it; the id is dropped either way.
  herr_t close() { return id_ < 0 ? 0 : close_(std::exchange(id_, H5I_INVALID_HID)); }

 private:
  hid_t id_ = H5I_INVALID_HID;
  Close close_ = nullptr;
};

struct FileHandle {
  std::filesystem::path path;
  mutable Id id;
  mutable std::string abandoned;  // why the file was abandoned; empty while it is usable

  ~FileHandle();
  // Marks a file as unusable after a failed write and truncates it to 0 bytes. It is never closed, because HDF5 crashes
  // when it closes such a file. Its descriptor stays open too: HDF5 identifies files by inode and would take a new file
  // with the same inode for this one.
  void abandon(const std::string& why) const;
  // Throws Error "PATH: WHAT (HDF5's error stack)" and abandons the file.
  [[noreturn]] void fail(const std::string& what) const;

  // Returns `result`; calls fail() if it is negative.
  template <class Result>
  Result check(Result result, const std::string& what) const {
    if (result < 0) fail(what);
    return result;
  }
  Id own(hid_t id_or_error, Id::Close close, const std::string& what) const {
    return Id(check(id_or_error, what), close);
  }
  // Throws if the file is closed or abandoned.
  hid_t open_id() const;
};

struct DatasetHandle {
  std::shared_ptr<FileHandle> file;
  std::string name;
  bool chunked = false;  // the library's chunk cache may hold unwritten chunks
  Id id;

  ~DatasetHandle();
};

// Throws unless the hyperslab is inside the dataset; `where` names it in the message.
void check_hyperslab(const std::string& where, const H5Info& info, std::span<const int64_t> offset,
                     std::span<const int64_t> count);

constexpr int64_t kMaxAttributeBytes = int64_t{64} << 10;  // limit of an attribute in an object header

// How messages name an attribute of an object.
inline std::string attribute_label(const std::string& object, const std::string& name) {
  return "attribute " + name + (object == "/" ? "" : " of " + object);
}

hid_t memory_type(H5Type type);
hid_t file_type(H5Type type);

}  // namespace tmamba::h5_detail
