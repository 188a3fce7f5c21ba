// SequenceLayout: which rank owns which tokens of a sequence, and what follows from it for a layer with TransPoint P.
// A pure function of (tokens, ranks, fold, grain, chunk, TransPoints): every rank computes the same one, nothing is
// sent.
//
// T tokens are cut into K = fold * ranks * grain segments and dealt to the ranks in snake order (0 1 .. R-1 R-1 .. 1 0
// 0 1 ..), `grain` consecutive ones at a time, so that each rank owns fold * grain of them. fold = 1 is the contiguous
// split, 2 the zigzag split; larger folds spread the work of every TransPoint at once. grain > 1 cuts finer than the
// deal needs: with fold * ranks * grain held fixed, every number of ranks and every fold works on the same segments
// (run.canonical). Segments are made of whole chunks of the SSM scan; only the last may end inside one. Token positions
// are global and 0-based; ranges are half-open.
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

// What two ranges share; {0, 0} where that is nothing.
TokenRange intersect(const TokenRange& a, const TokenRange& b);

struct LayoutSpec {
  int64_t tokens = 0;
  int ranks = 1;
  int fold = 1;
  int64_t chunk = 64;
  int conv_width = 4;                     // W; the halo of a segment is the W - 1 tokens before it
  std::vector<int64_t> transpoints = {};  // P of each layer, 0 <= P <= tokens
  int grain = 1;
  bool canonical = false;  // the same bits for every cut into the same segments: nothing is done across them at once

  int64_t segments() const { return int64_t{fold} * ranks * grain; }
  int64_t segments_per_rank() const { return int64_t{fold} * grain; }
  int rank_of(int64_t segment) const;
  // Which of its rank's segments a segment is, in ascending order from 0.
  int64_t local_index(int64_t segment) const { return segment / grain / ranks * grain + segment % grain; }
  bool operator==(const LayoutSpec&) const = default;
};

// One contiguous piece of the sequence. A rank stores its segments back to back in ascending order: token t of the
// segment is row local_begin + (t - begin) of the rank's local arrays.
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

// Segment `to_segment` starts its convolution with the last rows of the segment before it. from_rank may be to_rank.
struct Halo {
  int to_segment = 0;
  int from_rank = 0;
  int to_rank = 0;
  TokenRange rows;
};

// A TransPoint that falls inside a segment: the segment runs as two kernel ranges in that layer.
struct SplitSegment {
  int layer = 0;
  int64_t transpoint = 0;
  int segment = 0;
};

struct Alignment {
  int64_t gcd = 0;                        // of the TransPoints strictly inside the sequence; 0 where there are none
  int64_t unit = 0;                       // tokens of every segment; 0 where they differ
  std::vector<SplitSegment> splits = {};  // empty: every segment is wholly attention or wholly SSM in every layer
};

// The rank that gets deal k of a snake over `ranks` ranks.
constexpr int snake_rank(int64_t deal, int ranks) {
  const auto step = static_cast<int>(deal % (2 * int64_t{ranks}));
  return step < ranks ? step : 2 * ranks - 1 - step;
}

inline int LayoutSpec::rank_of(int64_t segment) const { return snake_rank(segment / grain, ranks); }

// Why a sequence cannot be cut so, and which number to change: there are fewer chunks than segments, a segment would be
// shorter than the halo, or a number is out of range. Empty where it can be cut.
std::string cut_problem(const LayoutSpec& spec);

// The cut of a sequence in closed form, without a list of segments: K segments of `base` chunks, the last `extra` of
// them of base + 1, the very last ending at `tokens`.
struct SequenceCut {
  // Throws UserError with cut_problem().
  explicit SequenceCut(const LayoutSpec& spec);
  int64_t tokens, chunk, segments, base, extra;
  int64_t begin(int64_t segment) const;  // begin(segments) = tokens
  int64_t segment_at(int64_t token) const;
  bool equal() const { return extra == 0 && tokens == segments * base * chunk; }
};

class LayerLayout;

class SequenceLayout {
 public:
  // Throws UserError as SequenceCut, and for a TransPoint outside [0, tokens].
  explicit SequenceLayout(LayoutSpec spec);

  const LayoutSpec& spec() const { return spec_; }
  int64_t tokens() const { return spec_.tokens; }
  int ranks() const { return spec_.ranks; }
  int layers() const { return static_cast<int>(spec_.transpoints.size()); }
  int64_t transpoint(int layer) const;

