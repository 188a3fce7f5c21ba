// Opens an input of read_corpus(). The content decides how it is read, not the file name: gzip is decompressed, and
// what is not text (other compression, archives, Parquet, images, UTF-16, ...) is refused by its name and with what to
// do.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace tmamba {

class TextSource {
 public:
  // "-" is standard input. With `any_bytes` only gzip is recognised and all other content is accepted. Throws UserError
  // if the file is missing, not a regular file, empty, or not text.
  TextSource(const std::filesystem::path& path, bool any_bytes);
  ~TextSource();
  TextSource(const TextSource&) = delete;

  // The next bytes of the text, at most `bytes`; empty at its end. A byte-order mark at the beginning is left out.
  // Throws UserError with the byte of the file where compressed data is damaged, truncated or followed by anything
  // but another gzip member: no such file is read as a shorter text.
  std::string_view read(size_t bytes);
  // The beginning of the text, whether it was read or not: up to kHeadBytes.
  std::string_view head() const { return head_; }
  static constexpr size_t kHeadBytes = 8000;

  const std::string& name() const { return name_; }  // in messages
  bool compressed() const { return inflate_ != nullptr; }
  // Of the file name, in lower case, without .gz if it is compressed: ".jsonl".
  std::string suffix() const;
  int64_t offset() const { return file_offset_ + static_cast<int64_t>(at_); }  // bytes of the file that were used
  int64_t file_bytes() const { return file_bytes_; }                           // 0 for standard input

 private:
  struct Inflate;
  // Closes the file, also if the constructor throws.
  struct Descriptor {
    ~Descriptor();
    int number = -1;
  };

  void open();
  bool fill();  // reads the next block of the file; false at its end
  std::string_view file_block(size_t bytes);
  size_t inflate_block(char* out, size_t bytes);
  [[noreturn]] void damaged(const std::string& what) const;
  void check_content() const;

  std::filesystem::path path_;
  std::string name_;
  Descriptor fd_;
  int64_t file_bytes_ = 0;
  std::vector<char> block_;  // bytes of the file, [at_, end_) not used yet
  size_t at_ = 0, end_ = 0;
  int64_t file_offset_ = 0;  // of block_[0] in the file
  std::unique_ptr<Inflate> inflate_;
  std::vector<char> text_;  // decompressed
  std::string head_;
  size_t head_read_ = 0;  // bytes of head_ that read() has returned
};

}  // namespace tmamba
