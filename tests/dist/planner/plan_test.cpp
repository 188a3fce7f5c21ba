// Plans against token-by-token needs and a simulated scan; their JSON and their refusals.
#include "dist/planner/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "kernels/base/rng.h"
#include "tests/dist/planner/plan_cases.h"

namespace tmamba {
namespace {

// What one rank gets and gives in one exchange.
const PlanStep& step_of(const Plan& plan, int rank, int layer, bool backward, ExchangeKind kind) {
  for (const PlanStep& step : plan.programs[static_cast<size_t>(rank)]) {
    const Exchange& e = plan.exchanges[static_cast<size_t>(step.exchange)];
    if (e.layer == layer && e.backward == backward && e.kind == kind) return step;
  }
  static const PlanStep none;
  return none;
}

TEST(Plan, EveryPlanPassesItsCheck) {
  const auto cases = random_cases(150);
  EXPECT_GT(cases.size(), 500u);
  for (const Case& c : cases) {
    const auto problems = check_plan(make_plan(c.dims, c.transport));
    ASSERT_TRUE(problems.empty()) << describe(c.dims, c.transport) << ": " << problems.front();
  }
}

TEST(Plan, EveryQueryGetsEveryKeyBeforeItOnce) {
  for (const Case& c : random_cases(60)) {
    if (c.transport.head_parallel) continue;
    SCOPED_TRACE(describe(c.dims, c.transport));
    const Plan plan = make_plan(c.dims, c.transport);
    const SequenceLayout layout(c.dims.layout());
    for (int layer = 0; layer < layout.layers(); ++layer) {
      const int64_t p = layout.transpoint(layer);
      for (int r = 0; r < c.dims.sp; ++r) {
        std::map<Payload, std::map<int64_t, int>> times;  // how often the rank has the key of a token
        for (int64_t t : layout.positions(r)) times[Payload::key][t] = times[Payload::value][t] = 1;
        for (const PlanMessage& m : step_of(plan, r, layer, false, ExchangeKind::keys).receives) {
          for (int64_t t = m.range.begin; t < m.range.end; ++t) {
            ++times[m.what][t];
            ASSERT_EQ(layout.rank_of(t), m.peer);
            ASSERT_LT(t, p);
          }
        }
        int64_t last_query = -1;
        for (int64_t t : layout.positions(r)) last_query = t < p ? t : last_query;
        for (Payload what : {Payload::key, Payload::value}) {
          for (int64_t t = 0; t <= last_query; ++t) ASSERT_EQ(times[what][t], 1) << name_of(what) << " of token " << t;
          for (const auto& [t, count] : times[what]) ASSERT_EQ(count, 1);
          if (c.transport.keys == KeyTransport::group_cast) {
            for (const auto& [t, count] : times[what]) ASSERT_TRUE(t <= last_query || layout.rank_of(t) == r);
          }
        }
      }
    }
  }
}

// Carries numbers along the messages of the state exchanges, as ranks would, and scans.
class ScanSimulation {
 public:
  ScanSimulation(const PlanDims& dims, const Transport& transport, int layer, bool backward)
      : plan_(make_plan(dims, transport)),
        layout_(dims.layout()),
        layer_(layer),
        backward_(backward),
        elements_(dims.head_dim * dims.head_dim),
        known_(static_cast<size_t>(dims.sp)) {
    const Philox philox(7, stream_id("scan"));
    uint64_t at = 0;
    for (const Segment& s : layout_.segments()) {
      const bool contributes = !backward || !layout_.layer(layer).ssm_part(s).empty();
      decay_.push_back(philox.uniform(at++));
      auto& summary = summary_.emplace_back();
      for (int64_t i = 0; i < elements_; ++i) summary.push_back(contributes ? philox.normal(at++) : 0.0);
    }
  }

  // The state before (backward: the state gradient after) segment k, element i, one segment after the other.
  double expected(int k, int64_t i) const {
    double state = 0;
    if (backward_) {
      for (int j = static_cast<int>(summary_.size()) - 1; j > k; --j) state = value(j, i) + decay_[at(j)] * state;
    } else {
      for (int j = 0; j < k; ++j) state = decay_[at(j)] * state + value(j, i);
    }
    return state;
  }

