#include <algorithm>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <thread>

#include "data/checkpoint/checkpoint.h"
#include "data/checkpoint/element_convert.h"
#include "data/checkpoint/manifest.h"
#include "data/io/crc32c.h"
#include "data/io/fs.h"
#include "data/io/sha256.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kBlock = int64_t{1} << 20;  // a multiple of every element size; fits the L2 cache
constexpr int64_t kMaxManifestBytes = int64_t{256} << 20;

// Whether a failed call means that the checkpoint is damaged. Denied permissions and I/O errors (EIO) do not: they may
// be temporary, and a run must not set aside all its checkpoints because of them.
bool means_damage(const FileError& error) {
  constexpr int codes[] = {0, ENOENT, ENOTDIR, ELOOP, EINVAL, EISDIR, ENXIO};
  return std::find(std::begin(codes), std::end(codes), error.code()) != std::end(codes);
}

template <class Work>
auto or_damaged(Work&& work) {
  try {
    return work();
  } catch (const FileError& error) {
    if (means_damage(error)) throw DamagedCheckpoint(error.what());
    throw;
  }
}

// A slice of a tensor as rows and columns; a 1-D tensor is one row.
struct Rectangle {
  int64_t row, rows, column, columns;
};

Rectangle rectangle_of(std::span<const int64_t> offset, std::span<const int64_t> shape) {
  if (shape.size() == 1) return {0, 1, offset[0], shape[0]};
  return {offset[0], shape[0], offset[1], shape[1]};
}

Rectangle intersect(const Rectangle& a, const Rectangle& b) {
  const int64_t row = std::max(a.row, b.row), column = std::max(a.column, b.column);
  return {row, std::min(a.row + a.rows, b.row + b.rows) - row, column,
          std::min(a.column + a.columns, b.column + b.columns) - column};
}

// Copies elements of a stored slice, which arrive in row-major blocks, to the tensor that is being filled. All
// rectangles are in coordinates of the logical tensor.
struct Target {
  Rectangle slice;   // the stored slice
  Rectangle wanted;  // the intersection of `slice` and `out`
  Rectangle out;     // what `tensor` holds
  DType stored;
  const Tensor& tensor;

  char* address(int64_t row, int64_t column) const {
    const int64_t stride = tensor.dims() == 1 ? 0 : tensor.stride(0);
    const int64_t element = (row - out.row) * stride + (column - out.column);
    return static_cast<char*>(tensor.raw()) + element * static_cast<int64_t>(size_of(tensor.dtype()));
  }

  // Copies those of elements [first, first + count) of the slice that are wanted.
  void take(const char* data, int64_t first, int64_t count) const {
    const int64_t end = first + count;
    const int64_t first_row = std::max(first / slice.columns, wanted.row - slice.row);
    const int64_t last_row = std::min((end - 1) / slice.columns, wanted.row + wanted.rows - 1 - slice.row);
    const int64_t column = wanted.column - slice.column;
    for (int64_t row = first_row; row <= last_row; ++row) {
      const int64_t begin = std::max(first, row * slice.columns + column);
      const int64_t stop = std::min(end, row * slice.columns + column + wanted.columns);
      if (begin >= stop) continue;
      convert_elements(address(slice.row + row, slice.column + begin - row * slice.columns), tensor.dtype(),
                       data + (begin - first) * static_cast<int64_t>(size_of(stored)), stored, stop - begin);
    }
  }
};

}  // namespace

struct CheckpointReader::Impl {
  fs::path path;
  Manifest manifest;
  std::vector<StoredTensor> tensors;
  std::vector<size_t> first_slice;                // index in `verified` of each tensor's first slice
  std::unique_ptr<std::atomic<bool>[]> verified;  // per slice: its checksum matched
  std::mutex mutex;                               // guards `open` and `open_index`
  size_t open_index = 0;
  std::shared_ptr<const File> open;

  Impl(const fs::path& folder, FileCheck check);

