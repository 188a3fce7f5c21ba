// check_plan: compares what each rank receives in a plan with what it needs, which is derived from the layout segment
// by segment and independently of make_plan().
#include <algorithm>
#include <set>
#include <span>
#include <tuple>

#include "dist/planner/plan.h"

namespace tmamba {

namespace {

// Something a rank must get from another.
struct Need {
  Payload what;
  int from;
  int segment;
  TokenRange range;
  auto key() const { return std::tie(what, from, segment, range.begin, range.end); }
  bool operator<(const Need& other) const { return key() < other.key(); }
};

std::string describe(Payload what, int segment, const TokenRange& range) {
  return str(name_of(what), " of segment ", segment, " [", range.begin, ", ", range.end, ")");
}

std::string describe(const Exchange& exchange) {
  return str("layer ", exchange.layer, " ", exchange.backward ? "backward" : "forward", " ", name_of(exchange.kind));
}

// Which exchanges a layer must issue in one direction, with what collective, in the order their inputs exist.
std::vector<Exchange> required_exchanges(const Plan& plan, const LayerLayout& at, int layer, bool backward) {
  using Kind = ExchangeKind;
  const Transport& transport = plan.transports[static_cast<size_t>(layer)];
  std::vector<Exchange> list;
  const auto add = [&](Kind kind, Collective op) { list.push_back({layer, backward, kind, op}); };
  const bool gather = transport.keys == KeyTransport::gather, sliced = transport.state == StateTransport::sliced;
  if (transport.head_parallel) {
    if (backward && plan.dims.recompute == Recompute::all) {
      add(Kind::to_heads, Collective::all_to_all);
      add(Kind::to_tokens, Collective::all_to_all);
    }
    add(backward ? Kind::grads_to_heads : Kind::to_heads, Collective::all_to_all);
    add(backward ? Kind::grads_to_tokens : Kind::to_tokens, Collective::all_to_all);
    return list;
  }
  if (!backward) add(Kind::halo, Collective::send_recv);
  if (at.exchanges_keys() && !(backward && plan.dims.keep_keys)) {
    add(Kind::keys, gather ? Collective::all_gather : Collective::send_recv);
  }
  if (at.exchanges_state() && sliced) {
    if (!backward) add(Kind::decays, Collective::all_gather);
    add(backward ? Kind::adjoint_slices : Kind::state_slices, Collective::all_to_all);
    add(backward ? Kind::outflow_slices : Kind::inflow_slices, Collective::all_to_all);
  } else if (at.exchanges_state()) {
    add(backward ? Kind::adjoints : Kind::summaries, Collective::all_gather);
  }
  if (backward && at.exchanges_keys()) {
    add(Kind::key_grads, gather ? Collective::reduce_scatter : Collective::send_recv);
  }
  if (backward) add(Kind::halo_grads, Collective::send_recv);
  return list;
}

// What one rank needs in one exchange: of its own segments what others computed for it and the rows before them, of
// others' segments their keys, states and heads.
std::set<Need> needs_of(const Plan& plan, const SequenceLayout& layout, const Exchange& exchange, int rank) {
  using Kind = ExchangeKind;
  const Kind kind = exchange.kind;
  const LayerLayout at = layout.layer(exchange.layer);
  const bool gather = plan.transports[static_cast<size_t>(exchange.layer)].keys == KeyTransport::gather;
  const bool scans = at.transpoint() < layout.tokens();
  const int64_t state = plan.dims.head_dim * plan.dims.head_dim, width = layout.spec().conv_width - 1;
  std::set<Need> needs;
  const auto add = [&](Payload what, int from, const Segment& s, const TokenRange& range) {
    if (from != rank && !range.empty()) needs.insert({what, from, s.index, range});
  };
  for (const Segment& s : layout.segments()) {
    const bool own = s.rank == rank, has_next = s.index + 1 < std::ssize(layout.segments());
    if (own && kind == Kind::halo && s.begin > 0) {
      add(Payload::halo, layout.rank_of(s.begin - 1), s, {s.begin - width, s.begin});
    }
    if (own && kind == Kind::halo_grads && has_next) {
      const Segment& next = layout.segment_at(s.end);
      add(Payload::halo_grad, next.rank, next, {s.end - width, s.end});
    }
    for (int from = 0; own && from < layout.ranks(); ++from) {
      const TokenRange keys = gather ? at.attention_part(s) : at.keys_needed(from, s);
      if (kind == Kind::key_grads) add(Payload::key_grad, from, s, keys), add(Payload::value_grad, from, s, keys);
      if (kind == Kind::inflow_slices && s.begin > 0 && scans)
        add(Payload::inflow, from, s, state_slice(plan.dims, from));
      if (kind == Kind::outflow_slices && has_next) add(Payload::outflow_grad, from, s, state_slice(plan.dims, from));
      if (kind == Kind::to_tokens) add(Payload::y, from, s, s.range());
      if (kind == Kind::grads_to_tokens) {
        add(Payload::qkv_grad, from, s, s.range());
        if (scans) add(Payload::dt_grad, from, s, s.range());
      }
    }
    if (own) continue;
    const bool has_ssm_inflow = s.begin > 0 && !at.ssm_part(s).empty();
    const TokenRange keys = gather ? at.attention_part(s) : at.keys_needed(rank, s), whole{0, state};
    const TokenRange slice = state_slice(plan.dims, rank);
    if (kind == Kind::keys) add(Payload::key, s.rank, s, keys), add(Payload::value, s.rank, s, keys);
    if (kind == Kind::summaries && has_next) add(Payload::state, s.rank, s, whole);
    if ((kind == Kind::summaries || kind == Kind::decays) && has_next) add(Payload::log_decay, s.rank, s, {0, 1});
    if (kind == Kind::state_slices && has_next) add(Payload::state, s.rank, s, slice);
    if (kind == Kind::adjoints && has_ssm_inflow) add(Payload::adjoint, s.rank, s, whole);
    if (kind == Kind::adjoint_slices && has_ssm_inflow) add(Payload::adjoint, s.rank, s, slice);
    if (kind == Kind::to_heads) {
      add(Payload::qkv, s.rank, s, s.range());
      if (scans) add(Payload::dt, s.rank, s, s.range());
    }
    if (kind == Kind::grads_to_heads) add(Payload::y_grad, s.rank, s, s.range());
  }
  return needs;
}

class Checker {
 public:
  explicit Checker(const Plan& plan) : plan_(plan) {}

