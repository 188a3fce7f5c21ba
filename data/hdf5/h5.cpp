#include "data/hdf5/h5.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "data/hdf5/h5_internal.h"

namespace tmamba {

namespace {
using h5_detail::DatasetHandle;
using h5_detail::FileHandle;
using h5_detail::Id;
using h5_detail::LibraryLock;

constexpr std::array<H5Type, 8> kTypes{H5Type::u8,  H5Type::u16, H5Type::u32, H5Type::u64,
                                       H5Type::i32, H5Type::i64, H5Type::f32, H5Type::f64};

std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

void set_up_library() {
  // Locks fail on many network file systems, and no other process opens a file while it is written.
  setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0);
  // After a failed write the library's exit handler would retry it and abort.
  H5dont_atexit();
  if (H5open() < 0) throw Error("cannot initialize the HDF5 library");
}

herr_t collect(unsigned, const H5E_error2_t* error, void* out) {
  auto& parts = *static_cast<std::vector<std::string>*>(out);
  const std::string part = error->desc == nullptr ? "" : error->desc;
  if (!part.empty() && std::find(parts.begin(), parts.end(), part) == parts.end()) parts.push_back(part);
  return 0;
}

// HDF5's error stack, from the call down to the cause. If a system call failed, only the call and strerror's text,
// without the addresses and times that HDF5 adds.
std::string error_stack() {
  std::vector<std::string> parts;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, collect, &parts);
  H5Eclear2(H5E_DEFAULT);
  if (parts.empty()) return "HDF5 reports no cause";
  constexpr std::string_view kBefore = "error message = '";
  for (const std::string& part : parts) {
    const size_t begin = part.find(kBefore), end = part.find('\'', begin + kBefore.size());
    if (begin == std::string::npos || end == std::string::npos) continue;
    return "HDF5: " + parts[0] + ": " + part.substr(begin + kBefore.size(), end - begin - kBefore.size());
  }
  std::string text = "HDF5: ";
  for (size_t i = 0; i < parts.size(); ++i) text += (i == 0 ? "" : "; ") + parts[i];
  return text;
}

std::vector<hsize_t> to_hsize(std::span<const int64_t> sizes) {
  std::vector<hsize_t> out;
  for (int64_t size : sizes) {
    TM_CHECK(size >= 0, "a size or offset is negative: ", size);
    out.push_back(static_cast<hsize_t>(size));
  }
  return out;
}

// The file dataspace with the hyperslab selected.
Id select(const DatasetHandle& dataset, std::span<const int64_t> offset, std::span<const int64_t> count) {
  const FileHandle& file = *dataset.file;
  Id space = file.own(H5Dget_space(dataset.id), H5Sclose, "cannot read the size of " + dataset.name);
  if (count.empty()) return space;
  file.check(
      H5Sselect_hyperslab(space, H5S_SELECT_SET, to_hsize(offset).data(), nullptr, to_hsize(count).data(), nullptr),
      "cannot select a hyperslab of " + dataset.name);
  return space;
}

Id simple_space(const FileHandle& file, std::span<const int64_t> sizes) {
  if (sizes.empty()) return file.own(H5Screate(H5S_SCALAR), H5Sclose, "cannot create a dataspace");
  return file.own(H5Screate_simple(static_cast<int>(sizes.size()), to_hsize(sizes).data(), nullptr), H5Sclose,
                  "cannot create a dataspace");
}

// The memory dataspace of a tensor, whose rows may have gaps between them.
Id tensor_space(const FileHandle& file, const ConstTensor& x) {
  std::vector<int64_t> sizes, allocated, zero;
  for (int i = 0; i < x.dims(); ++i) sizes.push_back(x.size(i)), zero.push_back(0);
  if (x.contiguous()) return simple_space(file, sizes);
  TM_CHECK(x.dims() == 2 && x.stride(1) == 1 && x.stride(0) >= x.size(1), "a tensor ", x.shape(),
           " that is neither contiguous nor 2-D with contiguous rows cannot be stored");
  allocated = {x.size(0), x.stride(0)};
  Id space = simple_space(file, allocated);
  file.check(
      H5Sselect_hyperslab(space, H5S_SELECT_SET, to_hsize(zero).data(), nullptr, to_hsize(sizes).data(), nullptr),
      "cannot select the rows of a tensor");
  return space;
}

