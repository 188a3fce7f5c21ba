// SHA-256 of data that arrives in blocks.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace tmamba {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void add(const void* data, size_t bytes);
  // The digest as 64 lower-case hexadecimal digits. Must be the last call.
  std::string hex();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string sha256_hex(std::string_view bytes);

}  // namespace tmamba
