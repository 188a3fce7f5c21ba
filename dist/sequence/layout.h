// SequenceLayout: which rank owns which tokens of a sequence, and what a layer with TransPoint P must exchange. It is a
// pure function of (tokens, ranks, fold, grain, chunk, TransPoints), so every rank computes the same layout without
// communication.
//
// The T tokens are split into K = fold * ranks * grain segments. Groups of `grain` consecutive segments are assigned to
// the ranks in zigzag order (0 1 .. R-1 R-1 .. 1 0 0 1 ..), so each rank owns fold * grain segments.
//   fold    groups per rank. fold 1 is the contiguous split; zigzag, as ring attention and Megatron's CP use it for
//           causal load balance, is fold 2. Larger folds balance attention and SSM work for every TransPoint at once.
//   grain   segments per group; 1 unless run.canonical is set, which fixes fold * ranks * grain: then every number of
//           ranks and every fold has the same segments and gives the same bits.
// Segment boundaries are multiples of `chunk` (the SSM scan's chunk); only the end of the sequence may not be. Token
// positions are global and 0-based; ranges are half-open.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/check.h"

namespace tmamba {

struct TokenRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool empty() const { return end <= begin; }
  bool contains(int64_t token) const { return begin <= token && token < end; }
  bool operator==(const TokenRange&) const = default;
};

// The common tokens of two ranges; {0, 0} if there are none.
TokenRange intersect(const TokenRange& a, const TokenRange& b);

struct LayoutSpec {
  int64_t tokens = 0;
  int ranks = 1;
  int fold = 1;
  int64_t chunk = 64;
  int conv_width = 4;                     // W; the halo of a segment is the W - 1 tokens before it
  std::vector<int64_t> transpoints = {};  // P of each layer, 0 <= P <= tokens
  int grain = 1;
  bool canonical = false;  // compute segment by segment, so that all layouts with the same segments give the same bits

  int64_t segments() const { return int64_t{fold} * ranks * grain; }
  int64_t segments_per_rank() const { return int64_t{fold} * grain; }
  int rank_of(int64_t segment) const;
  // Index of a segment among its rank's segments, which are ascending.
  int64_t local_index(int64_t segment) const { return segment / grain / ranks * grain + segment % grain; }
  bool operator==(const LayoutSpec&) const = default;
};

// A contiguous range of the sequence. A rank stores its segments adjacent and in ascending order: token t of the
// segment is row local_begin + (t - begin) of the rank's local tensors.
struct Segment {
  int index = 0;
  int rank = 0;
  int64_t begin = 0;
  int64_t end = 0;
  int64_t local_begin = 0;
  int64_t size() const { return end - begin; }
  TokenRange range() const { return {begin, end}; }
  int64_t row(int64_t token) const { return local_begin + token - begin; }
  bool operator==(const Segment&) const = default;
};

// The rows before `to_segment` that its convolution needs. They belong to from_rank, which may be to_rank.
struct Halo {
  int to_segment = 0;
  int from_rank = 0;
  int to_rank = 0;
  TokenRange rows;
};

// A segment with a layer's TransPoint inside: in that layer it runs as two kernel ranges.
struct SplitSegment {
  int layer = 0;
  int64_t transpoint = 0;
  int segment = 0;
};

struct Alignment {
  int64_t gcd = 0;                        // of the TransPoints strictly inside the sequence; 0 if there are none
  int64_t unit = 0;                       // tokens of every segment; 0 if they differ
  std::vector<SplitSegment> splits = {};  // empty: every segment is either attention or SSM in every layer
};

// The rank of group `group` of segments in zigzag order over `ranks` ranks.
constexpr int zigzag_rank(int64_t group, int ranks) {
  const auto step = static_cast<int>(group % (2 * int64_t{ranks}));
  return step < ranks ? step : 2 * ranks - 1 - step;
}

inline int LayoutSpec::rank_of(int64_t segment) const { return zigzag_rank(segment / grain, ranks); }

// The problem if the sequence cannot be split this way, and which number to change: there are fewer chunks than
// segments, a segment would be shorter than the halo, or a number is out of range. Empty if it can be split.
std::string split_problem(const LayoutSpec& spec);

// The split of a sequence in closed form, without a list of segments: K segments of `base` chunks, the last `extra` of
// them of base + 1; the last one ends at `tokens`.
struct SequenceSplit {
  // Throws UserError with the text of split_problem().
  explicit SequenceSplit(const LayoutSpec& spec);
  int64_t tokens, chunk, segments, base, extra;
  int64_t begin(int64_t segment) const;  // begin(segments) = tokens
  int64_t segment_at(int64_t token) const;
  bool equal() const { return extra == 0 && tokens == segments * base * chunk; }
};

class LayerLayout;