  std::vector<std::string> run() {
    if (!check_frame()) return problems_;
    if (plan_.dims.sp == 1) {
      if (!plan_.exchanges.empty()) report("one sequence rank has nothing to exchange");
      return problems_;
    }
    const SequenceLayout layout(plan_.dims.layout());
    if (!check_schedule(layout)) return problems_;
    for (int r = 0; r < plan_.dims.sp; ++r) check_messages(r);
    if (!problems_.empty()) return problems_;
    for (size_t i = 0; i < plan_.exchanges.size(); ++i) {
      for (int r = 0; r < plan_.dims.sp; ++r) check_needs(layout, i, r);
      for (int a = 0; a < plan_.dims.sp; ++a) {
        for (int b = 0; b < plan_.dims.sp; ++b) check_pair(i, a, b);
      }
    }
    return problems_;
  }

 private:
  template <class... Parts>
  void report(const Parts&... parts) {
    problems_.push_back(str(parts...));
  }

  const PlanStep& step(int rank, size_t exchange) const { return plan_.programs[static_cast<size_t>(rank)][exchange]; }

  // Dimensions, transports and list lengths; if these are wrong, nothing else can be checked.
  bool check_frame() {
    if (const std::string problem = dims_problem(plan_.dims); !problem.empty()) report(problem);
    if (!problems_.empty()) return false;
    if (plan_.transports.size() != plan_.dims.transpoints.size()) {
      report(plan_.transports.size(), " transports for ", plan_.dims.layers(), " layers");
    }
    for (const Transport& transport : plan_.transports) {
      if (const std::string problem = transport_problem(plan_.dims, transport); !problem.empty()) report(problem);
    }
    if (plan_.programs.size() != static_cast<size_t>(plan_.dims.sp)) {
      report(plan_.programs.size(), " programs for ", plan_.dims.sp, " ranks");
    }
    return problems_.empty();
  }

