#include "data/io/sha256.h"

#include <openssl/evp.h>

#include <array>

#include "kernels/base/check.h"

namespace tmamba {

struct Sha256::Context {
  EVP_MD_CTX* md = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(md); }
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  TM_CHECK(context_->md != nullptr && EVP_DigestInit_ex(context_->md, EVP_sha256(), nullptr) == 1,
           "OpenSSL cannot start SHA-256");
}

Sha256::~Sha256() = default;

void Sha256::add(const void* data, size_t bytes) {
  TM_CHECK(EVP_DigestUpdate(context_->md, data, bytes) == 1, "OpenSSL cannot update SHA-256");
}

std::string Sha256::hex() {
  std::array<unsigned char, 32> digest{};
  unsigned int bytes = 0;
  TM_CHECK(EVP_DigestFinal_ex(context_->md, digest.data(), &bytes) == 1 && bytes == digest.size(),
           "OpenSSL cannot finish SHA-256");
  constexpr const char* digits = "0123456789abcdef";
  std::string text;
  for (unsigned char byte : digest) {
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

std::string sha256_hex(std::string_view bytes) {
  Sha256 sha;
  sha.add(bytes.data(), bytes.size());
  return sha.hex();
}

}  // namespace tmamba
