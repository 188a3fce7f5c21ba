// The scan of segment states across ranks. Every rank scans all segments in sequence order, either full states or its
// slice of every state, so the order of the arithmetic does not depend on the layout.
#include <memory>
#include <utility>
#include <vector>

#include "dist/comm/collective_args.h"
#include "dist/sequence/exchange.h"
#include "dist/sequence/exchange_staging.h"
#include "kernels/base/trace_range.h"

namespace tmamba {

// A forward or reverse scan. Segments for which gives() is true contribute their `in`, others contribute zero. Segments
// for which takes() is true get their result in `out`, others get zero.
struct SequenceExchange::Scan {
  LayerLayout layer;
  Tensor out_sBHE;
  ConstTensor in_sBHE;
  ConstTensor decay_sBH;  // forward: log-decays of the local segments; reverse: empty
  Tensor gathered_KBH;    // forward: receives the log-decays of all segments; reverse: empty
  ConstTensor decay_KBH;  // log-decays of all segments
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

// The segments that satisfy a predicate, ordered by rank: the order of shards in a collective.
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

// Number of elements of each rank's shard.
std::vector<int64_t> counts_by_rank(const std::vector<Segment>& segments, int ranks, int64_t elements) {
  std::vector<int64_t> counts(static_cast<size_t>(ranks));
  for (const Segment& s : segments) counts[static_cast<size_t>(s.rank)] += elements;
  return counts;
}

int64_t total(const std::vector<int64_t>& counts) { return shard_begin(counts, static_cast<int>(counts.size())); }

Tensor shard_of_rank(const Tensor& flat, const std::vector<int64_t>& counts, int rank) {
  return flat_slice(flat, shard_begin(counts, rank), counts[static_cast<size_t>(rank)]);
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
           "scan_states: states and log-decays have different types");
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
  TM_CHECK(decays_KBH.dtype() == adjoint_sBHE.dtype(), "scan_adjoints: adjoints and log-decays have different types");
  return start_scan(staging, {.layer = layer,
                              .out_sBHE = outflow_sBHE,
                              .in_sBHE = adjoint_sBHE,
                              .decay_sBH = {},
                              .gathered_KBH = {},
                              .decay_KBH = decays_KBH,
                              .transport = transport,
                              .reverse = true});
}

namespace {

// Calls f(segment, log-decay, state) for the records of all `givers` in `flat`, in the order of a collective. The
// log-decay is an empty tensor if `with_decays` is false.
template <class F>
void for_each_record(const std::vector<Segment>& givers, const Tensor& flat, bool with_decays, int64_t B, int64_t H,
                     int64_t E, F f) {
  FlatCursor cursor(flat);
  for (const Segment& s : givers) {
    const Tensor decay_BH = with_decays ? cursor.next({B, H}) : Tensor();
    f(s, decay_BH, cursor.next({B, H, E}));
  }
}

}  // namespace

// StateTransport::all_gather: every rank scans the full states.
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
      staging, [=, this] { return sp_.all_gather(flat, shard_of_rank(flat, counts, rank()), counts); },
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

// Calls f(segment, elements [begin, begin + count) of its state, their slice of `flat`) for what this rank exchanges
// with the ranks that scan the slices of the E elements: for each rank in turn, all of `mine`, which are local
// segments.
template <class F>
void for_each_slice(const std::vector<Segment>& mine, int ranks, const Tensor& flat, int64_t B, int64_t H, int64_t E,
                    F f) {
  FlatCursor cursor(flat);
  for (int r = 0; r < ranks; ++r) {
    const Slice elements = shard_of(E, r, ranks);
    for (const Segment& s : mine) f(s, elements, cursor.next({B, H, elements.count}));
  }
}

std::vector<int64_t> slice_counts(const std::vector<Segment>& mine, int ranks, int64_t B, int64_t H, int64_t E) {
  std::vector<int64_t> counts;
  for (int r = 0; r < ranks; ++r) counts.push_back(std::ssize(mine) * B * H * shard_of(E, r, ranks).count);
  return counts;
}

}  // namespace

// StateTransport::sliced: rank j scans slice j of every state. send() distributes the slices of what the segments give
// and the log-decays, scan_slice() scans and returns the slices that the segments take, receive() unpacks them.
struct SequenceExchange::SlicedScan {
  // A flat staging tensor and the number of elements that belong to each rank.
  struct Staged {
    Tensor flat;
    std::vector<int64_t> counts;
  };

  SequenceExchange& exchange;
  Staging staging;
  Scan scan;
  int ranks = exchange.layout_.ranks();
  int64_t width = shard_of(scan.E(), exchange.rank(), ranks).count;  // elements of this rank's slice of a state
  bool decays = scan.gathers_decays();
  std::vector<Segment> givers = by_rank(exchange.layout_, [&](const Segment& s) { return scan.gives(s); });
  std::vector<Segment> takers = by_rank(exchange.layout_, [&](const Segment& s) { return scan.takes(s); });
  std::vector<Segment> my_givers = local(givers), my_takers = local(takers);