  std::shared_ptr<const File> open_checked(size_t index) const;
  std::shared_ptr<const File> file(size_t index);
  const ManifestTensor* find(const std::string& name) const;
  void read_slice(const ManifestTensor& tensor, size_t slice, const Target& target);
  std::vector<std::string> verify_file(size_t index) const;
  std::string at(size_t file_index) const { return (path / manifest.files[file_index].name).string(); }
};

CheckpointReader::Impl::Impl(const fs::path& folder, FileCheck check) : path(folder) {
  const fs::path manifest_path = path / kManifestName;
  if (!fs::is_directory(path)) throw UserError(path.string() + ": no such checkpoint or run directory");
  if (!fs::exists(fs::symlink_status(manifest_path))) {
    throw UserError(str(path.string(), ": is not a complete checkpoint: it has no ", kManifestName));
  }
  try {
    manifest = parse_manifest(or_damaged([&] { return read_text(manifest_path, kMaxManifestBytes); }));
  } catch (const UserError& error) {
    throw UserError(str(manifest_path.string(), ": ", error.what()));
  } catch (const FileError&) {
    throw;
  } catch (const Error& error) {
    throw DamagedCheckpoint(str(manifest_path.string(), ": ", error.what()));
  }
  if (check == FileCheck::at_once) {
    for (size_t i = 0; i < manifest.files.size(); ++i) file(i);
  }
  std::sort(manifest.tensors.begin(), manifest.tensors.end(),
            [](const ManifestTensor& a, const ManifestTensor& b) { return a.name < b.name; });
  size_t slices = 0;
  for (const ManifestTensor& tensor : manifest.tensors) {
    tensors.push_back({tensor.name, tensor.dtype, tensor.shape});
    first_slice.push_back(slices);
    slices += tensor.slices.size();
  }
  verified = std::make_unique<std::atomic<bool>[]>(slices);
}

// Opens the file; throws DamagedCheckpoint if its size differs from the manifest's.
std::shared_ptr<const File> CheckpointReader::Impl::open_checked(size_t index) const {
  return or_damaged([&] {
    auto opened = std::make_shared<const File>(File::open_read(at(index)));
    const int64_t bytes = opened->bytes(), expected = manifest.files[index].bytes;
    if (bytes == expected) return opened;
    throw DamagedCheckpoint(
        str(at(index), ": has ", bytes, " bytes, expected ", expected, ": it is truncated or was changed"));
  });
}

// The open file. Only the last one used stays open.
std::shared_ptr<const File> CheckpointReader::Impl::file(size_t index) {
  const std::lock_guard lock(mutex);
  if (!open || open_index != index) {
    open = open_checked(index);
    open_index = index;
  }
  return open;
}

const ManifestTensor* CheckpointReader::Impl::find(const std::string& name) const {
  const auto found =
      std::lower_bound(manifest.tensors.begin(), manifest.tensors.end(), name,
                       [](const ManifestTensor& tensor, const std::string& key) { return tensor.name < key; });
  return found != manifest.tensors.end() && found->name == name ? &*found : nullptr;
}