  // The same, as the owner of segment k computes or receives it. Fails where a number has not arrived.
  double delivered(int k, int64_t i) {
    const int owner = layout_.segment(k).rank;
    if (plan_.transports[at(layer_)].state == StateTransport::all_gather) {
      receive(owner, backward_ ? ExchangeKind::adjoints : ExchangeKind::summaries);
      return scanned_by(owner, k, i);
    }
    for (int from = 0; from < layout_.ranks(); ++from) {
      if (!state_slice(plan_.dims, from).contains(i)) continue;
      receive(from, backward_ ? ExchangeKind::adjoint_slices : ExchangeKind::state_slices);
      if (from != owner) {
        EXPECT_TRUE(returns_slice(owner, from, k, i)) << "segment " << k << " element " << i;
      }
      return scanned_by(from, k, i);
    }
    ADD_FAILURE() << "element " << i << " is in no slice";
    return 0;
  }

  const SequenceLayout& layout() const { return layout_; }
  int64_t elements() const { return elements_; }

 private:
  using Item = std::tuple<Payload, int, int64_t>;  // payload, segment, element
  static size_t at(int i) { return static_cast<size_t>(i); }
  double value(int k, int64_t i) const { return summary_[at(k)][static_cast<size_t>(i)]; }
  Payload payload() const { return backward_ ? Payload::adjoint : Payload::state; }

  void receive(int rank, ExchangeKind kind) {
    auto& known = known_[at(rank)];
    const auto take = [&](const PlanStep& step) {
      for (const PlanMessage& m : step.receives) {
        for (int64_t i = m.range.begin; i < m.range.end; ++i) known.insert({m.what, m.segment, i});
      }
    };
    take(step_of(plan_, rank, layer_, backward_, kind));
    take(step_of(plan_, rank, layer_, false, ExchangeKind::summaries));  // log-decays are kept for backward
    take(step_of(plan_, rank, layer_, false, ExchangeKind::decays));
  }

  bool returns_slice(int owner, int from, int k, int64_t i) const {
    const auto kind = backward_ ? ExchangeKind::outflow_slices : ExchangeKind::inflow_slices;
    int found = 0;
    for (const PlanMessage& m : step_of(plan_, owner, layer_, backward_, kind).receives) {
      found += m.peer == from && m.segment == k && m.range.contains(i);
    }
    return found == 1;
  }

  double scanned_by(int rank, int k, int64_t i) const {
    const LayerLayout at_layer = layout_.layer(layer_);
    const auto has = [&](Payload what, int segment, int64_t element) {
      return layout_.segment(segment).rank == rank || known_[at(rank)].count({what, segment, element}) == 1;
    };
    double state = 0;
    const int count = static_cast<int>(summary_.size());
    for (int step = 0; step < (backward_ ? count - 1 - k : k); ++step) {
      const int j = backward_ ? count - 1 - step : step;
      // A segment without SSM tokens has no state gradient to deliver; the first factor multiplies zero.
      if (!backward_ || !at_layer.ssm_part(layout_.segment(j)).empty()) {
        EXPECT_TRUE(has(payload(), j, i)) << "segment " << j;
      }
      if (step > 0) {
        EXPECT_TRUE(has(Payload::log_decay, j, 0)) << "segment " << j;
      }
      state = decay_[at(j)] * state + value(j, i);
    }
    return state;
  }