std::string label(const DatasetHandle& dataset) { return dataset.file->path.string() + ": " + dataset.name; }

Id dataset_properties(const FileHandle& file, const std::string& name, const H5DatasetOptions& options) {
  Id list = file.own(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "cannot describe " + name);
  // Time stamps would make two files with the same content differ.
  file.check(H5Pset_obj_track_times(list, false), "cannot describe " + name);
  if (options.chunk.empty()) {
    TM_CHECK(!options.growable && !options.fletcher32 && options.deflate == 0, name,
             ": growable, fletcher32 and deflate need H5DatasetOptions::chunk");
    if (options.reserved) {
      file.check(H5Pset_alloc_time(list, H5D_ALLOC_TIME_EARLY), "cannot allocate " + name);
      file.check(H5Pset_fill_time(list, H5D_FILL_TIME_NEVER), "cannot allocate " + name);
    }
    return list;
  }
  const std::string what = "cannot set the chunks or filters of " + name;
  file.check(H5Pset_chunk(list, static_cast<int>(options.chunk.size()), to_hsize(options.chunk).data()), what);
  if (options.deflate > 0) {
    file.check(H5Pset_shuffle(list), what);
    file.check(H5Pset_deflate(list, static_cast<unsigned>(options.deflate)), what);
  }
  if (options.fletcher32) file.check(H5Pset_fletcher32(list), what);
  return list;
}

Id access_properties(const FileHandle& file, int64_t cache_bytes) {
  Id list = file.own(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose, "cannot set the chunk cache");
  if (cache_bytes > 0) {
    constexpr size_t kSlots = 12421;  // a prime well above the chunks that fit
    file.check(H5Pset_chunk_cache(list, kSlots, static_cast<size_t>(cache_bytes), 0.75), "cannot set the chunk cache");
  }
  return list;
}
}  // namespace

std::vector<int64_t> sizes_of(const ConstTensor& x) {
  std::vector<int64_t> sizes;
  for (int i = 0; i < x.dims(); ++i) sizes.push_back(x.size(i));
  return sizes;
}

// --- Types ---

int64_t H5Info::numel() const {
  int64_t n = 1;
  for (int64_t size : shape) n *= size;
  return n;
}

size_t size_of(H5Type type) {
  constexpr std::array<size_t, 8> sizes{1, 2, 4, 8, 4, 8, 4, 8};
  return sizes[static_cast<size_t>(type)];
}

const char* name_of(H5Type type) {
  constexpr std::array<const char*, 8> names{"uint8", "uint16", "uint32",  "uint64",
                                             "int32", "int64",  "float32", "float64"};
  return names[static_cast<size_t>(type)];
}

H5Type h5_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return H5Type::f32;
    case DType::f64:
      return H5Type::f64;
    case DType::i32:
      return H5Type::i32;
    case DType::i64:
      return H5Type::i64;
    case DType::bf16:
    case DType::u16:
      return H5Type::u16;
    case DType::u8:
      return H5Type::u8;
  }
  throw Error("unknown element type");
}

