#include "dist/planner/plan.h"

#include <algorithm>
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

// Appends the exchanges of one layer to a plan, sender by sender.
class LayerPlanner {
 public:
  LayerPlanner(Plan& plan, const SequenceLayout& layout, int layer)
      : plan_(plan),
        layout_(layout),
        at_(layout.layer(layer)),
        layer_(layer),
        transport_(plan.transports[static_cast<size_t>(layer)]),
        state_elements_(plan.dims.head_dim * plan.dims.head_dim) {}

  void forward() {
    if (transport_.head_parallel) {
      to_heads(false, ExchangeKind::to_heads, with_dt(Payload::qkv, Payload::dt));
      to_tokens(false, ExchangeKind::to_tokens, {Payload::y});
      return;
    }
    halo(false);
    if (at_.exchanges_keys()) keys(false);
    if (at_.exchanges_state()) state();
  }

  void backward() {
    if (transport_.head_parallel) {
      if (is_repeated(plan_.dims, ExchangeKind::to_heads)) {
        to_heads(true, ExchangeKind::to_heads, with_dt(Payload::qkv, Payload::dt));
        to_tokens(true, ExchangeKind::to_tokens, {Payload::y});
      }
      to_heads(true, ExchangeKind::grads_to_heads, {Payload::y_grad});
      to_tokens(true, ExchangeKind::grads_to_tokens, with_dt(Payload::qkv_grad, Payload::dt_grad));
      return;
    }
    if (at_.exchanges_keys() && is_repeated(plan_.dims, ExchangeKind::keys)) keys(true);
    if (at_.exchanges_state()) state_gradient();
    if (at_.exchanges_keys()) key_gradients();
    halo(true);
  }

 private:
  Exchange exchange(bool backward, ExchangeKind kind) const {
    return {layer_, backward, kind, collective_of(kind, transport_)};
  }
  // Step sizes only where there is a scan.
  std::vector<Payload> with_dt(Payload rows, Payload dt) const {
    return at_.transpoint() < layout_.tokens() ? std::vector{rows, dt} : std::vector{rows};
  }
  bool gathers_keys() const { return transport_.keys == KeyTransport::gather; }
  TokenRange slice(int rank) const { return state_slice(plan_.dims, rank); }
  // The keys of `segment` that `rank` gets: what its queries need, or all of the prefix.
  TokenRange keys_for(int rank, const Segment& segment) const {
    return gathers_keys() ? at_.attention_part(segment) : at_.keys_needed(rank, segment);
  }

  void halo(bool backward) {
    const auto kind = backward ? ExchangeKind::halo_grads : ExchangeKind::halo;
    ExchangeWriter writer(plan_, exchange(backward, kind));
    for (const Halo& h : layout_.halos()) {
      if (backward) {
        writer.transfer(Payload::halo_grad, h.to_rank, h.from_rank, h.to_segment, h.rows);
      } else {
        writer.transfer(Payload::halo, h.from_rank, h.to_rank, h.to_segment, h.rows);
      }
    }
  }

  void keys(bool backward) {
    ExchangeWriter writer(plan_, exchange(backward, ExchangeKind::keys));
    for (const Segment& s : layout_.segments()) {
      for (int to = 0; to < layout_.ranks(); ++to) {
        writer.transfer(Payload::key, s.rank, to, s.index, keys_for(to, s));
        writer.transfer(Payload::value, s.rank, to, s.index, keys_for(to, s));
      }
    }
  }

  void key_gradients() {
    ExchangeWriter writer(plan_, exchange(true, ExchangeKind::key_grads));
    for (const Segment& s : layout_.segments()) {
      for (int from = 0; from < layout_.ranks(); ++from) {
        writer.transfer(Payload::key_grad, from, s.rank, s.index, keys_for(from, s));
        writer.transfer(Payload::value_grad, from, s.rank, s.index, keys_for(from, s));
      }
    }
  }

