// The head_parallel transport: all-to-all between "my tokens, all heads" and "all tokens, my heads" before and after
// the mixer, as in DeepSpeed-Ulysses (arXiv:2309.14509).
#include <vector>

#include "dist/comm/collective_args.h"
#include "dist/sequence/exchange.h"
#include "dist/sequence/exchange_staging.h"
#include "kernels/base/trace_range.h"

namespace tmamba {

namespace {

// The tokens of a segment that a tensor covers.
TokenRange covered(const HeadTensor& x, const Segment& s) { return intersect(x.tokens, s.range()); }

int64_t columns(const HeadTensor& x) { return x.heads_BSc.size(2); }

}  // namespace

Pending SequenceExchange::to_heads(Arena& scratch, std::span<const HeadTensor> tensors) {
  return transpose(scratch, tensors, false);
}

Pending SequenceExchange::to_tokens(Arena& scratch, std::span<const HeadTensor> tensors) {
  return transpose(scratch, tensors, true);
}

SequenceExchange::HeadCounts SequenceExchange::count_heads(const char* verb,
                                                           std::span<const HeadTensor> tensors) const {
  const int ranks = layout_.ranks();
  HeadCounts counts{std::vector<int64_t>(static_cast<size_t>(ranks)), std::vector<int64_t>(static_cast<size_t>(ranks))};
  for (const HeadTensor& x : tensors) {
    TM_CHECK(x.heads_BSc.dims() == 3 && x.tokens_BnC.dims() == 3, verb, ": tensors are [B, tokens, columns], got ",
             x.heads_BSc.shape(), " and ", x.tokens_BnC.shape());
    int64_t mine = 0;
    for (const Segment& s : segments()) mine += covered(x, s).size();
    check_sizes(verb, "the tensor of all tokens", x.heads_BSc, {x.tokens_BnC.size(0), x.tokens.size(), columns(x)});
    check_sizes(verb, "the tensor of this rank's tokens", x.tokens_BnC,
                {x.tokens_BnC.size(0), mine, columns(x) * ranks});
    for (int r = 0; r < ranks; ++r) {
      counts.tokens[static_cast<size_t>(r)] += x.tokens_BnC.size(0) * mine * columns(x);
      for (const Segment& s : layout_.segments_of(r)) {
        counts.heads[static_cast<size_t>(r)] += x.tokens_BnC.size(0) * covered(x, s).size() * columns(x);
      }
    }
  }
  return counts;
}

namespace {

// Both functions call f(block of a tensor, its slice of `flat`) by peer, tensor and segment: the order of the blocks on
// both sides of the all-to-all. A block is the tokens of one segment in the columns of one rank.

// The blocks of this rank's tokens, whose segments are `mine`; the peer is the rank of the columns.
template <class F>
void for_each_token_block(int ranks, std::span<const Segment> mine, const std::vector<HeadTensor>& tensors,
                          const Tensor& flat, F f) {
  FlatCursor cursor(flat);
  for (int r = 0; r < ranks; ++r) {
    for (const HeadTensor& x : tensors) {
      int64_t row = 0;
      for (const Segment& s : mine) {
        const int64_t count = covered(x, s).size();
        if (count > 0) {
          f(x.tokens_BnC.slice(1, row, count).slice(2, r * columns(x), columns(x)),
            cursor.next({x.tokens_BnC.size(0), count, columns(x)}));
        }
        row += count;
      }
    }
  }
}

// The blocks of this rank's columns; the peer is the owner of the segment.
template <class F>
void for_each_head_block(const SequenceLayout& layout, const std::vector<HeadTensor>& tensors, const Tensor& flat,
                         F f) {
  FlatCursor cursor(flat);
  for (int r = 0; r < layout.ranks(); ++r) {
    for (const HeadTensor& x : tensors) {
      for (const Segment& s : layout.segments_of(r)) {
        const TokenRange part = covered(x, s);
        if (part.empty()) continue;
        f(x.heads_BSc.slice(1, part.begin - x.tokens.begin, part.size()),
          cursor.next({x.heads_BSc.size(0), part.size(), columns(x)}));
      }
    }
  }
}

}  // namespace

Pending SequenceExchange::transpose(Arena& scratch, std::span<const HeadTensor> tensors, bool heads_to_tokens) {
  const TraceRange trace(heads_to_tokens ? "to_tokens" : "to_heads");
  const Staging staging(scratch, ops_);
  const int ranks = layout_.ranks();
  const HeadCounts counts = count_heads(heads_to_tokens ? "to_tokens" : "to_heads", tensors);
  if (ranks == 1) {
    for (const HeadTensor& x : tensors) {
      staging.copy(heads_to_tokens ? x.tokens_BnC : x.heads_BSc, heads_to_tokens ? x.heads_BSc : x.tokens_BnC);
    }
    return {};
  }
  const DType dtype = tensors.front().tokens_BnC.dtype();
  const Tensor by_tokens = staging.take({shard_begin(counts.tokens, ranks)}, dtype),
               by_heads = staging.take({shard_begin(counts.heads, ranks)}, dtype);
  if (staging.measuring()) return {};

  const std::vector<HeadTensor> list(tensors.begin(), tensors.end());
  const auto pack = [staging](const Tensor& block, const Tensor& flat) { staging.copy(flat, block); };
  const auto unpack = [staging](const Tensor& block, const Tensor& flat) { staging.copy(block, flat); };
  if (heads_to_tokens) {
    for_each_head_block(layout_, list, by_heads, pack);
    return start_one(
        staging, [=, this] { return sp_.all_to_all(by_tokens, counts.tokens, by_heads, counts.heads); },
        [=, this] { for_each_token_block(ranks, segments(), list, by_tokens, unpack); });
  }
  for_each_token_block(ranks, segments(), list, by_tokens, pack);
  return start_one(
      staging, [=, this] { return sp_.all_to_all(by_heads, counts.heads, by_tokens, counts.tokens); },
      [=, this] { for_each_head_block(layout_, list, by_heads, unpack); });
}

}  // namespace tmamba