  // Staging memory, taken in the order of the declarations.
  Tensor in_KBHE = staging.take({std::ssize(exchange.layout_.segments()), scan.B(), scan.H(), width}, scan.dtype());
  Tensor out_KBHE = staging.take_like(in_KBHE);
  Staged all_decays = take(counts_by_rank(givers, ranks, decays ? scan.B() * scan.H() : 0));
  Staged given = take(slice_counts(my_givers, ranks, scan.B(), scan.H(), scan.E()));
  Staged arriving = take(counts_by_rank(givers, ranks, scan.B() * scan.H() * width));
  Staged scanned = take(counts_by_rank(takers, ranks, scan.B() * scan.H() * width));
  Staged taken = take(slice_counts(my_takers, ranks, scan.B(), scan.H(), scan.E()));

  std::vector<Segment> local(const std::vector<Segment>& all) const {
    std::vector<Segment> mine;
    for (const Segment& s : all) {
      if (s.rank == exchange.rank()) mine.push_back(s);
    }
    return mine;
  }
  Staged take(std::vector<int64_t> counts) const {
    const Tensor flat = staging.take({total(counts)}, scan.dtype());
    return {flat, std::move(counts)};
  }
  int64_t row(const Segment& s) const { return exchange.local_index(s); }

  Pending::Works send() {
    Pending::Works works;
    const int64_t B = scan.B(), H = scan.H();
    Communicator& sp = exchange.sp_;
    if (decays) {
      FlatCursor cursor(all_decays.flat);
      for (const Segment& s : givers) {
        const Tensor decay_BH = cursor.next({B, H});
        if (s.rank == exchange.rank()) staging.copy(decay_BH, scan.decay_sBH.select(0, row(s)));
      }
      works.push_back(sp.all_gather(all_decays.flat, shard_of_rank(all_decays.flat, all_decays.counts, exchange.rank()),
                                    all_decays.counts));
    }
    for_each_slice(my_givers, ranks, given.flat, B, H, scan.E(),
                   [&](const Segment& s, const Slice& elements, const Tensor& slice) {
                     staging.copy(slice, scan.in_sBHE.select(0, row(s)).slice(2, elements.begin, elements.count));
                   });
    works.push_back(sp.all_to_all(arriving.flat, arriving.counts, given.flat, given.counts));
    return works;
  }

  Pending::Works scan_slice() {
    const int64_t B = scan.B(), H = scan.H();
    for (const Segment& s : exchange.layout_.segments()) {
      if (scan.gives(s)) continue;
      staging.zero(in_KBHE.select(0, s.index));
      if (decays) staging.zero(scan.gathered_KBH.select(0, s.index));
    }
    FlatCursor slices(arriving.flat), log_decays(all_decays.flat);
    for (const Segment& s : givers) {
      staging.copy(in_KBHE.select(0, s.index), slices.next({B, H, width}));
      if (decays) staging.copy(scan.gathered_KBH.select(0, s.index), log_decays.next({B, H}));
    }
    staging.scan(out_KBHE, in_KBHE, scan.decay_KBH, scan.reverse);
    FlatCursor cursor(scanned.flat);
    for (const Segment& s : takers) staging.copy(cursor.next({B, H, width}), out_KBHE.select(0, s.index));
    Pending::Works works;
    works.push_back(exchange.sp_.all_to_all(taken.flat, taken.counts, scanned.flat, scanned.counts));
    return works;
  }

  Pending::Works receive() {
    for_each_slice(my_takers, ranks, taken.flat, scan.B(), scan.H(), scan.E(),
                   [&](const Segment& s, const Slice& elements, const Tensor& slice) {
                     staging.copy(scan.out_sBHE.select(0, row(s)).slice(2, elements.begin, elements.count), slice);
                   });
    for (const Segment& s : exchange.segments()) {
      if (!scan.takes(s)) staging.zero(scan.out_sBHE.select(0, row(s)));
    }
    return {};
  }
};

Pending SequenceExchange::start_scan(Staging staging, const Scan& scan) {
  if (sp_.size() == 1 || scan.transport != StateTransport::sliced) return gathered_scan(staging, scan);
  const auto sliced = std::make_shared<SlicedScan>(SlicedScan{.exchange = *this, .staging = staging, .scan = scan});
  if (staging.measuring()) return {};
  return Pending({[sliced] { return sliced->send(); }, [sliced] { return sliced->scan_slice(); },
                  [sliced] { return sliced->receive(); }});
}

}  // namespace tmamba