  void state() {
    if (transport_.state == StateTransport::all_gather) {
      ExchangeWriter writer(plan_, exchange(false, ExchangeKind::summaries));
      feeding_to_all(writer, Payload::log_decay, {0, 1});
      feeding_to_all(writer, Payload::state, {0, state_elements_});
      return;
    }
    {
      ExchangeWriter writer(plan_, exchange(false, ExchangeKind::decays));
      feeding_to_all(writer, Payload::log_decay, {0, 1});
    }
    {
      ExchangeWriter writer(plan_, exchange(false, ExchangeKind::state_slices));
      for (const Segment& s : layout_.segments()) {
        if (at_.feeds_state(s)) slices_out(writer, Payload::state, s);
      }
    }
    ExchangeWriter writer(plan_, exchange(false, ExchangeKind::inflow_slices));
    for (const Segment& s : layout_.segments()) {
      if (at_.needs_inflow(s)) slices_back(writer, Payload::inflow, s);
    }
  }

  // The log-decays are kept from forward.
  void state_gradient() {
    if (transport_.state == StateTransport::all_gather) {
      ExchangeWriter writer(plan_, exchange(true, ExchangeKind::adjoints));
      for (const Segment& s : layout_.segments()) {
        if (at_.delivers_adjoint(s)) to_all(writer, Payload::adjoint, s, {0, state_elements_});
      }
      return;
    }
    {
      ExchangeWriter writer(plan_, exchange(true, ExchangeKind::adjoint_slices));
      for (const Segment& s : layout_.segments()) {
        if (at_.delivers_adjoint(s)) slices_out(writer, Payload::adjoint, s);
      }
    }
    ExchangeWriter writer(plan_, exchange(true, ExchangeKind::outflow_slices));
    for (const Segment& s : layout_.segments()) {
      if (at_.feeds_state(s)) slices_back(writer, Payload::outflow_grad, s);
    }
  }

  void feeding_to_all(ExchangeWriter& writer, Payload what, const TokenRange& range) {
    for (const Segment& s : layout_.segments()) {
      if (at_.feeds_state(s)) to_all(writer, what, s, range);
    }
  }

  void to_all(ExchangeWriter& writer, Payload what, const Segment& s, const TokenRange& range) {
    for (int to = 0; to < layout_.ranks(); ++to) writer.transfer(what, s.rank, to, s.index, range);
  }

  void slices_out(ExchangeWriter& writer, Payload what, const Segment& s) {
    for (int to = 0; to < layout_.ranks(); ++to) writer.transfer(what, s.rank, to, s.index, slice(to));
  }

  void slices_back(ExchangeWriter& writer, Payload what, const Segment& s) {
    for (int from = 0; from < layout_.ranks(); ++from) writer.transfer(what, from, s.rank, s.index, slice(from));
  }

  void to_heads(bool backward, ExchangeKind kind, const std::vector<Payload>& payloads) {
    ExchangeWriter writer(plan_, exchange(backward, kind));
    for (const Segment& s : layout_.segments()) {
      for (Payload what : payloads) to_all(writer, what, s, s.range());
    }
  }

  void to_tokens(bool backward, ExchangeKind kind, const std::vector<Payload>& payloads) {
    ExchangeWriter writer(plan_, exchange(backward, kind));
    for (const Segment& s : layout_.segments()) {
      for (int from = 0; from < layout_.ranks(); ++from) {
        for (Payload what : payloads) writer.transfer(what, from, s.rank, s.index, s.range());
      }
    }
  }

  Plan& plan_;
  const SequenceLayout& layout_;
  LayerLayout at_;
  int layer_;
  Transport transport_;
  int64_t state_elements_;
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

int64_t payload_bytes(const PlanDims& dims, Payload what, const TokenRange& range) {
  const int64_t heads = dims.heads / dims.tp, per_head = range.size() * dims.batch;
  const int64_t rows = per_head * heads * dims.head_dim * dims.activation_bytes;  // of one projection
  switch (what) {
    case Payload::halo:
    case Payload::halo_grad:
      return 3 * rows;
    case Payload::key:
    case Payload::value:
    case Payload::key_grad:
    case Payload::value_grad:
      return rows;
    case Payload::log_decay:
    case Payload::state:
    case Payload::inflow:
    case Payload::adjoint:
    case Payload::outflow_grad:
      return per_head * heads * dims.state_bytes;
    case Payload::qkv:
    case Payload::qkv_grad:
      return 3 * rows / dims.sp;
    case Payload::y:
    case Payload::y_grad:
      return rows / dims.sp;
    case Payload::dt:
    case Payload::dt_grad:
      return per_head * heads / dims.sp * dims.activation_bytes;
  }
  throw Error("unknown payload");
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
