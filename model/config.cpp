#include "model/config.h"

#include "kernels/base/check.h"

namespace tmamba {

namespace {
void require(bool condition, const std::string& message) {
  if (!condition) throw UserError(message);
}
}  // namespace

void validate(const ModelConfig& c) {
  require(c.dim > 0, "model.dim must be given: the width of the residual stream, for example 256");
  require(c.heads > 0, "model.heads must be given: the number of heads, for example 4");
  require(c.layers > 0, "model.layers must be given: the number of mixer and MLP pairs, for example 8");
  require(c.ffn > 0, "model.ffn must be given: the width of the MLP, for example 8/3 of model.dim");
  require(c.dim % c.heads == 0, str("model.dim = ", c.dim, " is not divisible by model.heads = ", c.heads,
                                    ": all heads have the same width"));
  require(c.head_dim() % 2 == 0,
          str("model.dim / model.heads = ", c.head_dim(),
              " is odd: rotary embedding rotates pairs of channels, so the head width must be even"));
  require(c.conv >= 2 && c.conv <= 8, str("model.conv = ", c.conv, " must be between 2 and 8 taps"));
  require(c.chunk >= 1 && c.chunk <= 1024, str("model.chunk = ", c.chunk, " must be between 1 and 1024 tokens"));
  require(!c.schedule.empty(),
          "model.schedule is empty: give at least one TransPoint, for example [0, \"1/2\", \"1/1\"]");
  require(c.vocab >= 0 && c.vocab <= int64_t{1} << 31, str("model.vocab = ", c.vocab, " is out of range"));
}

}  // namespace tmamba
