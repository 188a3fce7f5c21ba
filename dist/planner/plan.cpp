#include "dist/planner/plan.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <tuple>

#include "dist/comm/shard.h"

namespace tmamba {

namespace {

// Writes the two sides of every message of one exchange.
class ExchangeWriter {
 public:
  ExchangeWriter(Plan& plan, const Exchange& exchange) : plan_(plan), index_(static_cast<int>(plan.exchanges.size())) {
    plan_.exchanges.push_back(exchange);
    for (auto& program : plan_.programs) program.push_back({.exchange = index_, .sends = {}, .receives = {}});
  }

  // Nothing is sent to oneself, and nothing empty.
  void transfer(Payload what, int from, int to, int segment, const TokenRange& range) {
    if (from == to || range.empty()) return;
    const int64_t bytes = payload_bytes(plan_.dims, what, range);
    step(from).sends.push_back({what, to, segment, range, bytes});
    step(to).receives.push_back({what, from, segment, range, bytes});
  }

  ~ExchangeWriter() {
    for (auto& program : plan_.programs) {
      for (auto* messages : {&program.back().sends, &program.back().receives}) {
        std::sort(messages->begin(), messages->end(), message_before);
      }
    }
  }

  ExchangeWriter(const ExchangeWriter&) = delete;
  ExchangeWriter& operator=(const ExchangeWriter&) = delete;

 private:
  PlanStep& step(int rank) { return plan_.programs[static_cast<size_t>(rank)].back(); }

  Plan& plan_;
  int index_;
};

// Appends the exchanges of one layer to a plan.
class LayerPlanner {
 public:
  LayerPlanner(Plan& plan, const SequenceLayout& layout, int layer)
      : plan_(plan),
        layout_(layout),
        at_(layout.layer(layer)),
        layer_(layer),
        transport_(plan.transports[static_cast<size_t>(layer)]) {}

  void forward() {
    if (transport_.head_parallel) return mix_by_heads();
    exchange_halo(ExchangeKind::halo);
    if (at_.exchanges_keys()) from_owners(ExchangeKind::keys, {Payload::key, Payload::value}, keys());
    if (!at_.exchanges_state()) return;
    if (transport_.state == StateTransport::all_gather) {
      from_owners(ExchangeKind::summaries, {Payload::log_decay, Payload::state},
                  whole_states(&LayerLayout::feeds_state));
      return;
    }
    from_owners(ExchangeKind::decays, {Payload::log_decay}, whole_states(&LayerLayout::feeds_state));
    from_owners(ExchangeKind::state_slices, {Payload::state}, state_slices(&LayerLayout::feeds_state));
    to_owners(ExchangeKind::inflow_slices, {Payload::inflow}, state_slices(&LayerLayout::needs_inflow));
  }

  void backward() {
    backward_ = true;
    if (transport_.head_parallel) {
      if (is_repeated(plan_.dims, ExchangeKind::to_heads)) mix_by_heads();
      from_owners(ExchangeKind::grads_to_heads, {Payload::y_grad}, all_tokens);
      to_owners(ExchangeKind::grads_to_tokens, with_dt(Payload::qkv_grad, Payload::dt_grad), all_tokens);
      return;
    }
    if (at_.exchanges_keys() && is_repeated(plan_.dims, ExchangeKind::keys)) {
      from_owners(ExchangeKind::keys, {Payload::key, Payload::value}, keys());
    }
    if (at_.exchanges_state()) state_gradients();
    if (at_.exchanges_keys()) {
      to_owners(ExchangeKind::key_grads, {Payload::key_grad, Payload::value_grad}, keys());
    }
    exchange_halo(ExchangeKind::halo_grads);
  }

 private:
  // What of a segment's payload passes between its owner and a rank; empty for nothing.
  using RangeOf = std::function<TokenRange(const Segment& segment, Payload what, int rank)>;
  using Condition = bool (LayerLayout::*)(const Segment&) const;

  static TokenRange all_tokens(const Segment& s, Payload, int) { return s.range(); }

