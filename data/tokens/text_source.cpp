#include "data/tokens/text_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "kernels/base/check.h"

namespace tmamba {

namespace {
using namespace std::string_view_literals;
constexpr size_t kBlockBytes = size_t{1} << 18;  // of reads of the file

// A kind of file that is not text.
struct Kind {
  const char* name;
  size_t offset;           // of the magic bytes in the content
  std::string_view magic;  // which only such files have
  std::string_view suffixes;
  const char* advice;
};

constexpr const char* kDecompress = "decompress it first";
constexpr const char* kExtract = "extract the text files from it first";
constexpr const char* kConvert = "convert it to JSON lines first, one object with the text in each line";
constexpr const char* kConvertText = "convert it to plain text first";
constexpr const char* kUtf8 = "convert it to UTF-8 first: iconv -t UTF-8 -f UTF-16 (or UTF-32)";
constexpr const char* kNoText = "give text files";

constexpr std::array kKinds{
    Kind{"gzip data", 0, "\x1F\x8B"sv, " .gz .tgz ", kDecompress},
    Kind{"Zstandard data", 0, "\x28\xB5\x2F\xFD"sv, " .zst .zstd ", kDecompress},
    Kind{"xz data", 0,
         "\xFD"
         "7zXZ\0"sv,
         " .xz ", kDecompress},
    Kind{"bzip2 data", 4, "1AY&SY"sv, " .bz2 ", kDecompress},
    Kind{"empty bzip2 data", 4, "\x17\x72\x45\x38\x50\x90"sv, "", kDecompress},
    Kind{"LZ4 data", 0, "\x04\x22\x4D\x18"sv, " .lz4 ", kDecompress},
    Kind{"lzip data", 0, "LZIP\x01"sv, " .lz ", kDecompress},
    Kind{"compress data", 0, "\x1F\x9D"sv, " .z ", kDecompress},
    Kind{"a zip archive (also .npz, .docx, .jar, .pt)", 0, "PK\x03\x04"sv, " .zip .npz .docx .xlsx .epub .pt ",
         kExtract},
    Kind{"an empty zip archive", 0, "PK\x05\x06"sv, "", kExtract},
    Kind{"a 7z archive", 0, "7z\xBC\xAF\x27\x1C"sv, " .7z ", kExtract},
    Kind{"a RAR archive", 0, "Rar!\x1A\x07"sv, " .rar ", kExtract},
    Kind{"a tar archive", 257, "ustar"sv, " .tar ", kExtract},
    Kind{"a Parquet file", 0, "PAR1"sv, " .parquet ", kConvert},
    Kind{"an Arrow file", 0, "ARROW1"sv, " .arrow ", kConvert},
    Kind{"an Arrow stream", 0, "\xFF\xFF\xFF\xFF"sv, " .arrows ", kConvert},
    Kind{"a Feather file", 0, "FEA1"sv, " .feather ", kConvert},
    Kind{"an Avro file", 0, "Obj\x01"sv, " .avro ", kConvert},
    Kind{"an SQLite database", 0, "SQLite format 3\0"sv, " .sqlite ", kConvert},
    Kind{"an HDF5 file", 0, "\x89HDF\r\n\x1A\n"sv, " .h5 .hdf5 ",
         "token files need no `transmamba prepare`; convert other data to JSON lines first"},
    Kind{"a NumPy array", 0, "\x93NUMPY"sv, " .npy ", kConvert},
    Kind{"a Python pickle", 0, "\x80\x02"sv, " .pkl .pickle ", kConvert},
    Kind{"a Python pickle", 0, "\x80\x03"sv, "", kConvert},
    Kind{"a Python pickle", 0, "\x80\x04"sv, "", kConvert},
    Kind{"a Python pickle", 0, "\x80\x05"sv, "", kConvert},
    Kind{"a PDF document", 0, "%PDF-"sv, " .pdf ", kConvertText},
    Kind{"an OLE document (.doc, .xls)", 0, "\xD0\xCF\x11\xE0"sv, " .doc .xls ", kConvertText},
    Kind{"a PNG image", 0, "\x89PNG\r\n\x1A\n"sv, " .png ", kNoText},
    Kind{"a JPEG image", 0, "\xFF\xD8\xFF"sv, " .jpg .jpeg ", kNoText},
    Kind{"a GIF image", 0, "GIF87a"sv, " .gif ", kNoText},
    Kind{"a GIF image", 0, "GIF89a"sv, "", kNoText},
    Kind{"a TIFF image", 0, "II*\0"sv, " .tif .tiff ", kNoText},
    Kind{"a TIFF image", 0, "MM\0*"sv, "", kNoText},
    Kind{"a WebP image", 8, "WEBPVP8"sv, " .webp ", kNoText},
    Kind{"an ELF program or library", 0,
         "\x7F"
         "ELF"sv,
         "", kNoText},
    Kind{"UTF-32 text", 0, "\xFF\xFE\0\0"sv, "", kUtf8},
    Kind{"UTF-32 text", 0, "\0\0\xFE\xFF"sv, "", kUtf8},
    Kind{"UTF-16 text", 0, "\xFF\xFE"sv, "", kUtf8},
    Kind{"UTF-16 text", 0, "\xFE\xFF"sv, "", kUtf8},
};

const char* kind_of_mode(mode_t mode) {
  return S_ISFIFO(mode) ? "a named pipe" : S_ISSOCK(mode) ? "a socket" : "a device";
}
}  // namespace

struct TextSource::Inflate {
  Inflate() { TM_CHECK(inflateInit2(&stream, 16 + MAX_WBITS) == Z_OK, "zlib has no memory"); }  // 16: gzip
  ~Inflate() { inflateEnd(&stream); }
  Inflate(const Inflate&) = delete;