namespace h5_detail {

void check_hyperslab(const std::string& where, const H5Info& info, std::span<const int64_t> offset,
                     std::span<const int64_t> count) {
  TM_CHECK(offset.size() == info.shape.size() && count.size() == info.shape.size(), where, " has ", info.shape.size(),
           " dimensions, asked for ", offset.size(), " and ", count.size());
  for (size_t i = 0; i < count.size(); ++i) {
    TM_CHECK(offset[i] >= 0 && count[i] >= 0 && offset[i] <= info.shape[i] && count[i] <= info.shape[i] - offset[i],
             where, ": elements [", offset[i], ", ", offset[i] + count[i], ") are outside dimension ", i, " of size ",
             info.shape[i]);
  }
}

hid_t memory_type(H5Type type) {
  const std::array<hid_t, kTypes.size()> ids{H5T_NATIVE_UINT8, H5T_NATIVE_UINT16, H5T_NATIVE_UINT32, H5T_NATIVE_UINT64,
                                             H5T_NATIVE_INT32, H5T_NATIVE_INT64,  H5T_NATIVE_FLOAT,  H5T_NATIVE_DOUBLE};
  return ids[static_cast<size_t>(type)];
}

hid_t file_type(H5Type type) {
  const std::array<hid_t, kTypes.size()> ids{H5T_STD_U8LE,  H5T_STD_U16LE, H5T_STD_U32LE,  H5T_STD_U64LE,
                                             H5T_STD_I32LE, H5T_STD_I64LE, H5T_IEEE_F32LE, H5T_IEEE_F64LE};
  return ids[static_cast<size_t>(type)];
}

LibraryLock::LibraryLock() : lock_(library_mutex()) {
  static const bool ready = (set_up_library(), true);
  // A thread-safe library has one error stack and one error printer per thread.
  thread_local const bool quiet = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  TM_CHECK(ready && quiet, "cannot turn off HDF5's own error messages");
}

FileHandle::~FileHandle() {
  const LibraryLock guard;
  if (id >= 0 && H5Fflush(id, H5F_SCOPE_LOCAL) < 0) abandon(error_stack());
  id.close();
}

DatasetHandle::~DatasetHandle() {
  const LibraryLock guard;
  const bool written = chunked && file->id >= 0;
  if (written && H5Dflush(id) < 0) file->abandon("cannot be written (" + error_stack() + ")");
  if (!file->abandoned.empty()) id.leak();
  id.close();
}

void FileHandle::abandon(const std::string& why) const {
  if (id < 0) return;
  void* descriptor = nullptr;
  const bool found = H5Fget_vfd_handle(id, H5P_DEFAULT, &descriptor) >= 0;
  // A failure is ignored: the caller already has an error to report.
  if (found && ftruncate(*static_cast<int*>(descriptor), 0) != 0) H5Eclear2(H5E_DEFAULT);
  id.leak();
  abandoned = why;
}

void FileHandle::fail(const std::string& what) const {
  const std::string why = what + " (" + error_stack() + ")";
  abandon(why);
  throw Error(path.string() + ": " + why);
}

hid_t FileHandle::open_id() const {
  if (!abandoned.empty()) throw Error(path.string() + ": " + abandoned);
  TM_CHECK(id >= 0, path.string(), " is closed");
  return id;
}

}  // namespace h5_detail

// --- H5Dataset ---

H5Dataset::H5Dataset(std::shared_ptr<DatasetHandle> handle, H5Info info)
    : handle_(std::move(handle)), info_(std::move(info)) {}

DatasetHandle& H5Dataset::written() const {
  TM_CHECK(handle_, name(), " is open for reading and cannot be written");
  return *handle_;
}

void H5Dataset::write(std::span<const int64_t> offset, std::span<const int64_t> count, H5Type memory,
                      const void* data) {
  const LibraryLock guard;
  const DatasetHandle& dataset = written();
  h5_detail::check_hyperslab(label(dataset), info_, offset, count);
  const FileHandle& file = *dataset.file;
  file.open_id();
  const Id file_space = select(dataset, offset, count), memory_space = simple_space(file, count);
  file.check(H5Dwrite(handle_->id, h5_detail::memory_type(memory), memory_space, file_space, H5P_DEFAULT, data),
             "cannot write " + name());
}

void H5Dataset::write(std::span<const int64_t> offset, const ConstTensor& data) {
  const LibraryLock guard;
  const auto count = sizes_of(data);
  const DatasetHandle& dataset = written();
  h5_detail::check_hyperslab(label(dataset), info_, offset, count);
  if (data.numel() == 0) return;
  TM_CHECK(data.device() == Device::cpu, name(), " can be written from host memory only");
  const FileHandle& file = *dataset.file;
  file.open_id();
  const Id file_space = select(dataset, offset, count), memory_space = tensor_space(file, data);
  file.check(H5Dwrite(handle_->id, h5_detail::memory_type(h5_type(data.dtype())), memory_space, file_space, H5P_DEFAULT,
                      data.raw()),
             "cannot write " + name());
}

void H5Dataset::grow(int64_t rows) {
  const LibraryLock guard;
  TM_CHECK(!info_.shape.empty() && rows >= info_.shape[0], label(written()), " has ",
           info_.shape.empty() ? 0 : info_.shape[0], " rows and cannot shrink to ", rows);
  std::vector<int64_t> shape = info_.shape;
  shape[0] = rows;
  handle_->file->open_id();
  handle_->file->check(H5Dset_extent(handle_->id, to_hsize(shape).data()), "cannot extend " + name());
  info_.shape = shape;
}