  // The keys of a segment that a rank gets: what its queries need, or all of the prefix.
  RangeOf keys() const {
    return [this](const Segment& s, Payload, int rank) {
      return transport_.keys == KeyTransport::gather ? at_.attention_part(s) : at_.keys_needed(rank, s);
    };
  }
  RangeOf whole_states(Condition has) const {
    return [this, has](const Segment& s, Payload what, int) -> TokenRange {
      const int64_t state = plan_.dims.head_dim * plan_.dims.head_dim;
      return {0, !(at_.*has)(s) ? 0 : what == Payload::log_decay ? 1 : state};
    };
  }
  RangeOf state_slices(Condition has) const {
    return [this, has](const Segment& s, Payload, int rank) {
      return (at_.*has)(s) ? state_slice(plan_.dims, rank) : TokenRange{};
    };
  }
  // Step sizes only where there is a scan.
  std::vector<Payload> with_dt(Payload rows, Payload dt) const {
    return at_.transpoint() < layout_.tokens() ? std::vector{rows, dt} : std::vector{rows};
  }

  void mix_by_heads() {
    from_owners(ExchangeKind::to_heads, with_dt(Payload::qkv, Payload::dt), all_tokens);
    to_owners(ExchangeKind::to_tokens, {Payload::y}, all_tokens);
  }

  // The log-decays are kept from forward.
  void state_gradients() {
    if (transport_.state == StateTransport::all_gather) {
      from_owners(ExchangeKind::adjoints, {Payload::adjoint}, whole_states(&LayerLayout::delivers_adjoint));
      return;
    }
    from_owners(ExchangeKind::adjoint_slices, {Payload::adjoint}, state_slices(&LayerLayout::delivers_adjoint));
    to_owners(ExchangeKind::outflow_slices, {Payload::outflow_grad}, state_slices(&LayerLayout::feeds_state));
  }

  ExchangeWriter writer(ExchangeKind kind) {
    return {plan_, {layer_, backward_, kind, collective_of(kind, transport_)}};
  }

  void exchange_halo(ExchangeKind kind) {
    ExchangeWriter out = writer(kind);
    for (const Halo& h : layout_.halos()) {
      if (backward_) {
        out.transfer(Payload::halo_grad, h.to_rank, h.from_rank, h.to_segment, h.rows);
      } else {
        out.transfer(Payload::halo, h.from_rank, h.to_rank, h.to_segment, h.rows);
      }
    }
  }

  // From the owner of every segment to every other rank.
  void from_owners(ExchangeKind kind, const std::vector<Payload>& payloads, const RangeOf& range) {
    ExchangeWriter out = writer(kind);
    for_each_pair(payloads, [&](const Segment& s, Payload what, int rank) {
      out.transfer(what, s.rank, rank, s.index, range(s, what, rank));
    });
  }
  // The other way.
  void to_owners(ExchangeKind kind, const std::vector<Payload>& payloads, const RangeOf& range) {
    ExchangeWriter out = writer(kind);
    for_each_pair(payloads, [&](const Segment& s, Payload what, int rank) {
      out.transfer(what, rank, s.rank, s.index, range(s, what, rank));
    });
  }
  void for_each_pair(const std::vector<Payload>& payloads, const auto& visit) const {
    for (const Segment& s : layout_.segments()) {
      for (int rank = 0; rank < layout_.ranks(); ++rank) {
        for (Payload what : payloads) visit(s, what, rank);
      }
    }
  }

