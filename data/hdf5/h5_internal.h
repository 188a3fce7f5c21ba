// The only header that includes hdf5.h. For the files that write HDF5.
#pragma once

#include <hdf5.h>

#include <mutex>
#include <utility>

#include "data/hdf5/h5.h"

namespace tmamba::h5_detail {

// Every public function holds one: HDF5 need not be built thread-safe. The first one sets the library up.
class Guard {
 public:
  Guard();

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

  operator hid_t() const { return id_; }  // NOLINT(google-explicit-constructor): it stands for the id in C calls
  // Forgets the id without closing it.
  void leak() { id_ = H5I_INVALID_HID; }
  // Negative where the library could not close it; it is gone either way.
  herr_t close() { return id_ < 0 ? 0 : close_(std::exchange(id_, H5I_INVALID_HID)); }

 private:
  hid_t id_ = H5I_INVALID_HID;
  Close close_ = nullptr;
};

struct FileHandle {
  std::filesystem::path path;
  mutable Id id;
  mutable std::string abandoned;  // why the file was given up; empty: it was not

  ~FileHandle();
  // Gives up a file that could not be written: HDF5 crashes when it closes one, so it is never closed, only emptied.
  // Its descriptor stays open too: the library takes a new file with the same inode for this one.
  void abandon(const std::string& why) const;
  // Throws what failed: PATH: WHAT (error stack of HDF5). The file is given up.
  [[noreturn]] void fail(const std::string& what) const;

  // `result` unless it is negative.
  template <class Result>
  Result check(Result result, const std::string& what) const {
    if (result < 0) fail(what);
    return result;
  }
  Id own(hid_t id_or_error, Id::Close close, const std::string& what) const {
    return Id(check(id_or_error, what), close);
  }
  // Throws where the file is closed already, or was given up.
  hid_t open_id() const;
};

struct DatasetHandle {
  std::shared_ptr<FileHandle> file;
  std::string name;
  bool chunked = false;  // chunks may wait in memory to be written
  Id id;

  ~DatasetHandle();
};

hid_t memory_type(H5Type type);
hid_t file_type(H5Type type);

}  // namespace tmamba::h5_detail
