// The scan of segment states across ranks. Every rank scans all segments in sequence order, either whole states or its
// slice of every state: the order of the arithmetic does not depend on who owns what.
#include <vector>

#include "dist/comm/collective_args.h"
#include "dist/sequence/exchange.h"
#include "dist/sequence/exchange_staging.h"
#include "kernels/base/trace_range.h"

namespace tmamba {

// One scan: forward, or against the sequence. Segments that give deliver `in` into it, others count as zero; those that
// take get their place of its result, others zero.
struct SequenceExchange::Scan {
  LayerLayout layer;
  Tensor out_sBHE;
  ConstTensor in_sBHE;
  ConstTensor decay_sBH;  // forward: of the local segments; against the sequence: empty
  Tensor gathered_KBH;    // forward: decay of all segments, to be written
  ConstTensor decay_KBH;  // decay of all segments
  StateTransport transport = StateTransport::all_gather;
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

Pending SequenceExchange::scan_states(Arena& scratch, const LayerLayout& layer, StateTransport transport,
                                      Tensor inflow_sBHE, Tensor decays_KBH, ConstTensor state_sBHE,
                                      ConstTensor decay_sBH) {
  const TraceRange trace("scan_states");
  TM_CHECK(state_sBHE.dims() == 4, "scan_states: states are [s, B, H, E], got ", state_sBHE.shape());
  const int64_t s = std::ssize(segments()), K = std::ssize(layout_.segments());
  const int64_t B = state_sBHE.size(1), H = state_sBHE.size(2), E = state_sBHE.size(3);
  check_sizes("scan_states", "the states", state_sBHE, {s, B, H, E});
  check_sizes("scan_states", "the inflow", inflow_sBHE, {s, B, H, E});
  const Staging staging(scratch, ops_);
  if (!scans(layer)) {
    staging.zero(inflow_sBHE);
    return {};
  }
  check_sizes("scan_states", "the log-decays", decay_sBH, {s, B, H});
  check_sizes("scan_states", "the log-decays of all segments", decays_KBH, {K, B, H});
  TM_CHECK(decay_sBH.dtype() == state_sBHE.dtype() && decays_KBH.dtype() == state_sBHE.dtype(),
           "scan_states: states and log-decays of more than one type");
  return start_scan(staging, {.layer = layer,
                              .out_sBHE = inflow_sBHE,
                              .in_sBHE = state_sBHE,
                              .decay_sBH = decay_sBH,
                              .gathered_KBH = decays_KBH,
                              .decay_KBH = decays_KBH,
                              .transport = transport,
                              .reverse = false});
}

Pending SequenceExchange::scan_adjoints(Arena& scratch, const LayerLayout& layer, StateTransport transport,
                                        Tensor outflow_sBHE, ConstTensor adjoint_sBHE, ConstTensor decays_KBH) {
  const TraceRange trace("scan_adjoints");
  TM_CHECK(adjoint_sBHE.dims() == 4, "scan_adjoints: adjoints are [s, B, H, E], got ", adjoint_sBHE.shape());
  const int64_t s = std::ssize(segments()), K = std::ssize(layout_.segments());
  const int64_t B = adjoint_sBHE.size(1), H = adjoint_sBHE.size(2), E = adjoint_sBHE.size(3);
  check_sizes("scan_adjoints", "the adjoints", adjoint_sBHE, {s, B, H, E});
  check_sizes("scan_adjoints", "the outflow", outflow_sBHE, {s, B, H, E});
  const Staging staging(scratch, ops_);
  if (!scans(layer)) {
    staging.zero(outflow_sBHE);
    return {};
  }
  check_sizes("scan_adjoints", "the log-decays of all segments", decays_KBH, {K, B, H});
  TM_CHECK(decays_KBH.dtype() == adjoint_sBHE.dtype(), "scan_adjoints: adjoints and log-decays of more than one type");
  return start_scan(staging, {.layer = layer,
                              .out_sBHE = outflow_sBHE,
                              .in_sBHE = adjoint_sBHE,
                              .decay_sBH = {},
                              .gathered_KBH = {},
                              .decay_KBH = decays_KBH,
                              .transport = transport,
                              .reverse = true});
}

Pending SequenceExchange::start_scan(Staging staging, const Scan& scan) {
  return sp_.size() > 1 && scan.transport == StateTransport::sliced ? sliced_scan(staging, scan)
                                                                    : gathered_scan(staging, scan);
}

namespace {

// Calls f(segment, log-decay and state of its record) over what all segments give, in the order of a collective.
// Records have no log-decay, an empty tensor, where `with_decays` is false.
template <class F>
void for_each_record(const std::vector<Segment>& givers, const Tensor& flat, bool with_decays, int64_t B, int64_t H,
                     int64_t E, F f) {
  Pieces pieces(flat);
  for (const Segment& s : givers) {
    const Tensor decay_BH = with_decays ? pieces.next({B, H}) : Tensor();
    f(s, decay_BH, pieces.next({B, H, E}));
  }
}

}  // namespace

// Whole states: all ranks scan all of them.
Pending SequenceExchange::gathered_scan(Staging staging, const Scan& scan) {
  const int64_t K = std::ssize(layout_.segments()), B = scan.B(), H = scan.H(), E = scan.E();
  const bool decays = scan.gathers_decays();
  const Tensor in_KBHE = staging.take({K, B, H, E}, scan.dtype()), out_KBHE = staging.take_like(in_KBHE);
  const std::vector<Segment> givers = by_rank(layout_, [&](const Segment& s) { return scan.gives(s); });
  for (const Segment& s : layout_.segments()) {
    if (!scan.gives(s)) {
      staging.zero(in_KBHE.select(0, s.index));
      if (decays) staging.zero(scan.gathered_KBH.select(0, s.index));
    } else if (s.rank == rank()) {
      staging.copy(in_KBHE.select(0, s.index), scan.in_sBHE.select(0, local_index(s)));
      if (decays) staging.copy(scan.gathered_KBH.select(0, s.index), scan.decay_sBH.select(0, local_index(s)));
    }
  }
  const auto scan_all = [=, this] {
    staging.scan(out_KBHE, in_KBHE, scan.decay_KBH, scan.reverse);
    for (const Segment& s : segments()) {
      const Tensor out = scan.out_sBHE.select(0, local_index(s));
      if (scan.takes(s)) {
        staging.copy(out, out_KBHE.select(0, s.index));
      } else {
        staging.zero(out);
      }
    }
  };
  if (sp_.size() == 1) {
    scan_all();
    return {};
  }

  const std::vector<int64_t> counts = counts_by_rank(givers, layout_.ranks(), B * H * (decays ? E + 1 : E));
  const Tensor flat = staging.take({total(counts)}, scan.dtype());
  for_each_record(givers, flat, decays, B, H, E,
                  [&](const Segment& s, const Tensor& decay_BH, const Tensor& state_BHE) {
                    if (s.rank != rank()) return;
                    if (decays) staging.copy(decay_BH, scan.decay_sBH.select(0, local_index(s)));
                    staging.copy(state_BHE, scan.in_sBHE.select(0, local_index(s)));
                  });
  return start_one(
      staging, [=, this] { return sp_.all_gather(flat, piece_of(flat, counts, rank()), counts); },
      [=, this] {
        for_each_record(givers, flat, decays, B, H, E,
                        [&](const Segment& s, const Tensor& decay_BH, const Tensor& state_BHE) {
                          if (s.rank == rank()) return;
                          if (decays) staging.copy(scan.gathered_KBH.select(0, s.index), decay_BH);
                          staging.copy(in_KBHE.select(0, s.index), state_BHE);
                        });
        scan_all();
      });
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

// Rank j scans slice j of every state: it gets that slice of what all segments give, and hands the slices of what they
// take back. The log-decays go to all.
Pending SequenceExchange::sliced_scan(Staging staging, const Scan& scan) {
  const int64_t K = std::ssize(layout_.segments()), B = scan.B(), H = scan.H(), E = scan.E();
  const int ranks = layout_.ranks();
  const int64_t width = shard_of(E, rank(), ranks).count;
  const bool decays = scan.gathers_decays();
  const auto own = [&](const std::vector<Segment>& all) {
    std::vector<Segment> mine;
    for (const Segment& s : all) {
      if (s.rank == rank()) mine.push_back(s);
    }
    return mine;
  };
  const std::vector<Segment> givers = by_rank(layout_, [&](const Segment&s) { return scan.gives(s); }),
                             takers = by_rank(layout_, [&](const Segment&s) { return scan.takes(s); }),
                             my_givers = own(givers), my_takers = own(takers);
  const Tensor in_KBHE = staging.take({K, B, H, width}, scan.dtype()), out_KBHE = staging.take_like(in_KBHE);

  const std::vector<int64_t> decay_counts = counts_by_rank(givers, ranks, decays ? B * H : 0);
  const Tensor all_decays = staging.take({total(decay_counts)}, scan.dtype());
  const std::vector<int64_t> given_counts = slice_counts(my_givers, ranks, B, H, E),
                             arriving_counts = counts_by_rank(givers, ranks, B * H * width);
  const Tensor given = staging.take({total(given_counts)}, scan.dtype()),
               arriving = staging.take({total(arriving_counts)}, scan.dtype());
  const std::vector<int64_t> scanned_counts = counts_by_rank(takers, ranks, B * H * width),
                             taken_counts = slice_counts(my_takers, ranks, B, H, E);
  const Tensor scanned = staging.take({total(scanned_counts)}, scan.dtype()),
               taken = staging.take({total(taken_counts)}, scan.dtype());
  if (staging.measuring()) return {};

  const auto give = [=, this] {
    Pending::Works works;
    if (decays) {
      Pieces pieces(all_decays);
      for (const Segment& s : givers) {
        const Tensor decay_BH = pieces.next({B, H});
        if (s.rank == rank()) staging.copy(decay_BH, scan.decay_sBH.select(0, local_index(s)));
      }
      works.push_back(sp_.all_gather(all_decays, piece_of(all_decays, decay_counts, rank()), decay_counts));
    }
    for_each_slice(my_givers, ranks, given, B, H, E, [&](const Segment& s, const Slice& slice, const Tensor& piece) {
      staging.copy(piece, scan.in_sBHE.select(0, local_index(s)).slice(2, slice.begin, slice.count));
    });
    works.push_back(sp_.all_to_all(arriving, arriving_counts, given, given_counts));
    return works;
  };
  const auto scan_slice = [=, this] {
    for (const Segment& s : layout_.segments()) {
      if (scan.gives(s)) continue;
      staging.zero(in_KBHE.select(0, s.index));
      if (decays) staging.zero(scan.gathered_KBH.select(0, s.index));
    }
    Pieces slices(arriving), decay_pieces(all_decays);
    for (const Segment& s : givers) {
      staging.copy(in_KBHE.select(0, s.index), slices.next({B, H, width}));
      if (decays) staging.copy(scan.gathered_KBH.select(0, s.index), decay_pieces.next({B, H}));
    }
    staging.scan(out_KBHE, in_KBHE, scan.decay_KBH, scan.reverse);
    Pieces pieces(scanned);
    for (const Segment& s : takers) staging.copy(pieces.next({B, H, width}), out_KBHE.select(0, s.index));
    Pending::Works works;
    works.push_back(sp_.all_to_all(taken, taken_counts, scanned, scanned_counts));
    return works;
  };
  const auto take = [=, this] {
    for_each_slice(my_takers, ranks, taken, B, H, E, [&](const Segment& s, const Slice& slice, const Tensor& piece) {
      staging.copy(scan.out_sBHE.select(0, local_index(s)).slice(2, slice.begin, slice.count), piece);
    });
    for (const Segment& s : segments()) {
      if (!scan.takes(s)) staging.zero(scan.out_sBHE.select(0, local_index(s)));
    }
    return Pending::Works();
  };
  return Pending({give, scan_slice, take});
}

}  // namespace tmamba
