// Head-parallel: all-to-all between "my tokens, all heads" and "all tokens, my heads" (as in DeepSpeed-Ulysses,
// arXiv:2309.14509), around the whole mixer.
#include <vector>

#include "dist/comm/collective_args.h"
#include "dist/sequence/exchange.h"
#include "dist/sequence/exchange_staging.h"
#include "kernels/base/trace_range.h"

namespace tmamba {

namespace {

// The tokens of a segment that a tensor has.
TokenRange covered(const HeadTensor& x, const Segment& s) { return intersect(x.tokens, s.range()); }

int64_t columns(const HeadTensor& x) { return x.heads_BSc.size(2); }

}  // namespace

Pending SequenceExchange::to_heads(Arena& scratch, std::span<const HeadTensor> tensors) {
  return transpose(scratch, tensors, false);
}

Pending SequenceExchange::to_tokens(Arena& scratch, std::span<const HeadTensor> tensors) {
  return transpose(scratch, tensors, true);
}

// Between ranks a and b travel, of every tensor, the tokens of one's segments in the columns of the other's heads.
// Pieces lie by peer, tensor and segment on both sides.
Pending SequenceExchange::transpose(Arena& scratch, std::span<const HeadTensor> tensors, bool heads_to_tokens) {
  const TraceRange trace(heads_to_tokens ? "to_tokens" : "to_heads");
  const Staging staging(scratch, ops_);
  const int ranks = layout_.ranks();
  std::vector<int64_t> token_counts(static_cast<size_t>(ranks)), head_counts(static_cast<size_t>(ranks));
  for (const HeadTensor& x : tensors) {
    const char* verb = heads_to_tokens ? "to_tokens" : "to_heads";
    TM_CHECK(x.heads_BSc.dims() == 3 && x.tokens_BnC.dims() == 3, verb, ": tensors are [B, tokens, columns], got ",
             x.heads_BSc.shape(), " and ", x.tokens_BnC.shape());
    int64_t mine = 0;
    for (const Segment& s : segments()) mine += covered(x, s).size();
    check_sizes(verb, "the tensor of all tokens", x.heads_BSc, {x.tokens_BnC.size(0), x.tokens.size(), columns(x)});
    check_sizes(verb, "the tensor of this rank's tokens", x.tokens_BnC,
                {x.tokens_BnC.size(0), mine, columns(x) * ranks});
    for (int r = 0; r < ranks; ++r) {
      token_counts[static_cast<size_t>(r)] += x.tokens_BnC.size(0) * mine * columns(x);
      for (const Segment& s : layout_.segments_of(r)) {
        head_counts[static_cast<size_t>(r)] += x.tokens_BnC.size(0) * covered(x, s).size() * columns(x);
      }
    }
  }
  if (ranks == 1) {
    for (const HeadTensor& x : tensors) {
      staging.copy(heads_to_tokens ? x.tokens_BnC : x.heads_BSc, heads_to_tokens ? x.heads_BSc : x.tokens_BnC);
    }
    return {};
  }
  const DType dtype = tensors.front().tokens_BnC.dtype();
  const Tensor by_tokens = staging.take({piece_begin(token_counts, ranks)}, dtype),
               by_heads = staging.take({piece_begin(head_counts, ranks)}, dtype);
  if (staging.measuring()) return {};

  const std::vector<HeadTensor> list(tensors.begin(), tensors.end());
  // Calls f(part of a tensor, its piece) for what this rank has as tokens, and as heads.
  const auto each_of_tokens = [=, this](auto f) {
    Pieces pieces(by_tokens);
    for (int r = 0; r < ranks; ++r) {
      for (const HeadTensor& x : list) {
        int64_t row = 0;
        for (const Segment& s : segments()) {
          const int64_t count = covered(x, s).size();
          if (count > 0) {
            f(x.tokens_BnC.slice(1, row, count).slice(2, r * columns(x), columns(x)),
              pieces.next({x.tokens_BnC.size(0), count, columns(x)}));
          }
          row += count;
        }
      }
    }
  };
  const auto each_of_heads = [=, this](auto f) {
    Pieces pieces(by_heads);
    for (int r = 0; r < ranks; ++r) {
      for (const HeadTensor& x : list) {
        for (const Segment& s : layout_.segments_of(r)) {
          const TokenRange part = covered(x, s);
          if (part.empty()) continue;
          f(x.heads_BSc.slice(1, part.begin - x.tokens.begin, part.size()),
            pieces.next({x.heads_BSc.size(0), part.size(), columns(x)}));
        }
      }
    }
  };
  const auto pack = [staging](const Tensor& part, const Tensor& piece) { staging.copy(piece, part); };
  const auto unpack = [staging](const Tensor& part, const Tensor& piece) { staging.copy(part, piece); };
  if (heads_to_tokens) {
    each_of_heads(pack);
    return start_one(
        staging, [=, this] { return sp_.all_to_all(by_tokens, token_counts, by_heads, head_counts); },
        [=] { each_of_tokens(unpack); });
  }
  each_of_tokens(pack);
  return start_one(
      staging, [=, this] { return sp_.all_to_all(by_heads, head_counts, by_tokens, token_counts); },
      [=] { each_of_heads(unpack); });
}

}  // namespace tmamba
