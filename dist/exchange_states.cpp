// The scan of segment states across ranks. Every rank scans all segments in sequence order, either whole states or its
// slice of every state: the order of the arithmetic does not depend on who owns what.
#include <vector>

#include "dist/collective_args.h"
#include "dist/exchange.h"
#include "dist/exchange_staging.h"

namespace tmamba {

// One scan: forward, or against the sequence. Segments that give deliver `in` into it, others count as zero; those that
// take get their place of its result, others zero.
struct SequenceExchange::Scan {
  const LayerLayout& layer;
  Tensor out_sBHE;
  ConstTensor in_sBHE;
  ConstTensor decay_sBH;  // forward: of the local segments; against the sequence: empty
  Tensor gathered_KBH;    // forward: decay of all segments, to be written
  ConstTensor decay_KBH;  // decay of all segments
  bool reverse = false;

  bool gives(const Segment& s) const { return reverse ? layer.delivers_adjoint(s) : layer.feeds_state(s); }
  bool takes(const Segment& s) const { return reverse ? layer.feeds_state(s) : layer.needs_inflow(s); }
  bool gathers_decays() const { return !reverse; }

  int64_t B() const { return in_sBHE.size(1); }
  int64_t H() const { return in_sBHE.size(2); }
  int64_t E() const { return in_sBHE.size(3); }
  DType dtype() const { return in_sBHE.dtype(); }
};

namespace {

// The segments that a predicate picks, rank by rank: the order of the pieces of a collective.
template <class Predicate>
std::vector<Segment> by_rank(const SequenceLayout& layout, Predicate picks) {
  std::vector<Segment> list;
  for (int r = 0; r < layout.ranks(); ++r) {
    for (const Segment& s : layout.segments_of(r)) {
      if (picks(s)) list.push_back(s);
    }
  }
  return list;
}

// Elements of each rank's piece.
std::vector<int64_t> counts_by_rank(const std::vector<Segment>& segments, int ranks, int64_t elements) {
  std::vector<int64_t> counts(static_cast<size_t>(ranks));
  for (const Segment& s : segments) counts[static_cast<size_t>(s.rank)] += elements;
  return counts;
}

int64_t total(const std::vector<int64_t>& counts) { return piece_begin(counts, static_cast<int>(counts.size())); }

Tensor piece_of(const Tensor& flat, const std::vector<int64_t>& counts, int rank) {
  return flat_slice(flat, piece_begin(counts, rank), counts[static_cast<size_t>(rank)]);
}

}  // namespace

bool SequenceExchange::scans(const LayerLayout& layer) const {
  return layout_.segments().size() > 1 && layer.transpoint() < layout_.tokens();
}

void SequenceExchange::scan_states(Arena& scratch, const LayerLayout& layer, Tensor inflow_sBHE, Tensor decays_KBH,
                                   ConstTensor state_sBHE, ConstTensor decay_sBH) {
  TM_CHECK(state_sBHE.dims() == 4, "scan_states: states are [s, B, H, E], got ", state_sBHE.shape());
  const int64_t s = std::ssize(segments()), K = std::ssize(layout_.segments());
  const int64_t B = state_sBHE.size(1), H = state_sBHE.size(2), E = state_sBHE.size(3);
  check_sizes("scan_states", "the states", state_sBHE, {s, B, H, E});
  check_sizes("scan_states", "the inflow", inflow_sBHE, {s, B, H, E});
  Staging staging(scratch, ops_);
  if (!scans(layer)) {
    staging.zero(inflow_sBHE);
    return;
  }
  check_sizes("scan_states", "the log-decays", decay_sBH, {s, B, H});
  check_sizes("scan_states", "the log-decays of all segments", decays_KBH, {K, B, H});
  TM_CHECK(decay_sBH.dtype() == state_sBHE.dtype() && decays_KBH.dtype() == state_sBHE.dtype(),
           "scan_states: states and log-decays of more than one type");
  run_scan(staging, {.layer = layer,
                     .out_sBHE = inflow_sBHE,
                     .in_sBHE = state_sBHE,
                     .decay_sBH = decay_sBH,
                     .gathered_KBH = decays_KBH,
                     .decay_KBH = decays_KBH,
                     .reverse = false});
}

void SequenceExchange::scan_adjoints(Arena& scratch, const LayerLayout& layer, Tensor outflow_sBHE,
                                     ConstTensor adjoint_sBHE, ConstTensor decays_KBH) {
  TM_CHECK(adjoint_sBHE.dims() == 4, "scan_adjoints: adjoints are [s, B, H, E], got ", adjoint_sBHE.shape());
  const int64_t s = std::ssize(segments()), K = std::ssize(layout_.segments());
  const int64_t B = adjoint_sBHE.size(1), H = adjoint_sBHE.size(2), E = adjoint_sBHE.size(3);
  check_sizes("scan_adjoints", "the adjoints", adjoint_sBHE, {s, B, H, E});
  check_sizes("scan_adjoints", "the outflow", outflow_sBHE, {s, B, H, E});
  Staging staging(scratch, ops_);
  if (!scans(layer)) {
    staging.zero(outflow_sBHE);
    return;
  }
  check_sizes("scan_adjoints", "the log-decays of all segments", decays_KBH, {K, B, H});
  TM_CHECK(decays_KBH.dtype() == adjoint_sBHE.dtype(), "scan_adjoints: adjoints and log-decays of more than one type");
  run_scan(staging, {.layer = layer,
                     .out_sBHE = outflow_sBHE,
                     .in_sBHE = adjoint_sBHE,
                     .decay_sBH = {},
                     .gathered_KBH = {},
                     .decay_KBH = decays_KBH,
                     .reverse = true});
}

// Whole states: all ranks scan all of them.
void SequenceExchange::run_scan(Staging& staging, const Scan& scan) {
  if (sp_.size() > 1 && states_ == StateRoute::sliced) {
    run_sliced_scan(staging, scan);
    return;
  }
  const int64_t K = std::ssize(layout_.segments());
  const Tensor in_KBHE = staging.take({K, scan.B(), scan.H(), scan.E()}, scan.dtype());
  gather_summaries(staging, scan, in_KBHE);
  const Tensor out_KBHE = staging.take_like(in_KBHE);
  staging.scan(out_KBHE, in_KBHE, scan.decay_KBH, scan.reverse);
  for (const Segment& s : segments()) {
    const Tensor out = scan.out_sBHE.select(0, local_index(s));
    if (scan.takes(s)) {
      staging.copy(out, out_KBHE.select(0, s.index));
    } else {
      staging.zero(out);
    }
  }
}

// in_KBHE, and forward the log-decays, of all segments; zeros for those that give nothing.
void SequenceExchange::gather_summaries(Staging& staging, const Scan& scan, const Tensor& in_KBHE) {
  const int64_t B = scan.B(), H = scan.H(), E = scan.E();
  for (const Segment& s : layout_.segments()) {
    if (!scan.gives(s)) {
      staging.zero(in_KBHE.select(0, s.index));
      if (scan.gathers_decays()) staging.zero(scan.gathered_KBH.select(0, s.index));
    } else if (s.rank == rank()) {
      staging.copy(in_KBHE.select(0, s.index), scan.in_sBHE.select(0, local_index(s)));
      if (scan.gathers_decays()) {
        staging.copy(scan.gathered_KBH.select(0, s.index), scan.decay_sBH.select(0, local_index(s)));
      }
    }
  }
  if (sp_.size() == 1) return;

  Staging inner = staging.nested();
  const std::vector<Segment> givers = by_rank(layout_, [&](const Segment& s) { return scan.gives(s); });
  const int64_t record = B * H * (scan.gathers_decays() ? E + 1 : E);
  const std::vector<int64_t> counts = counts_by_rank(givers, layout_.ranks(), record);
  const Tensor flat = inner.take({total(counts)}, scan.dtype());
  // A segment's record: its log-decay, forward, and its state.
  const auto for_each_record = [&](auto f) {
    Pieces pieces(flat);
    for (const Segment& s : givers) {
      const Tensor decay_BH = scan.gathers_decays() ? pieces.next({B, H}) : Tensor();
      f(s, decay_BH, pieces.next({B, H, E}));
    }
  };
  for_each_record([&](const Segment& s, const Tensor& decay_BH, const Tensor& state_BHE) {
    if (s.rank != rank()) return;
    if (scan.gathers_decays()) inner.copy(decay_BH, scan.decay_sBH.select(0, local_index(s)));
    inner.copy(state_BHE, scan.in_sBHE.select(0, local_index(s)));
  });
  if (inner.measuring()) return;
  sp_.all_gather(flat, piece_of(flat, counts, rank()), counts).wait();
  for_each_record([&](const Segment& s, const Tensor& decay_BH, const Tensor& state_BHE) {
    if (s.rank == rank()) return;
    if (scan.gathers_decays()) inner.copy(scan.gathered_KBH.select(0, s.index), decay_BH);
    inner.copy(in_KBHE.select(0, s.index), state_BHE);
  });
}

// Rank j scans slice j of every state.
void SequenceExchange::run_sliced_scan(Staging& staging, const Scan& scan) {
  if (scan.gathers_decays()) gather_decays(staging, scan);
  const int64_t K = std::ssize(layout_.segments());
  const int64_t width = shard_of(scan.E(), rank(), layout_.ranks()).count;
  const Tensor in_KBHE = staging.take({K, scan.B(), scan.H(), width}, scan.dtype());
  slices_out(staging, scan, in_KBHE);
  const Tensor out_KBHE = staging.take_like(in_KBHE);
  staging.scan(out_KBHE, in_KBHE, scan.decay_KBH, scan.reverse);
  slices_back(staging, scan, out_KBHE);
}

void SequenceExchange::gather_decays(Staging& staging, const Scan& scan) {
  const int64_t B = scan.B(), H = scan.H();
  Staging inner = staging.nested();
  const std::vector<Segment> givers = by_rank(layout_, [&](const Segment& s) { return scan.gives(s); });
  const std::vector<int64_t> counts = counts_by_rank(givers, layout_.ranks(), B * H);
  const Tensor flat = inner.take({total(counts)}, scan.dtype());
  Pieces own(flat);
  for (const Segment& s : givers) {
    const Tensor decay_BH = own.next({B, H});
    if (s.rank == rank()) inner.copy(decay_BH, scan.decay_sBH.select(0, local_index(s)));
  }
  if (inner.measuring()) return;
  sp_.all_gather(flat, piece_of(flat, counts, rank()), counts).wait();
  Pieces all(flat);
  for (const Segment& s : givers) inner.copy(scan.gathered_KBH.select(0, s.index), all.next({B, H}));
  for (const Segment& s : layout_.segments()) {
    if (!scan.gives(s)) inner.zero(scan.gathered_KBH.select(0, s.index));
  }
}

namespace {

// Calls f(local segment, elements of its states, their piece) for what lies between this rank, that owns `mine`, and
// the ranks that scan the slices of E elements.
template <class F>
void for_each_slice(const std::vector<Segment>& mine, int ranks, const Tensor& flat, int64_t B, int64_t H, int64_t E,
                    F f) {
  Pieces pieces(flat);
  for (int r = 0; r < ranks; ++r) {
    const Slice slice = shard_of(E, r, ranks);
    for (const Segment& s : mine) f(s, slice, pieces.next({B, H, slice.count}));
  }
}

std::vector<int64_t> slice_counts(const std::vector<Segment>& mine, int ranks, int64_t B, int64_t H, int64_t E) {
  std::vector<int64_t> counts;
  for (int r = 0; r < ranks; ++r) counts.push_back(std::ssize(mine) * B * H * shard_of(E, r, ranks).count);
  return counts;
}

}  // namespace

// in_KBHE = this rank's slice of what all segments give.
void SequenceExchange::slices_out(Staging& staging, const Scan& scan, const Tensor& in_KBHE) {
  const int64_t B = scan.B(), H = scan.H(), E = scan.E(), width = in_KBHE.size(3);
  const int ranks = layout_.ranks();
  const std::vector<Segment> givers = by_rank(layout_, [&](const Segment& s) { return scan.gives(s); });
  const std::vector<Segment> mine =
      by_rank(layout_, [&](const Segment& s) { return s.rank == rank() && scan.gives(s); });
  const std::vector<int64_t> sent_counts = slice_counts(mine, ranks, B, H, E);
  const std::vector<int64_t> received_counts = counts_by_rank(givers, ranks, B * H * width);
  Staging inner = staging.nested();
  const Tensor sent = inner.take({total(sent_counts)}, scan.dtype());
  const Tensor received = inner.take({total(received_counts)}, scan.dtype());
  for_each_slice(mine, ranks, sent, B, H, E, [&](const Segment& s, const Slice& slice, const Tensor& piece) {
    inner.copy(piece, scan.in_sBHE.select(0, local_index(s)).slice(2, slice.begin, slice.count));
  });
  if (inner.measuring()) return;
  sp_.all_to_all(received, received_counts, sent, sent_counts).wait();
  Pieces arrived(received);
  for (const Segment& s : givers) inner.copy(in_KBHE.select(0, s.index), arrived.next({B, H, width}));
  for (const Segment& s : layout_.segments()) {
    if (!scan.gives(s)) inner.zero(in_KBHE.select(0, s.index));
  }
}

// The local segments that take get all slices of their place in the scan.
void SequenceExchange::slices_back(Staging& staging, const Scan& scan, const Tensor& out_KBHE) {
  const int64_t B = scan.B(), H = scan.H(), E = scan.E(), width = out_KBHE.size(3);
  const int ranks = layout_.ranks();
  const std::vector<Segment> takers = by_rank(layout_, [&](const Segment& s) { return scan.takes(s); });
  const std::vector<Segment> mine =
      by_rank(layout_, [&](const Segment& s) { return s.rank == rank() && scan.takes(s); });
  const std::vector<int64_t> sent_counts = counts_by_rank(takers, ranks, B * H * width);
  const std::vector<int64_t> received_counts = slice_counts(mine, ranks, B, H, E);
  Staging inner = staging.nested();
  const Tensor sent = inner.take({total(sent_counts)}, scan.dtype());
  const Tensor received = inner.take({total(received_counts)}, scan.dtype());
  Pieces to_send(sent);
  for (const Segment& s : takers) inner.copy(to_send.next({B, H, width}), out_KBHE.select(0, s.index));
  if (inner.measuring()) return;
  sp_.all_to_all(received, received_counts, sent, sent_counts).wait();
  for_each_slice(mine, ranks, received, B, H, E, [&](const Segment& s, const Slice& slice, const Tensor& piece) {
    inner.copy(scan.out_sBHE.select(0, local_index(s)).slice(2, slice.begin, slice.count), piece);
  });
  for (const Segment& s : segments()) {
    if (!scan.takes(s)) inner.zero(scan.out_sBHE.select(0, local_index(s)));
  }
}

}  // namespace tmamba