  Plan& plan_;
  const SequenceLayout& layout_;
  LayerLayout at_;
  int layer_;
  Transport transport_;
  bool backward_ = false;
};

}  // namespace

bool message_before(const PlanMessage& a, const PlanMessage& b) {
  return std::tie(a.peer, a.segment, a.what, a.range.begin, a.range.end) <
         std::tie(b.peer, b.segment, b.what, b.range.begin, b.range.end);
}

LayoutSpec PlanDims::layout() const {
  return {.tokens = tokens,
          .ranks = sp,
          .fold = fold,
          .chunk = chunk,
          .conv_width = static_cast<int>(conv_width),
          .transpoints = transpoints,
          .grain = grain};
}

std::string dims_problem(const PlanDims& dims) {
  const std::pair<const char*, int64_t> positive[] = {
      {"model.dim", dims.dim},           {"model.heads", dims.heads},
      {"head width", dims.head_dim},     {"model.ffn", dims.ffn},
      {"model.vocab", dims.vocab},       {"model.layers", dims.layers()},
      {"train.micro_batch", dims.batch}, {"activation bytes", dims.activation_bytes},
      {"state bytes", dims.state_bytes}, {"parallel.tp", dims.tp},
      {"parallel.sp", dims.sp},          {"parallel.dp", dims.dp}};
  for (const auto& [name, value] : positive) {
    if (value < 1) return str(name, " = ", value, " must be at least 1");
  }
  const std::pair<const char*, int64_t> divided[] = {{"model.heads", dims.heads}, {"model.ffn", dims.ffn}};
  for (const auto& [name, value] : divided) {
    if (value % dims.tp != 0) {
      return str("parallel.tp = ", dims.tp, " does not divide ", name, " = ", value,
                 ": set parallel.tp to a divisor of ", std::gcd(dims.heads, dims.ffn));
    }
  }
  if (const std::string problem = ZeroSharding::stage_problem(dims.zero); !problem.empty()) return problem;
  if (dims.global_batch < 0 || dims.global_batch % (dims.batch * dims.dp) != 0) {
    return str("train.global_batch = ", dims.global_batch,
               " is not a multiple of train.micro_batch * parallel.dp = ", dims.batch, " * ", dims.dp);
  }
  for (int64_t p : dims.transpoints) {
    if (p < 0 || p > dims.tokens) {
      return str("TransPoint ", p, " is outside the sequence of ", dims.tokens,
                 " tokens: change model.schedule or data.seq_len");
    }
  }
  return split_problem(dims.layout());
}

std::string transport_problem(const PlanDims& dims, const Transport& transport) {
  if (transport.head_parallel && (dims.heads / dims.tp) % dims.sp != 0) {
    return str("parallel.transport = head_parallel needs parallel.sp = ", dims.sp, " to divide the ",
               dims.heads / dims.tp, " heads of a tensor-parallel rank: lower parallel.sp or take another transport");
  }
  return "";
}

TokenRange state_slice(const PlanDims& dims, int rank) {
  const Slice slice = shard_of(dims.head_dim * dims.head_dim, rank, dims.sp);
  return {slice.begin, slice.end()};
}

Plan make_plan(const PlanDims& dims, const Transport& transport) {
  return make_plan(dims, std::vector<Transport>(dims.transpoints.size(), transport));
}

Plan make_plan(const PlanDims& dims, const std::vector<Transport>& transports) {
  if (const std::string problem = dims_problem(dims); !problem.empty()) throw UserError(problem);
  TM_CHECK(transports.size() == dims.transpoints.size(), transports.size(), " transports for ", dims.layers(),
           " layers");
  for (const Transport& transport : transports) {
    if (const std::string problem = transport_problem(dims, transport); !problem.empty()) throw UserError(problem);
  }
  Plan plan{.dims = dims, .transports = transports, .exchanges = {}, .programs = {}};
  plan.programs.resize(static_cast<size_t>(dims.sp));
  if (dims.sp == 1) return plan;
  const SequenceLayout layout(dims.layout());
  for (int l = 0; l < layout.layers(); ++l) LayerPlanner(plan, layout, l).forward();
  for (int l = layout.layers() - 1; l >= 0; --l) LayerPlanner(plan, layout, l).backward();
  return plan;
}

int64_t bytes_received(const Plan& plan, int exchange, int rank) {
  int64_t bytes = 0;
  for (const PlanStep& step : plan.programs.at(static_cast<size_t>(rank))) {
    if (step.exchange != exchange) continue;
    for (const PlanMessage& m : step.receives) bytes += m.bytes;
  }
  return bytes;
}

}  // namespace tmamba