  z_stream stream{};
  bool in_member = true;
};

TextSource::TextSource(const std::filesystem::path& path, bool any_bytes)
    : path_(path), name_(path == "-" ? "standard input" : path.string()), block_(kBlockBytes) {
  open();
  const std::string_view magic = kKinds[0].magic;
  if (fill() && std::string_view(block_.data(), end_).starts_with(magic)) inflate_ = std::make_unique<Inflate>();
  std::string head(kHeadBytes, '\0');
  for (size_t filled = 0, count; filled < kHeadBytes; filled += count) {
    if (inflate_) {
      count = inflate_block(head.data() + filled, kHeadBytes - filled);
    } else {
      const std::string_view bytes = file_block(kHeadBytes - filled);
      count = bytes.copy(head.data() + filled, bytes.size());
    }
    if (count == 0) head.resize(filled);
    if (count == 0) break;
  }
  head_ = std::move(head);
  if (head_.empty()) throw UserError(name_ + (inflate_ ? ": has no text inside gzip" : ": is empty"));
  if (!any_bytes) check_content();
  if (head_.starts_with("\xEF\xBB\xBF")) head_.erase(0, 3);
}

TextSource::~TextSource() = default;

TextSource::Descriptor::~Descriptor() {
  if (number >= 0) ::close(number);
}

void TextSource::open() {
  if (path_ == "-") {
    fd_.number = ::dup(STDIN_FILENO);
    if (fd_.number < 0) throw UserError(str(name_, ": cannot be read: ", std::strerror(errno)));
    return;
  }
  fd_.number = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a named pipe must not block
  struct stat info {};
  if (fd_.number < 0 || ::fstat(fd_.number, &info) != 0) {
    if (errno == ENOENT) throw UserError(name_ + ": no such file");
    if (errno == ENXIO) throw UserError(name_ + ": is a socket or device, not a regular file");
    throw UserError(name_ + ": cannot be opened: " + std::strerror(errno));
  }
  if (S_ISDIR(info.st_mode)) throw UserError(name_ + ": is a directory; give the files in it");
  if (!S_ISREG(info.st_mode)) {
    throw UserError(
        str(name_, ": is ", kind_of_mode(info.st_mode), ", not a regular file; write its content to a file first"));
  }
  file_bytes_ = info.st_size;
}

bool TextSource::fill() {
  file_offset_ += static_cast<int64_t>(end_);
  at_ = end_ = 0;
  // Two bytes at least, so that the magic bytes of a gzip member are in one block.
  while (end_ < 2) {
    const ssize_t count = ::read(fd_.number, block_.data() + end_, block_.size() - end_);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw UserError(str(name_, ": cannot be read at byte ", offset(), ": ", std::strerror(errno)));
    if (count == 0) break;
    end_ += static_cast<size_t>(count);
  }
  return end_ > 0;
}

std::string_view TextSource::file_block(size_t bytes) {
  if (at_ == end_ && !fill()) return {};
  const std::string_view out(block_.data() + at_, std::min(bytes, end_ - at_));
  at_ += out.size();
  return out;
}

void TextSource::damaged(const std::string& what) const {
  throw UserError(str(name_, ": cannot be read: its gzip data ", what, " at byte ", offset(),
                      "; fetch or compress the file again"));
}

// Decompresses up to `bytes` bytes; returns 0 at the end of the last member.
size_t TextSource::inflate_block(char* out, size_t bytes) {
  z_stream& stream = inflate_->stream;
  stream.next_out = reinterpret_cast<Bytef*>(out);
  stream.avail_out = static_cast<uInt>(bytes);
  while (stream.avail_out == bytes) {
    if (at_ == end_ && !fill()) {
      if (inflate_->in_member) damaged("is truncated: it ends");
      return 0;
    }
    if (!inflate_->in_member) {
      // A member may begin in the last byte of a block.
      const bool begins = static_cast<uint8_t>(block_[at_]) == 0x1F &&
                          (at_ + 1 == end_ || static_cast<uint8_t>(block_[at_ + 1]) == 0x8B);
      if (!begins) damaged("is followed by bytes that are not gzip");
      TM_CHECK(inflateReset(&stream) == Z_OK, "zlib cannot begin another gzip member");
      inflate_->in_member = true;
    }
    stream.next_in = reinterpret_cast<Bytef*>(block_.data() + at_);
    stream.avail_in = static_cast<uInt>(end_ - at_);
    const int code = ::inflate(&stream, Z_NO_FLUSH);
    at_ = end_ - stream.avail_in;
    if (code == Z_STREAM_END) {
      inflate_->in_member = false;
    } else if (code != Z_OK && code != Z_BUF_ERROR) {
      damaged(str("is damaged (", stream.msg == nullptr ? "unknown cause" : stream.msg, ")"));
    }
  }
  return bytes - stream.avail_out;
}

std::string_view TextSource::read(size_t bytes) {
  if (head_read_ < head_.size()) {
    const std::string_view out = std::string_view(head_).substr(head_read_, bytes);
    head_read_ += out.size();
    return out;
  }
  if (!inflate_) return file_block(bytes);
  text_.resize(std::min(bytes, kBlockBytes));
  return {text_.data(), inflate_block(text_.data(), text_.size())};
}

std::string TextSource::suffix() const {
  const auto lower = [](const std::filesystem::path& name) {
    std::string text = name.extension().string();
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
    return text;
  };
  const std::string suffix = lower(path_);
  if (!compressed()) return suffix;
  return suffix == ".gz" ? lower(path_.stem()) : suffix == ".tgz" ? ".tar" : suffix;
}

void TextSource::check_content() const {
  const std::string inside = inflate_ ? " inside gzip" : "";
  for (const Kind& kind : kKinds) {
    const std::string_view magic =
        std::string_view(head_).substr(std::min(kind.offset, head_.size()), kind.magic.size());
    if (magic == kind.magic) throw UserError(str(name_, ": is ", kind.name, inside, ", not text; ", kind.advice));
  }
  for (const Kind& kind : kKinds) {
    if (suffix().empty() || kind.suffixes.find(" " + suffix() + " ") == std::string_view::npos) continue;
    throw UserError(str(name_, ": is named as ", kind.name, " but does not begin as such files do; it is damaged, or ",
                        "text that needs another name (`--format text` reads it as it is)"));
  }
  if (const size_t nul = head_.find('\0'); nul != std::string::npos) {
    throw UserError(str(name_, ": is binary data", inside, ", not text: byte ", nul,
                        " is NUL; `--format text` reads any bytes as text"));
  }
}

}  // namespace tmamba
