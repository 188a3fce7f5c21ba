#include "data/tokens/tokenizer.h"
#include "tests/fuzz/target.h"

namespace tmamba::fuzz {

namespace {

// Every accepted model must decode its encoding to the original text.
void check(const Tokenizer& tokenizer) {
  for (const std::string text : {"two words", "\n\t tab \xF0\x9F\x98\x80 \xFF\xFE", "aaaaaaaa <0x41> </s>"}) {
    const auto tokens = tokenizer.encode(text);
    int64_t bytes = 0;
    for (int32_t token : tokens) bytes += tokenizer.bytes_of(token);
    require(tokenizer.decode(tokens) == text, "a tokenizer that changes the text");
    require(bytes == static_cast<int64_t>(text.size()), "a tokenizer that counts bytes wrong");
  }
  token_bytes_of(tokenizer);
}

void bytes(const std::string& input) { check(*parse_tokenizer(input, "fuzz.model")); }
void file(const std::filesystem::path& path) { check(*load_tokenizer(path.string())); }

}  // namespace

const Target tokenizer{"tokenizer", bytes, file};

}  // namespace tmamba::fuzz
