#include "data/hdf5/h5_bytes.h"

namespace tmamba::h5_detail {

namespace {

File open_plain(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  const std::string name = path.string();
  if (!std::filesystem::exists(status)) throw UserError(name + ": no such file");
  if (std::filesystem::is_directory(status)) throw UserError(name + ": is a directory, expected an HDF5 file");
  if (!std::filesystem::is_regular_file(status)) throw UserError(name + ": is not a regular file");
  try {
    return File::open_read(std::filesystem::canonical(path));
  } catch (const std::exception& failure) {
    throw UserError(str(name, ": cannot be opened for reading; check its permissions (", failure.what(), ")"));
  }
}

}  // namespace

Source::Source(const std::filesystem::path& path) : path_(path), file_(open_plain(path)), bytes_(file_.bytes()) {
  if (bytes_ == 0) refuse("is empty, expected an HDF5 file");
}

void Source::refuse(const std::string& problem) const { throw UserError(str(path_.string(), ": ", problem)); }

void Source::read(int64_t position, int64_t count, const char* what, void* out) const {
  if (position < 0 || count < 0 || position > bytes_ || count > bytes_ - position) {
    refuse(str(what, " at offset ", position, " (", count, " bytes) is outside the file of ", bytes_, " bytes",
               kDamagedAdvice));
  }
  try {
    file_.read(position, out, static_cast<size_t>(count));
  } catch (const FileError& error) {
    refuse(str("cannot be read: ", error.what()));
  }
}

std::vector<uint8_t> Source::read(int64_t position, int64_t count, const char* what) const {
  if (count < 0 || count > bytes_) {
    refuse(str(what, " has ", count, " bytes, more than the file of ", bytes_, kDamagedAdvice));
  }
  std::vector<uint8_t> out(static_cast<size_t>(count));
  read(position, count, what, out.data());
  return out;
}

const uint8_t* Cursor::take(size_t bytes) {
  if (bytes > remaining()) damaged("ends too early");
  const uint8_t* begin = at_;
  at_ += bytes;
  return begin;
}

uint64_t Cursor::number(size_t width) {
  const uint8_t* bytes = take(width);
  uint64_t x = 0;
  for (size_t i = width; i > 0; --i) x = x << 8 | bytes[i - 1];
  return x;
}

int64_t Cursor::size(size_t width) {
  const uint64_t x = number(width);
  if (x > uint64_t{INT64_MAX}) damaged(str("contains the impossible size ", x));
  return static_cast<int64_t>(x);
}

int64_t Cursor::address() {
  const uint64_t x = number(8);
  if (x == UINT64_MAX) return kUndefined;
  if (x >= static_cast<uint64_t>(source_->bytes())) damaged(str("contains the address ", x, ", outside the file"));
  return static_cast<int64_t>(x);
}

void Cursor::expect(std::string_view signature, uint8_t version) {
  const auto* found = reinterpret_cast<const char*>(take(signature.size()));
  if (std::string_view(found, signature.size()) != signature) damaged(str("lacks its signature ", signature));
  const uint8_t number = u8();
  if (number != version) damaged(str("has version ", int{number}, ", only ", int{version}, " is supported"));
}

void Cursor::expect_checksum() {
  const size_t bytes = consumed();
  if (!lookup3_holds(begin_, bytes, u32())) damaged("has a checksum mismatch");
}

void Cursor::damaged(const std::string& problem) const { source_->refuse(str(what_, " ", problem, kDamagedAdvice)); }

}  // namespace tmamba::h5_detail