void CheckpointReader::Impl::read_slice(const ManifestTensor& tensor, size_t slice, const Target& target) {
  const StoredSlice& stored = tensor.slices[slice];
  std::atomic<bool>& known = verified[first_slice[static_cast<size_t>(&tensor - manifest.tensors.data())] + slice];
  const bool trusted = known.load();
  const int64_t width = static_cast<int64_t>(size_of(tensor.dtype));
  const Rectangle& all = target.slice;
  int64_t begin = 0, end = all.rows * all.columns;
  if (trusted) {
    begin = (target.wanted.row - all.row) * all.columns + (target.wanted.column - all.column);
    end = begin + (target.wanted.rows - 1) * all.columns + target.wanted.columns;
  }
  const auto source = file(stored.file);
  std::vector<char> block(static_cast<size_t>(std::min(kBlock, (end - begin) * width)));
  uint32_t crc = 0;
  for (int64_t at_element = begin; at_element < end; at_element += kBlock / width) {
    const int64_t count = std::min(kBlock / width, end - at_element);
    const size_t bytes = static_cast<size_t>(count * width);
    or_damaged([&] { source->read(stored.position + at_element * width, block.data(), bytes); });
    if (!trusted) crc = crc32c(crc, block.data(), bytes);
    target.take(block.data(), at_element, count);
  }
  if (trusted) return;
  if (crc != stored.crc) {
    throw DamagedCheckpoint(str(at(stored.file), ": tensor ", tensor.name, ", slice ", brackets(stored.shape), " at ",
                                brackets(stored.offset), ": its bytes [", stored.position, ", ",
                                stored.position + end * width, ") have CRC32C ", hex8(crc), ", expected ",
                                hex8(stored.crc), ": the file is damaged"));
  }
  known.store(true);
}

CheckpointReader::CheckpointReader(const fs::path& path, FileCheck check)
    : impl_(std::make_unique<Impl>(path, check)) {}
CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;

const fs::path& CheckpointReader::path() const { return impl_->path; }
int64_t CheckpointReader::step() const { return impl_->manifest.step; }
const nlohmann::json& CheckpointReader::state() const { return impl_->manifest.state; }
const std::vector<StoredTensor>& CheckpointReader::tensors() const { return impl_->tensors; }
bool CheckpointReader::has(const std::string& name) const { return impl_->find(name) != nullptr; }

int64_t CheckpointReader::bytes() const {
  int64_t bytes = 0;
  for (const ManifestFile& file : impl_->manifest.files) bytes += file.bytes;
  return bytes;
}

void CheckpointReader::read(const std::string& name, std::span<const int64_t> offset, const Tensor& out) const {
  const ManifestTensor* tensor = impl_->find(name);
  if (tensor == nullptr) throw Error(str(path().string(), ": has no tensor ", name));
  const std::string where = str(path().string(), ": tensor ", name, " ", brackets(tensor->shape));
  const size_t dims = tensor->shape.size();
  TM_CHECK(offset.size() == dims && static_cast<size_t>(out.dims()) == dims, where, ": read with ", offset.size(),
           " offsets and ", out.dims(), " sizes");
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < dims; ++i) {
    sizes.push_back(out.size(static_cast<int>(i)));
    TM_CHECK(
        offset[i] >= 0 && sizes[i] >= 0 && offset[i] <= tensor->shape[i] && sizes[i] <= tensor->shape[i] - offset[i],
        where, ": the slice ", out.shape(), " at ", brackets(offset), " is outside the tensor");
  }
  if (out.numel() == 0) return;
  const int last = out.dims() - 1;
  TM_CHECK(out.device() == Device::cpu && (out.stride(last) == 1 || out.size(last) == 1), where,
           " can be read only into host memory with contiguous rows");
  if (!convertible(tensor->dtype, out.dtype())) {
    throw Error(str(where, " is stored as ", name_of(tensor->dtype), " and cannot be read as ", name_of(out.dtype())));
  }
  const Rectangle asked = rectangle_of(offset, sizes);
  for (size_t i = 0; i < tensor->slices.size(); ++i) {
    const Rectangle slice = rectangle_of(tensor->slices[i].offset, tensor->slices[i].shape);
    const Rectangle wanted = intersect(slice, asked);
    if (wanted.rows <= 0 || wanted.columns <= 0) continue;
    impl_->read_slice(*tensor, i, {slice, wanted, asked, tensor->dtype, out});
  }
}