class SequenceLayout {
 public:
  // Throws UserError as SequenceSplit does, and for a TransPoint outside [0, tokens].
  explicit SequenceLayout(LayoutSpec spec);

  const LayoutSpec& spec() const { return spec_; }
  int64_t tokens() const { return spec_.tokens; }
  int ranks() const { return spec_.ranks; }
  int layers() const { return static_cast<int>(spec_.transpoints.size()); }
  int64_t transpoint(int layer) const;

  // All segments in sequence order, which is the order of the state scan.
  std::span<const Segment> segments() const { return segments_; }
  const Segment& segment(int index) const;
  // The segments of a rank, ascending.
  std::span<const Segment> segments_of(int rank) const;
  int64_t local_tokens(int rank) const;
  int64_t max_local_tokens() const;

  const Segment& segment_at(int64_t token) const;
  int rank_of(int64_t token) const { return segment_at(token).rank; }
  // Row of the token in its owner's local tensors.
  int64_t local_row(int64_t token) const { return segment_at(token).row(token); }
  // Global position of every local row of a rank, for RoPE and masks.
  std::vector<int64_t> positions(int rank) const;

  // The halos of all segments except the first, in sequence order.
  std::vector<Halo> halos() const;

  LayerLayout layer(int layer) const;
  // A layer with a TransPoint that is not in the spec, for example of another schedule at inference.
  LayerLayout with_transpoint(int64_t transpoint) const;

  Alignment alignment() const;

  // A rank's elements of a sequence of T elements.
  template <class Element>
  std::vector<Element> shard(std::span<const Element> sequence, int rank) const {
    TM_CHECK(static_cast<int64_t>(sequence.size()) == tokens(), "a sequence of ", sequence.size(),
             " elements for a layout of ", tokens(), " tokens");
    std::vector<Element> rows;
    for (const Segment& s : segments_of(rank))
      rows.insert(rows.end(), sequence.begin() + s.begin, sequence.begin() + s.end);
    return rows;
  }
  // A rank's inputs and targets from T + 1 tokens. The shift by one is applied before the split; shifting local rows
  // would give every segment a wrong last target.
  template <class Element>
  std::pair<std::vector<Element>, std::vector<Element>> shard_with_targets(std::span<const Element> window,
                                                                           int rank) const {
    TM_CHECK(static_cast<int64_t>(window.size()) == tokens() + 1, "a layout of ", tokens(),
             " tokens needs a window of one token more, got ", window.size());
    return {shard(window.first(window.size() - 1), rank), shard(window.subspan(1), rank)};
  }

 private:
  LayoutSpec spec_;
  SequenceSplit split_;
  std::vector<Segment> segments_;
  std::vector<Segment> by_rank_;  // sorted by (rank, index)
};

// The layout of a layer with TransPoint P: tokens t < P use attention, tokens t >= P use the SSM. The SequenceLayout
// must outlive it.
class LayerLayout {
 public:
  LayerLayout(const SequenceLayout& layout, int64_t transpoint);
  int64_t transpoint() const { return transpoint_; }

  // The segment's tokens before the TransPoint, and those from it on. Either may be empty.
  TokenRange attention_part(const Segment& segment) const;
  TokenRange ssm_part(const Segment& segment) const;

  // The keys and values that the queries of a rank attend to: [0, end of its last attention part). Empty if the rank
  // has no queries.
  TokenRange keys_needed(int rank) const;
  // Those of them that are in one segment.
  TokenRange keys_needed(int rank, const Segment& segment) const;
  // The other ranks that need keys of the segment, ascending.
  std::vector<int> key_receivers(const Segment& segment) const;

  // The state scan covers all segments in order.
  // The segment reads its inflow, the state before it: in forward for its SSM tokens, in backward for the decay
  // gradients of all its tokens, including prefix tokens.
  bool needs_inflow(const Segment& segment) const;
  // The segment's state contributes to the inflow of a later segment, and so receives a gradient in backward. Prefix
  // segments do too, through the Memory Converter.
  bool feeds_state(const Segment& segment) const;
  // In backward, the segment contributes a gradient to its inflow: it has SSM tokens and is not the first.
  bool delivers_adjoint(const Segment& segment) const;
  bool rank_needs_inflow(int rank) const;

  // Whether ranks exchange keys, or states, in this layer.
  bool exchanges_keys() const;
  bool exchanges_state() const;

 private:
  const SequenceLayout* layout_;
  int64_t transpoint_;
};

struct FoldChoice {
  int fold = 1;
  int64_t unit = 0;      // tokens of every segment; 0 if they differ
  int split_layers = 0;  // layers whose TransPoint is inside a segment
};

// Those of the folds 1, 2, 4, .. max_fold that the sequence is long enough for. Ignores spec.fold.
std::vector<FoldChoice> fold_choices(LayoutSpec spec, int max_fold = 16);

}  // namespace tmamba