  // The exchanges are those the layers need, in order, and every rank issues all of them in that order.
  bool check_schedule(const SequenceLayout& layout) {
    std::vector<Exchange> required;
    for (bool backward : {false, true}) {
      for (int i = 0; i < layout.layers(); ++i) {
        const int layer = backward ? layout.layers() - 1 - i : i;
        const auto more = required_exchanges(plan_, layout.layer(layer), layer, backward);
        required.insert(required.end(), more.begin(), more.end());
      }
    }
    for (size_t i = 0; i < std::max(required.size(), plan_.exchanges.size()); ++i) {
      const std::string wanted = i < required.size() ? describe(required[i]) : "the end";
      if (i >= plan_.exchanges.size() || i >= required.size() || !(plan_.exchanges[i] == required[i])) {
        report("exchange ", i, " is ", i < plan_.exchanges.size() ? describe(plan_.exchanges[i]) : "missing",
               ", where the layers need ", wanted, i < required.size() ? str(" by ", name_of(required[i].op)) : "");
        return false;
      }
    }
    for (size_t r = 0; r < plan_.programs.size(); ++r) {
      const auto& program = plan_.programs[r];
      if (program.size() != required.size()) {
        report("rank ", r, " issues ", program.size(), " exchanges of ", required.size());
      }
      for (size_t i = 0; i < std::min(program.size(), required.size()); ++i) {
        if (program[i].exchange == static_cast<int>(i)) continue;
        report("rank ", r, " issues exchange ", program[i].exchange, " where the others issue ", i, ": ",
               describe(required[i]));
        break;
      }
    }
    return problems_.empty();
  }

  // Each message by itself: peer, size, and the order in which both sides pack.
  void check_messages(int rank) {
    for (const PlanStep& s : plan_.programs[static_cast<size_t>(rank)]) {
      for (const auto* messages : {&s.sends, &s.receives}) {
        const auto where = [&](size_t index) {
          return str(describe(plan_.exchanges[static_cast<size_t>(s.exchange)]), ", rank ", rank, ", ",
                     messages == &s.sends ? "send " : "receive ", index);
        };
        for (size_t i = 0; i < messages->size(); ++i) {
          const PlanMessage& m = (*messages)[i];
          if (m.peer < 0 || m.peer >= plan_.dims.sp || m.peer == rank) report(where(i), ": peer ", m.peer);
          if (m.range.empty() || m.bytes != payload_bytes(plan_.dims, m.what, m.range)) {
            report(where(i), ": ", describe(m.what, m.segment, m.range), " has ", m.bytes, " bytes");
          }
          if (i > 0 && message_before(m, (*messages)[i - 1])) report(where(i), ": out of order");
        }
      }
    }
  }

  // What the rank receives is what it needs, each once.
  void check_needs(const SequenceLayout& layout, size_t exchange, int rank) {
    const Exchange& e = plan_.exchanges[exchange];
    std::set<Need> needs = needs_of(plan_, layout, e, rank);
    for (const PlanMessage& m : step(rank, exchange).receives) {
      if (needs.erase({m.what, m.peer, m.segment, m.range}) == 1) continue;
      report(describe(e), ": rank ", rank, " receives ", describe(m.what, m.segment, m.range), " from rank ", m.peer,
             ", which it does not need or already has");
    }
    for (const Need& need : needs) {
      report(describe(e), ": rank ", rank, " does not receive ", describe(need.what, need.segment, need.range),
             " from rank ", need.from);
    }
  }

  // What `from` sends to `to` is, in order, what `to` receives from `from`.
  void check_pair(size_t exchange, int from, int to) {
    // check_messages has verified that messages are sorted by peer.
    const auto with = [](const std::vector<PlanMessage>& messages, int peer) {
      const auto first = std::partition_point(messages.begin(), messages.end(), [&](auto& m) { return m.peer < peer; });
      const auto last = std::partition_point(first, messages.end(), [&](auto& m) { return m.peer == peer; });
      return std::span(first, last);
    };
    const auto sends = with(step(from, exchange).sends, to), receives = with(step(to, exchange).receives, from);
    for (size_t i = 0; i < std::max(sends.size(), receives.size()); ++i) {
      const auto text = [i](std::span<const PlanMessage> list) {
        return i < list.size() ? describe(list[i].what, list[i].segment, list[i].range) : std::string("nothing");
      };
      if (i < sends.size() && i < receives.size()) {
        PlanMessage mirrored = receives[i];
        mirrored.peer = to;
        if (mirrored == sends[i]) continue;
      }
      report(describe(plan_.exchanges[exchange]), ": rank ", from, " sends ", text(sends), " to rank ", to,
             ", which expects ", text(receives));
      return;
    }
  }

  const Plan& plan_;
  std::vector<std::string> problems_;
};

}  // namespace

std::vector<std::string> check_plan(const Plan& plan) { return Checker(plan).run(); }

}  // namespace tmamba