namespace {

// The checksum of a slice while its file is streamed.
struct SliceChecksum {
  const ManifestTensor* tensor;
  const StoredSlice* slice;
  int64_t begin, end;  // bytes of the file
  uint32_t crc = 0;    // of the bytes streamed so far
};

std::vector<SliceChecksum> slices_in(const Manifest& manifest, size_t file) {
  std::vector<SliceChecksum> out;
  for (const ManifestTensor& tensor : manifest.tensors) {
    for (const StoredSlice& slice : tensor.slices) {
      if (slice.file != file) continue;
      out.push_back({&tensor, &slice, slice.position, slice.position + checked_bytes(slice.shape, tensor.dtype)});
    }
  }
  std::sort(out.begin(), out.end(), [](const SliceChecksum& a, const SliceChecksum& b) { return a.begin < b.begin; });
  return out;
}

}  // namespace

// Computes the file's hash and its slices' checksums in one pass; returns the problems.
std::vector<std::string> CheckpointReader::Impl::verify_file(size_t index) const {
  const ManifestFile& expected = manifest.files[index];
  std::vector<std::string> problems;
  std::vector<SliceChecksum> slices = slices_in(manifest, index);
  Sha256 sha;
  try {
    const auto source = open_checked(index);
    std::vector<char> block(static_cast<size_t>(std::min(kBlock, expected.bytes)));
    size_t first = 0;
    for (int64_t begin = 0; begin < expected.bytes; begin += kBlock) {
      const int64_t end = std::min(begin + kBlock, expected.bytes);
      source->read(begin, block.data(), static_cast<size_t>(end - begin));
      sha.add(block.data(), static_cast<size_t>(end - begin));
      while (first < slices.size() && slices[first].end <= begin) ++first;
      for (size_t i = first; i < slices.size() && slices[i].begin < end; ++i) {
        const int64_t from = std::max(begin, slices[i].begin), to = std::min(end, slices[i].end);
        slices[i].crc = crc32c(slices[i].crc, block.data() + (from - begin), static_cast<size_t>(to - from));
      }
    }
  } catch (const FileError& error) {
    if (!means_damage(error)) throw;
    return {error.what()};
  } catch (const DamagedCheckpoint& error) {
    return {error.what()};
  }
  for (const SliceChecksum& slice : slices) {
    if (slice.crc == slice.slice->crc) continue;
    problems.push_back(str(at(index), ": tensor ", slice.tensor->name, ", slice ", brackets(slice.slice->shape), " at ",
                           brackets(slice.slice->offset), ": CRC32C is ", hex8(slice.crc), ", expected ",
                           hex8(slice.slice->crc), ": the file is damaged"));
  }
  const std::string found = sha.hex();
  if (found != expected.sha256) {
    problems.push_back(str(at(index), ": SHA-256 is ", found, ", expected ", expected.sha256, ": the file is damaged",
                           problems.empty() ? " outside its tensors" : ""));
  }
  return problems;
}

std::vector<std::string> CheckpointReader::verify(int64_t part, int64_t parts) const {
  TM_CHECK(part >= 0 && part < parts, "part ", part, " is not in [0, ", parts, ")");
  std::vector<size_t> mine;
  for (size_t i = static_cast<size_t>(part); i < impl_->manifest.files.size(); i += static_cast<size_t>(parts)) {
    mine.push_back(i);
  }
  std::vector<std::vector<std::string>> found(mine.size());
  std::vector<std::exception_ptr> failures(mine.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < mine.size(); i = next++) {
      try {
        found[i] = impl_->verify_file(mine[i]);
      } catch (...) {
        failures[i] = std::current_exception();
      }
    }
  };
  {
    const size_t cores = std::max<size_t>(1, std::thread::hardware_concurrency());
    std::vector<std::jthread> helpers;
    for (size_t i = 1; i < std::min(cores, mine.size()); ++i) helpers.emplace_back(work);
    work();
  }
  std::vector<std::string> problems;
  for (size_t i = 0; i < mine.size(); ++i) {
    if (failures[i]) std::rethrow_exception(failures[i]);
    problems.insert(problems.end(), found[i].begin(), found[i].end());
  }
  return problems;
}

}  // namespace tmamba