  // All segments in sequence order: also the order of the state scan.
  std::span<const Segment> segments() const { return segments_; }
  const Segment& segment(int index) const;
  // The segments of a rank, ascending.
  std::span<const Segment> segments_of(int rank) const;
  int64_t local_tokens(int rank) const;
  int64_t max_local_tokens() const;

  const Segment& segment_at(int64_t token) const;
  int rank_of(int64_t token) const { return segment_at(token).rank; }
  // Row of the token in its owner's local arrays.
  int64_t local_row(int64_t token) const { return segment_at(token).row(token); }
  // Global position of every local row of a rank, for RoPE and masks.
  std::vector<int64_t> positions(int rank) const;

  // One halo per segment but the first, in sequence order.
  std::vector<Halo> halos() const;

  LayerLayout layer(int layer) const;
  // Of a layer that is not in the list, for example with another schedule at inference.
  LayerLayout with_transpoint(int64_t transpoint) const;

  Alignment alignment() const;

  // A rank's rows of a sequence of T elements.
  template <class Element>
  std::vector<Element> shard(std::span<const Element> sequence, int rank) const {
    TM_CHECK(static_cast<int64_t>(sequence.size()) == tokens(), "sequence of ", sequence.size(), " for a layout of ",
             tokens(), " tokens");
    std::vector<Element> rows;
    for (const Segment& s : segments_of(rank))
      rows.insert(rows.end(), sequence.begin() + s.begin, sequence.begin() + s.end);
    return rows;
  }
  // Inputs and targets of a rank from T + 1 tokens. The shift by one happens on the whole sequence, before it is cut: a
  // shift of the local rows would give every segment a wrong last target.
  template <class Element>
  std::pair<std::vector<Element>, std::vector<Element>> shard_with_targets(std::span<const Element> window,
                                                                           int rank) const {
    TM_CHECK(static_cast<int64_t>(window.size()) == tokens() + 1, "a layout of ", tokens(),
             " tokens takes one more, got ", window.size());
    return {shard(window.first(window.size() - 1), rank), shard(window.subspan(1), rank)};
  }

 private:
  LayoutSpec spec_;
  SequenceCut cut_;
  std::vector<Segment> segments_;
  std::vector<Segment> by_rank_;  // sorted by (rank, index)
};

// What a layer with TransPoint P asks of a layout: tokens t < P attend, tokens t >= P run the SSM. A view: the layout
// must outlive it.
class LayerLayout {
 public:
  LayerLayout(const SequenceLayout& layout, int64_t transpoint);
  int64_t transpoint() const { return transpoint_; }

  // The segment's tokens before and from the TransPoint on. Either may be empty.
  TokenRange attention_part(const Segment& segment) const;
  TokenRange ssm_part(const Segment& segment) const;

  // The keys and values that the queries of a rank see: [0, end of its last attention part). Empty without queries.
  TokenRange keys_needed(int rank) const;
  // The part of them that lies in one segment.
  TokenRange keys_needed(int rank, const Segment& segment) const;
  // The other ranks that need keys of the segment, ascending.
  std::vector<int> key_receivers(const Segment& segment) const;

  // The state scan runs over all segments in order. needs_inflow: the state before the segment is read, by its SSM
  // tokens in forward, and by the decay gradients of all its tokens, prefix ones too, in backward. feeds_state: some
  // later segment reads a state that the summary of this one is part of; prefix segments do so too (the Memory
  // Converter). delivers_adjoint: in backward, it gives the state before it a gradient of its own: it has SSM tokens
  // and is not the first. A segment that feeds the state receives a gradient.
  bool needs_inflow(const Segment& segment) const;
  bool feeds_state(const Segment& segment) const;
  bool delivers_adjoint(const Segment& segment) const;
  bool rank_needs_inflow(int rank) const;

  // Anything to exchange between ranks in this layer.
  bool exchanges_keys() const;
  bool exchanges_state() const;

 private:
  const SequenceLayout* layout_;
  int64_t transpoint_;
};

// One fold a sequence can be cut with.
struct FoldChoice {
  int fold = 1;
  int64_t unit = 0;      // tokens of every segment; 0 where they differ
  int split_layers = 0;  // layers whose TransPoint falls inside a segment
};

// What folds 1, 2, 4, .. max_fold would give, without those that the sequence is too short for. spec.fold is not used.
std::vector<FoldChoice> fold_choices(LayoutSpec spec, int max_fold = 16);

}  // namespace tmamba
