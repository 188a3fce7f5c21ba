#include "dist/sequence/layout.h"

#include <algorithm>
#include <numeric>

namespace tmamba {

namespace {

struct ChunkCounts {
  int64_t chunks, segments, base, extra;  // base and extra as in SequenceSplit
};

ChunkCounts count_chunks(const LayoutSpec& spec) {
  const int64_t chunks = ceil_div(spec.tokens, spec.chunk), segments = spec.segments();
  return {chunks, segments, chunks / segments, chunks % segments};
}

std::string number_problem(const LayoutSpec& spec) {
  if (spec.tokens < 1) return str("sequence length ", spec.tokens, " (data.seq_len) must be at least 1");
  if (spec.ranks < 1) return str("parallel.sp = ", spec.ranks, " must be at least 1");
  if (spec.fold < 1) return str("parallel.fold = ", spec.fold, " must be at least 1");
  if (spec.grain < 1) return str("LayoutSpec::grain = ", spec.grain, " must be at least 1");
  if (spec.chunk < 1) return str("model.chunk = ", spec.chunk, " must be at least 1");
  if (spec.conv_width < 1) return str("convolution width ", spec.conv_width, " must be at least 1");
  return "";
}

std::string split_text(const LayoutSpec& spec) {
  if (spec.grain > 1) return str("run.canonical = ", spec.segments());
  return str("parallel.sp = ", spec.ranks, " with parallel.fold = ", spec.fold);
}

}  // namespace

TokenRange intersect(const TokenRange& a, const TokenRange& b) {
  const TokenRange shared{std::max(a.begin, b.begin), std::min(a.end, b.end)};
  return shared.empty() ? TokenRange{} : shared;
}

std::string split_problem(const LayoutSpec& spec) {
  if (std::string problem = number_problem(spec); !problem.empty()) return problem;
  const auto [chunks, segments, base, extra] = count_chunks(spec);
  if (chunks < segments) {
    const std::string advice = spec.grain > 1         ? str("set run.canonical to at most ", chunks)
                               : chunks >= spec.ranks ? str("set parallel.fold to at most ", chunks / spec.ranks)
                                                      : str("set parallel.sp to at most ", chunks);
    return str("a sequence of ", spec.tokens, " tokens has ", chunks, " chunks of ", spec.chunk, ", but ",
               split_text(spec), " needs ", segments, " segments of at least one chunk: ", advice,
               ", decrease model.chunk, or increase data.seq_len");
  }
  const int64_t halo = spec.conv_width - 1, last = spec.tokens - (chunks - base - (extra > 0 ? 1 : 0)) * spec.chunk;
  const int64_t shortest = std::min(base * spec.chunk, last);
  if (segments > 1 && shortest < halo) {
    return str(split_text(spec), " splits ", spec.tokens, " tokens into a segment of ", shortest,
               ", shorter than the convolution's halo of ", halo, " tokens: decrease ",
               spec.grain > 1 ? "run.canonical" : "parallel.fold or parallel.sp", ", set model.chunk to at least ",
               halo, ", and data.seq_len to a multiple of model.chunk");
  }
  return "";
}

SequenceSplit::SequenceSplit(const LayoutSpec& spec) : tokens(spec.tokens), chunk(spec.chunk) {
  if (const std::string problem = split_problem(spec); !problem.empty()) throw UserError(problem);
  const ChunkCounts counts = count_chunks(spec);
  segments = counts.segments;
  base = counts.base;
  // The longer segments are last. So the last segment, whose last chunk may be partial, differs from the others by at
  // most one chunk, and the longer segments spread evenly over the ranks in zigzag order.
  extra = counts.extra;
}

int64_t SequenceSplit::begin(int64_t segment) const {
  const int64_t longer = std::max<int64_t>(0, segment - (segments - extra));
  return std::min(tokens, (segment * base + longer) * chunk);
}

int64_t SequenceSplit::segment_at(int64_t token) const {
  const int64_t at = token / chunk, short_chunks = (segments - extra) * base;
  return at < short_chunks ? at / base : segments - extra + (at - short_chunks) / (base + 1);
}

SequenceLayout::SequenceLayout(LayoutSpec spec) : spec_(std::move(spec)), split_(spec_) {
  for (int64_t p : spec_.transpoints) with_transpoint(p);
  std::vector<int64_t> rows(static_cast<size_t>(ranks()), 0);
  for (int64_t k = 0; k < split_.segments; ++k) {
    Segment s{
        .index = static_cast<int>(k), .rank = spec_.rank_of(k), .begin = split_.begin(k), .end = split_.begin(k + 1)};
    int64_t& row = rows[static_cast<size_t>(s.rank)];
    s.local_begin = row;
    row += s.size();
    segments_.push_back(s);
  }
  by_rank_ = segments_;
  std::stable_sort(by_rank_.begin(), by_rank_.end(),
                   [](const Segment& a, const Segment& b) { return a.rank < b.rank; });
}

int64_t SequenceLayout::transpoint(int layer) const {
  TM_CHECK(layer >= 0 && layer < layers(), "layer ", layer, " of ", layers());
  return spec_.transpoints[static_cast<size_t>(layer)];
}

const Segment& SequenceLayout::segment(int index) const {
  TM_CHECK(index >= 0 && index < split_.segments, "segment ", index, " of ", split_.segments);
  return segments_[static_cast<size_t>(index)];
}

std::span<const Segment> SequenceLayout::segments_of(int rank) const {
  TM_CHECK(rank >= 0 && rank < ranks(), "sequence rank ", rank, " of ", ranks());
  const auto count = static_cast<size_t>(spec_.segments_per_rank());
  return std::span(by_rank_).subspan(static_cast<size_t>(rank) * count, count);
}

int64_t SequenceLayout::local_tokens(int rank) const {
  const Segment& last = segments_of(rank).back();
  return last.local_begin + last.size();
}

int64_t SequenceLayout::max_local_tokens() const {
  int64_t max_tokens = 0;
  for (int r = 0; r < ranks(); ++r) max_tokens = std::max(max_tokens, local_tokens(r));
  return max_tokens;
}

const Segment& SequenceLayout::segment_at(int64_t token) const {
  TM_CHECK(token >= 0 && token < tokens(), "token ", token, " of ", tokens());
  return segments_[static_cast<size_t>(split_.segment_at(token))];
}

std::vector<int64_t> SequenceLayout::positions(int rank) const {
  std::vector<int64_t> positions;
  for (const Segment& s : segments_of(rank)) {
    for (int64_t t = s.begin; t < s.end; ++t) positions.push_back(t);
  }
  return positions;
}

std::vector<Halo> SequenceLayout::halos() const {
  std::vector<Halo> halos;
  for (size_t k = 1; k < segments_.size(); ++k) {
    const Segment& to = segments_[k];
    halos.push_back({.to_segment = to.index,
                     .from_rank = segments_[k - 1].rank,
                     .to_rank = to.rank,
                     .rows = {to.begin - (spec_.conv_width - 1), to.begin}});
  }
  return halos;
}

LayerLayout SequenceLayout::layer(int layer) const { return {*this, transpoint(layer)}; }

LayerLayout SequenceLayout::with_transpoint(int64_t transpoint) const { return {*this, transpoint}; }

Alignment SequenceLayout::alignment() const {
  Alignment report;
  if (split_.equal()) report.unit = split_.base * split_.chunk;
  for (int l = 0; l < layers(); ++l) {
    const int64_t p = transpoint(l);
    if (p == 0 || p == tokens()) continue;
    report.gcd = std::gcd(report.gcd, p);
    const Segment& at = segment_at(p);
    if (at.begin != p) report.splits.push_back({.layer = l, .transpoint = p, .segment = at.index});
  }
  return report;
}

LayerLayout::LayerLayout(const SequenceLayout& layout, int64_t transpoint) : layout_(&layout), transpoint_(transpoint) {
  if (transpoint < 0 || transpoint > layout.tokens()) {
    throw UserError(str("TransPoint ", transpoint, " is outside the sequence of ", layout.tokens(),
                        " tokens: change model.schedule or data.seq_len"));
  }
}

TokenRange LayerLayout::attention_part(const Segment& segment) const {
  return intersect(segment.range(), {0, transpoint_});
}

TokenRange LayerLayout::ssm_part(const Segment& segment) const {
  return intersect(segment.range(), {transpoint_, layout_->tokens()});
}

TokenRange LayerLayout::keys_needed(int rank) const {
  int64_t end = 0;
  for (const Segment& s : layout_->segments_of(rank)) end = std::max(end, attention_part(s).end);
  return {0, end};
}

TokenRange LayerLayout::keys_needed(int rank, const Segment& segment) const {
  return intersect(segment.range(), keys_needed(rank));
}

std::vector<int> LayerLayout::key_receivers(const Segment& segment) const {
  std::vector<int> receivers;
  for (int r = 0; r < layout_->ranks(); ++r) {
    if (r != segment.rank && !keys_needed(r, segment).empty()) receivers.push_back(r);
  }
  return receivers;
}

bool LayerLayout::needs_inflow(const Segment& segment) const {
  return segment.index > 0 && transpoint_ < layout_->tokens();
}

bool LayerLayout::delivers_adjoint(const Segment& segment) const {
  return segment.index > 0 && segment.end > transpoint_;
}

bool LayerLayout::feeds_state(const Segment& segment) const {
  return transpoint_ < layout_->tokens() && segment.index + 1 < static_cast<int>(layout_->segments().size());
}

bool LayerLayout::rank_needs_inflow(int rank) const {
  const auto mine = layout_->segments_of(rank);
  return std::any_of(mine.begin(), mine.end(), [this](const Segment& s) { return needs_inflow(s); });
}

bool LayerLayout::exchanges_keys() const {
  // Every rank that has queries needs the keys of segment 0, which rank 0 owns.
  for (const Segment& s : layout_->segments()) {
    if (s.rank != 0 && !attention_part(s).empty()) return true;
  }
  return false;
}

bool LayerLayout::exchanges_state() const { return layout_->ranks() > 1 && transpoint_ < layout_->tokens(); }

std::vector<FoldChoice> fold_choices(LayoutSpec spec, int max_fold) {
  std::vector<FoldChoice> choices;
  for (spec.fold = 1; spec.fold <= max_fold; spec.fold *= 2) {
    if (!split_problem(spec).empty()) continue;
    const Alignment alignment = SequenceLayout(spec).alignment();
    choices.push_back({spec.fold, alignment.unit, static_cast<int>(alignment.splits.size())});
  }
  return choices;
}

}  // namespace tmamba