  Plan plan_;
  SequenceLayout layout_;
  int layer_;
  bool backward_;
  int64_t elements_;
  std::vector<double> decay_;
  std::vector<std::vector<double>> summary_;
  std::vector<std::set<Item>> known_;
};

TEST(Plan, StateScanArrivesWhereItIsNeeded) {
  int scans = 0;
  for (const Case& c : random_cases(60)) {
    if (c.transport.head_parallel) continue;
    SCOPED_TRACE(describe(c.dims, c.transport));
    for (int layer = 0; layer < static_cast<int>(c.dims.layers()); ++layer) {
      for (bool backward : {false, true}) {
        ScanSimulation simulation(c.dims, c.transport, layer, backward);
        const LayerLayout at = simulation.layout().layer(layer);
        for (const Segment& s : simulation.layout().segments()) {
          if (!(backward ? at.feeds_state(s) : at.needs_inflow(s))) continue;
          for (int64_t i = 0; i < simulation.elements(); ++i) {
            ASSERT_DOUBLE_EQ(simulation.delivered(s.index, i), simulation.expected(s.index, i));
            ++scans;
          }
          if (testing::Test::HasFailure()) return;
        }
      }
    }
  }
  EXPECT_GT(scans, 10000);
}

TEST(Plan, BytesOfKnownExchanges) {
  // 8192 tokens, 8 ranks, 4 segments each of 256 tokens; d 2048, 16 heads of 128, bf16.
  PlanDims dims{.dim = 2048,
                .heads = 16,
                .head_dim = 128,
                .ffn = 5632,
                .vocab = 32768,
                .chunk = 64,
                .tokens = 8192,
                .transpoints = {2048},
                .sp = 8,
                .fold = 4};
  const int64_t state = 16 * 128 * 128 * 4, decay = 16 * 4, row = 2048 * 2;
  const Plan plan = make_plan(dims, transport_named("group_cast+sliced"));
  const auto bytes = [&](const Plan& of, ExchangeKind kind, int rank) {
    int64_t sum = 0;
    for (const PlanMessage& m : step_of(of, rank, 0, kind >= ExchangeKind::adjoints, kind).receives) sum += m.bytes;
    return sum;
  };
  // Rank 0 owns segments 0, 15, 16, 31 and of [0, 2048) only segment 0: no keys. Rank 1 owns 1 and 14: keys of segment
  // 0.
  EXPECT_EQ(bytes(plan, ExchangeKind::keys, 0), 0);
  EXPECT_EQ(bytes(plan, ExchangeKind::keys, 1), 256 * row * 2);
  EXPECT_EQ(bytes(plan, ExchangeKind::keys, 7), 7 * 256 * row * 2);
  // Segments 1, 14, 17, 30 of rank 1 follow segments of ranks 0, 2, 0 and 2.
  EXPECT_EQ(bytes(plan, ExchangeKind::halo, 1), 4 * 3 * 3 * row);
  EXPECT_EQ(bytes(plan, ExchangeKind::halo, 0), 2 * 3 * 3 * row);  // 16 follows its own 15, and 0 nothing
  // Everyone's slice of 31 segments but its own; and back for every segment but the first.
  EXPECT_EQ(bytes(plan, ExchangeKind::decays, 1), 27 * decay);
  EXPECT_EQ(bytes(plan, ExchangeKind::state_slices, 1), 27 * state / 8);
  EXPECT_EQ(bytes(plan, ExchangeKind::inflow_slices, 1), 4 * state * 7 / 8);
  EXPECT_EQ(bytes(plan, ExchangeKind::adjoint_slices, 1), (24 - 3) * state / 8);
  EXPECT_EQ(bytes(plan, ExchangeKind::outflow_slices, 1), 4 * state * 7 / 8);
  const Plan gathered = make_plan(dims, transport_named("gather+all_gather"));
  EXPECT_EQ(bytes(gathered, ExchangeKind::keys, 1), 7 * 256 * row * 2);
  EXPECT_EQ(bytes(gathered, ExchangeKind::key_grads, 1), 7 * 256 * row * 2);
  EXPECT_EQ(bytes(gathered, ExchangeKind::summaries, 1), 27 * (state + decay));
  EXPECT_EQ(bytes(gathered, ExchangeKind::adjoints, 1), (24 - 3) * state);
  const Plan heads = make_plan(dims, transport_named("head_parallel"));
  EXPECT_EQ(bytes(heads, ExchangeKind::to_heads, 1), 7 * 1024 * (3 * row + 16 * 2) / 8);
  EXPECT_EQ(bytes(heads, ExchangeKind::to_tokens, 1), 7 * 1024 * row / 8);
  EXPECT_EQ(bytes(heads, ExchangeKind::grads_to_heads, 1), 7 * 1024 * row / 8);
  EXPECT_EQ(bytes(heads, ExchangeKind::grads_to_tokens, 1), 7 * 1024 * (3 * row + 16 * 2) / 8);
}

TEST(Plan, StateBytesDoNotGrowWithTheSequence) {
  std::map<std::string, std::set<int64_t>> by_transport;
  for (int64_t tokens : {1024, 8192, 65536}) {
    for (const char* name : {"group_cast+all_gather", "group_cast+sliced"}) {
      PlanDims dims = small_dims(4, 2, tokens, {tokens / 2});
      const Plan plan = make_plan(dims, transport_named(name));
      int64_t bytes = 0;
      for (size_t i = 0; i < plan.exchanges.size(); ++i) {
        const ExchangeKind kind = plan.exchanges[i].kind;
        if (kind == ExchangeKind::keys || kind == ExchangeKind::key_grads) continue;
        for (int r = 0; r < 4; ++r) bytes += bytes_received(plan, static_cast<int>(i), r);
      }
      by_transport[name].insert(bytes);
    }
  }
  for (const auto& [name, totals] : by_transport) EXPECT_EQ(totals.size(), 1u) << name;
}

}  // namespace
}  // namespace tmamba
