#include "data/h5_bytes.h"

#include <algorithm>
#include <bit>

namespace tmamba::h5_detail {

namespace {

uint32_t word(const uint8_t* data, size_t bytes) {
  uint32_t x = 0;
  for (size_t i = 0; i < std::min<size_t>(bytes, 4); ++i) x |= static_cast<uint32_t>(data[i]) << (8 * i);
  return x;
}

File open_plain(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  const std::string name = path.string();
  if (!std::filesystem::exists(status)) throw UserError(name + ": no such file");
  if (std::filesystem::is_directory(status)) throw UserError(name + ": is a folder, expected an HDF5 file");
  if (!std::filesystem::is_regular_file(status)) throw UserError(name + ": is not a regular file");
  try {
    return File::open_read(std::filesystem::canonical(path));
  } catch (const std::exception& failure) {
    throw UserError(str(name, ": cannot be opened for reading; check its permissions (", failure.what(), ")"));
  }
}

}  // namespace

uint32_t lookup3(const uint8_t* data, size_t bytes) {
  const auto rot = [](uint32_t x, int k) { return std::rotl(x, k); };
  uint32_t a = 0xdeadbeef + static_cast<uint32_t>(bytes), b = a, c = a;
  for (; bytes > 12; data += 12, bytes -= 12) {
    a += word(data, 4), b += word(data + 4, 4), c += word(data + 8, 4);
    a -= c, a ^= rot(c, 4), c += b;
    b -= a, b ^= rot(a, 6), a += c;
    c -= b, c ^= rot(b, 8), b += a;
    a -= c, a ^= rot(c, 16), c += b;
    b -= a, b ^= rot(a, 19), a += c;
    c -= b, c ^= rot(b, 4), b += a;
  }
  if (bytes == 0) return c;
  a += word(data, bytes);
  if (bytes > 4) b += word(data + 4, bytes - 4);
  if (bytes > 8) c += word(data + 8, bytes - 8);
  c ^= b, c -= rot(b, 14), a ^= c, a -= rot(c, 11), b ^= a, b -= rot(a, 25);
  c ^= b, c -= rot(b, 16), a ^= c, a -= rot(c, 4), b ^= a, b -= rot(a, 14), c ^= b, c -= rot(b, 24);
  return c;
}

uint32_t fletcher32(const uint8_t* data, size_t bytes) {
  uint32_t sum1 = 0, sum2 = 0;
  size_t words = bytes / 2;
  while (words > 0) {
    size_t block = std::min<size_t>(words, 360);  // as many as cannot overflow
    words -= block;
    for (; block > 0; --block, data += 2) {
      sum1 += static_cast<uint32_t>(data[0] << 8 | data[1]);
      sum2 += sum1;
    }
    sum1 = (sum1 & 0xFFFF) + (sum1 >> 16);
    sum2 = (sum2 & 0xFFFF) + (sum2 >> 16);
  }
  if (bytes % 2 != 0) {
    sum1 += static_cast<uint32_t>(*data << 8);
    sum2 += sum1;
    sum1 = (sum1 & 0xFFFF) + (sum1 >> 16);
    sum2 = (sum2 & 0xFFFF) + (sum2 >> 16);
  }
  sum1 = (sum1 & 0xFFFF) + (sum1 >> 16);
  sum2 = (sum2 & 0xFFFF) + (sum2 >> 16);
  return sum2 << 16 | sum1;
}

Source::Source(const std::filesystem::path& path) : path_(path), file_(open_plain(path)), bytes_(file_.bytes()) {
  if (bytes_ == 0) refuse("is empty, expected an HDF5 file");
}

void Source::refuse(const std::string& problem) const { throw UserError(str(path_.string(), ": ", problem)); }

void Source::read(int64_t position, int64_t count, const char* what, void* out) const {
  if (position < 0 || count < 0 || position > bytes_ || count > bytes_ - position) {
    refuse(str(what, " lies outside the file: is it truncated, or damaged?"));
  }
  try {
    file_.read(position, out, static_cast<size_t>(count));
  } catch (const FileError& error) {
    refuse(str("cannot be read: ", error.what()));
  }
}

std::vector<uint8_t> Source::read(int64_t position, int64_t count, const char* what) const {
  if (count < 0 || count > bytes_) refuse(str(what, " is larger than the file: is it truncated, or damaged?"));
  std::vector<uint8_t> out(static_cast<size_t>(count));
  read(position, count, what, out.data());
  return out;
}

const uint8_t* Cursor::take(size_t bytes) {
  if (bytes > left()) damaged("is cut short");
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
  if (x > uint64_t{INT64_MAX}) damaged("holds an impossible size");
  return static_cast<int64_t>(x);
}

int64_t Cursor::address() {
  const uint64_t x = number(8);
  if (x == UINT64_MAX) return kUndefined;
  if (x >= static_cast<uint64_t>(source_->bytes())) damaged("points outside the file");
  return static_cast<int64_t>(x);
}

void Cursor::expect(std::string_view signature, uint8_t version) {
  const auto* found = reinterpret_cast<const char*>(take(signature.size()));
  if (std::string_view(found, signature.size()) != signature) damaged("does not begin as it should");
  const uint8_t number = u8();
  if (number != version) damaged(str("is of version ", int{number}, ", which is not read here"));
}

void Cursor::expect_checksum() {
  const uint32_t expected = lookup3(begin_, taken());
  if (u32() != expected) damaged("does not have the checksum written behind it");
}

void Cursor::damaged(const std::string& problem) const {
  source_->refuse(str(what_, " ", problem, "; is it damaged?"));
}

}  // namespace tmamba::h5_detail