int64_t H5Dataset::position() const {
  const LibraryLock guard;
  const FileHandle& file = *written().file;
  file.open_id();
  const haddr_t address = H5Dget_offset(handle_->id);
  if (address == HADDR_UNDEF) file.fail("has no storage allocated for " + name());
  return static_cast<int64_t>(address);
}

// --- H5File ---

H5File H5File::create(const std::filesystem::path& path, H5Format format) {
  const LibraryLock guard;
  const bool checksummed = format == H5Format::checksummed;
  const H5F_libver_t lowest = checksummed ? H5F_LIBVER_V110 : H5F_LIBVER_EARLIEST;
  const H5F_libver_t highest = checksummed ? H5F_LIBVER_V110 : H5F_LIBVER_V18;
  auto handle = std::make_shared<FileHandle>();
  handle->path = path;
  const Id access = handle->own(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "cannot create the file");
  handle->check(H5Pset_fapl_sec2(access), "cannot create the file");
  handle->check(H5Pset_fclose_degree(access, H5F_CLOSE_STRONG), "cannot create the file");
  // No sieve buffer: contiguous data is written immediately, so that closing a dataset writes nothing (see
  // FileHandle::abandon).
  handle->check(H5Pset_sieve_buf_size(access, 0), "cannot create the file");
  handle->check(H5Pset_libver_bounds(access, lowest, highest), "cannot create the file");
  const Id creation = handle->own(H5Pcreate(H5P_FILE_CREATE), H5Pclose, "cannot create the file");
  // Time stamps would make two files with the same content differ.
  handle->check(H5Pset_obj_track_times(creation, false), "cannot create the file");
  // Attributes stay in the object header: the reader does not support dense attribute storage.
  handle->check(H5Pset_attr_phase_change(creation, 1000, 0), "cannot create the file");
  handle->id =
      handle->own(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation, access), H5Fclose, "cannot create the file");
  H5File file;
  file.handle_ = std::move(handle);
  return file;
}

int64_t H5File::file_bytes() const { return static_cast<int64_t>(std::filesystem::file_size(path())); }

h5_detail::FileHandle& H5File::writer() const {
  TM_CHECK(handle_, path().string(), " is open for reading and cannot be written");
  return *handle_;
}

void H5File::flush() {
  const LibraryLock guard;
  const FileHandle& file = writer();
  file.check(H5Fflush(file.open_id(), H5F_SCOPE_LOCAL), "cannot be written");
}

void H5File::close() {
  if (!handle_) return;
  const LibraryLock guard;
  if (handle_->id < 0 && handle_->abandoned.empty()) return;
  flush();  // closing must write nothing (see FileHandle::abandon)
  if (handle_->id.close() < 0) handle_->fail("cannot be closed");
}

H5Dataset H5File::create_dataset(const std::string& name, H5Type type, std::vector<int64_t> shape,
                                 const H5DatasetOptions& options) {
  const LibraryLock guard;
  const FileHandle& file = writer();
  const std::string what = "cannot create dataset " + name;
  Id space = simple_space(file, shape);
  if (options.growable) {
    TM_CHECK(!shape.empty(), name, ": a scalar cannot grow");
    auto maximum = to_hsize(shape);
    maximum[0] = H5S_UNLIMITED;
    file.check(H5Sset_extent_simple(space, static_cast<int>(shape.size()), to_hsize(shape).data(), maximum.data()),
               what);
  }
  const Id links = file.own(H5Pcreate(H5P_LINK_CREATE), H5Pclose, what);
  file.check(H5Pset_create_intermediate_group(links, 1), what);
  const Id properties = dataset_properties(file, name, options), access = access_properties(file, options.cache_bytes);
  auto dataset = std::make_shared<DatasetHandle>();
  dataset->file = handle_;
  dataset->name = name;
  dataset->chunked = !options.chunk.empty();
  dataset->id =
      file.own(H5Dcreate2(file.open_id(), name.c_str(), h5_detail::file_type(type), space, links, properties, access),
               H5Dclose, what);
  return H5Dataset(std::move(dataset), H5Info{type, std::move(shape), options.chunk, options.fletcher32, 0});
}

void H5File::write(const std::string& name, const ConstTensor& data) {
  const std::vector<int64_t> shape = sizes_of(data), origin(shape.size(), 0);
  create_dataset(name, h5_type(data.dtype()), shape).write(origin, data);
}

}  // namespace tmamba
