#include "dist/planner/cost_work.h"

#include <algorithm>

namespace tmamba {

namespace {

// n (n + 1) / 2: pairs of a query and a key not after it, in n tokens.
int64_t triangle(int64_t n) { return n * (n + 1) / 2; }

int64_t causal_chunk_pairs(int64_t tokens, int64_t chunk) {
  return tokens / chunk * triangle(chunk) + triangle(tokens % chunk);
}

// Counts keys and their gradients, from the last segment with queries to the first: a rank needs the keys of every
// segment up to its last one with queries.
void count_keys(const SequenceSplit& split, const LayoutSpec& spec, int64_t transpoint,
                std::vector<RankTraffic>& traffic) {
  std::vector<int64_t> own(traffic.size(), 0);
  std::vector<bool> seen(traffic.size(), false);  // the rank has queries in a later segment
  int64_t ranks_after = 0;
  const int64_t last = transpoint > 0 ? split.segment_at(transpoint - 1) : -1;
  for (int64_t k = last; k >= 0; --k) {
    const auto owner = static_cast<size_t>(spec.rank_of(k));
    const int64_t begin = split.begin(k), end = std::min(split.begin(k + 1), transpoint);
    own[owner] += end - begin;
    traffic[owner].key_grad_tokens_cast += (end - begin) * (ranks_after - (seen[owner] ? 1 : 0));
    traffic[owner].key_grad_tokens_gather += (end - begin) * (spec.ranks - 1);
    if (!seen[owner]) {
      seen[owner] = true;
      ++ranks_after;
      traffic[owner].key_tokens_cast = end;
    }
  }
  for (size_t r = 0; r < traffic.size(); ++r) {
    traffic[r].key_tokens_cast -= own[r];
    traffic[r].key_tokens_gather = transpoint - own[r];
  }
  // One rank holds all of the prefix: the plan has no such exchange.
  if (ranks_after <= 1) {
    for (RankTraffic& t : traffic) t.key_tokens_gather = t.key_grad_tokens_gather = 0;
  }
}

}  // namespace

std::vector<RankWork> rank_work(const LayoutSpec& spec, int64_t transpoint) {
  const SequenceSplit split(spec);
  std::vector<RankWork> work(static_cast<size_t>(spec.ranks));
  for (int64_t k = 0; k < split.segments; ++k) {
    RankWork& w = work[static_cast<size_t>(spec.rank_of(k))];
    const int64_t begin = split.begin(k), end = split.begin(k + 1);
    const int64_t middle = std::clamp(transpoint, begin, end);
    const int64_t attention = middle - begin, ssm = end - middle;
    const bool converts = attention > 0 && transpoint < split.tokens;
    w.tokens += end - begin;
    w.attention_tokens += attention;
    w.attention_pairs += triangle(middle) - triangle(begin);
    w.ssm_tokens += ssm;
    w.chunk_pairs += causal_chunk_pairs(ssm, split.chunk);
    w.kernel_ranges += (attention > 0) + (ssm > 0) + converts;
  }
  return work;
}

std::vector<RankTraffic> rank_traffic(const LayoutSpec& spec, int64_t transpoint) {
  const SequenceSplit split(spec);
  std::vector<RankTraffic> traffic(static_cast<size_t>(spec.ranks));
  int64_t feeding = 0, adjoints = 0;
  for (int64_t k = 0; k < split.segments; ++k) {
    const int owner = spec.rank_of(k);
    RankTraffic& t = traffic[static_cast<size_t>(owner)];
    t.tokens_own += split.begin(k + 1) - split.begin(k);
    if (k > 0 && spec.rank_of(k - 1) != owner) {
      t.halo_rows += spec.conv_width - 1;
      traffic[static_cast<size_t>(spec.rank_of(k - 1))].halo_grad_rows += spec.conv_width - 1;
    }
    if (transpoint < split.tokens && k + 1 < split.segments) ++t.feeding_own, ++feeding;
    if (k > 0 && transpoint < split.tokens) ++t.inflow_own;
    if (k > 0 && split.begin(k + 1) > transpoint) ++t.adjoints_own, ++adjoints;
  }
  for (RankTraffic& t : traffic) {
    t.feeding_others = feeding - t.feeding_own;
    t.adjoints_others = adjoints - t.adjoints_own;
    t.tokens_others = split.tokens - t.tokens_own;
    if (transpoint < split.tokens) t.dt_tokens_own = t.tokens_own, t.dt_tokens_others = t.tokens_others;
  }
  count_keys(split, spec, transpoint, traffic);
  return traffic;
}

Counts counts_of(const RankWork& work, int ranks, int64_t transpoint) {
  const auto number = [](int64_t n) { return static_cast<double>(n); };
  Counts counts;
  counts[Term::constant] = 1;
  counts[Term::attention_tokens] = number(work.attention_tokens);
  counts[Term::ssm_tokens] = number(work.ssm_tokens);
  counts[Term::attention_pairs] = number(work.attention_pairs);
  counts[Term::chunk_pairs] = number(work.chunk_pairs);
  counts[Term::head_share] = 1.0 / ranks;
  counts[Term::head_attention_tokens] = number(transpoint) / ranks;
  return counts;
}

int64_t exchange_bytes(const PlanDims& dims, const Transport& transport, ExchangeKind kind, bool backward,
                       const RankTraffic& traffic, int rank) {
  const auto bytes = [&](Payload what, int64_t count) { return payload_bytes(dims, what, {0, count}); };
  const bool sliced = transport.state == StateTransport::sliced, gather = transport.keys == KeyTransport::gather;
  if (dims.sp == 1 || is_of_heads(kind) != transport.head_parallel || !is_made(dims, kind, backward)) return 0;
  const int64_t state = dims.head_dim * dims.head_dim, slice = state_slice(dims, rank).size();
  const int64_t other_ranks = dims.sp - 1;
  switch (kind) {
    case ExchangeKind::halo:
      return bytes(Payload::halo, traffic.halo_rows);
    case ExchangeKind::halo_grads:
      return bytes(Payload::halo_grad, traffic.halo_grad_rows);
    case ExchangeKind::keys:
      return 2 * bytes(Payload::key, gather ? traffic.key_tokens_gather : traffic.key_tokens_cast);
    case ExchangeKind::key_grads:
      return 2 * bytes(Payload::key_grad, gather ? traffic.key_grad_tokens_gather : traffic.key_grad_tokens_cast);
    case ExchangeKind::summaries:
      return sliced ? 0 : traffic.feeding_others * (bytes(Payload::state, state) + bytes(Payload::log_decay, 1));
    case ExchangeKind::decays:
      return sliced ? traffic.feeding_others * bytes(Payload::log_decay, 1) : 0;
    case ExchangeKind::state_slices:
      return sliced ? traffic.feeding_others * bytes(Payload::state, slice) : 0;
    case ExchangeKind::inflow_slices:
      return sliced ? traffic.inflow_own * bytes(Payload::inflow, state - slice) : 0;
    case ExchangeKind::adjoints:
      return sliced ? 0 : traffic.adjoints_others * bytes(Payload::adjoint, state);
    case ExchangeKind::adjoint_slices:
      return sliced ? traffic.adjoints_others * bytes(Payload::adjoint, slice) : 0;
    case ExchangeKind::outflow_slices:
      return sliced ? traffic.feeding_own * bytes(Payload::outflow_grad, state - slice) : 0;
    case ExchangeKind::to_heads:
      return bytes(Payload::qkv, traffic.tokens_others) + bytes(Payload::dt, traffic.dt_tokens_others);
    case ExchangeKind::to_tokens:
      return other_ranks * bytes(Payload::y, traffic.tokens_own);
    case ExchangeKind::grads_to_heads:
      return bytes(Payload::y_grad, traffic.tokens_others);
    case ExchangeKind::grads_to_tokens:
      return other_ranks *
             (bytes(Payload::qkv_grad, traffic.tokens_own) + bytes(Payload::dt_grad, traffic.dt_tokens_own));
  }
  throw Error("unknown exchange");
}

namespace {

// Rows of keys: those gathered and their values, the gradients of both, and the messages of all four.
int64_t key_rows(const PlanDims& dims, const RankWork& work, const RankTraffic& traffic, const Transport& transport,
                 int64_t transpoint) {
  const int64_t received = traffic.key_tokens_cast, own = work.attention_tokens, seen = own > 0 ? own + received : 0;
  if (transport.keys == KeyTransport::gather) return 4 * seen + 4 * transpoint;
  // With several sequences in a micro-batch the tokens of a segment are not contiguous and are packed.
  const bool packs = dims.batch > 1;
  return 4 * seen + (packs ? 4 : 0) * received + (packs ? 2 : 1) * own + 2 * traffic.key_grad_tokens_cast;
}

}  // namespace

ExchangeMemory exchange_memory(const PlanDims& dims, const Transport& transport, const RankWork& work,
                               const RankTraffic& traffic, int64_t transpoint) {
  const int64_t segments = dims.layout().segments_per_rank(), all_segments = dims.layout().segments();
  if (all_segments == 1 || (transport.head_parallel && dims.sp > 1)) return {};
  const auto bytes = [&](Payload what, int64_t count) {
    return static_cast<double>(payload_bytes(dims, what, {0, count}));
  };
  const double halo = bytes(Payload::halo, segments * (dims.conv_width - 1));
  const double state = bytes(Payload::state, dims.head_dim * dims.head_dim);
  ExchangeMemory memory{.kept = halo, .scratch = 2 * halo};
  if (transpoint < dims.tokens) {
    memory.kept += bytes(Payload::log_decay, all_segments) + static_cast<double>(segments) * state;
    // Adjoints and outflows of the rank's segments; input, output and messages of the scan over segments.
    const int64_t staged = transport.state == StateTransport::sliced ? 6 * segments : 3 * all_segments;
    memory.scratch += static_cast<double>(2 * segments + (dims.sp > 1 ? staged : 0)) * state;
  }
  if (dims.sp > 1 && transpoint > 0 && traffic.key_tokens_gather + work.attention_tokens > 0) {
    memory.scratch += bytes(Payload::key, key_rows(dims, work, traffic, transport, transpoint));
  }
  return memory;
}

}  // namespace tmamba
