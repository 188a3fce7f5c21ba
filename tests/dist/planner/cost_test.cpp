// The cost model against counts token by token and against the messages of explicit plans.
#include "dist/planner/cost.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/base/rng.h"
#include "tests/dist/planner/measured_costs.h"
#include "tests/dist/planner/plan_cases.h"

namespace tmamba {
namespace {

// Random cut and TransPoint.
struct RandomCase {
  LayoutSpec spec;
  int64_t transpoint;
};

std::vector<RandomCase> random_cases(int count) {
  std::vector<RandomCase> cases;
  for (uint64_t seed = 1; cases.size() < static_cast<size_t>(count); ++seed) {
    const Philox philox(seed, stream_id("cost_test"));
    const auto in = [&](uint64_t at, int64_t low, int64_t high) {
      return low + static_cast<int64_t>(philox.uniform(at) * static_cast<double>(high - low + 1));
    };
    LayoutSpec spec{
        .ranks = static_cast<int>(in(0, 1, 12)), .fold = static_cast<int>(in(1, 1, 6)), .chunk = in(2, 4, 16)};
    spec.grain = in(6, 0, 1) ? static_cast<int>(in(7, 2, 4)) : 1;
    spec.tokens = in(3, spec.segments() * spec.chunk, 4 * spec.segments() * spec.chunk);
    const int64_t choice = in(4, 0, 4);
    const int64_t p = choice == 0 ? 0 : choice == 1 ? spec.tokens : in(5, 0, spec.tokens);
    spec.transpoints = {p};
    if (split_problem(spec).empty()) cases.push_back({spec, p});
  }
  return cases;
}

std::string describe(const LayoutSpec& spec) {
  return str("tokens ", spec.tokens, " ranks ", spec.ranks, " fold ", spec.fold, " grain ", spec.grain, " chunk ",
             spec.chunk, " P ", spec.transpoints.front());
}

// rank_work, one token after the other.
std::vector<RankWork> counted_work(const LayoutSpec& spec, int64_t p) {
  const SequenceLayout layout(spec);
  std::vector<RankWork> counted(static_cast<size_t>(spec.ranks));
  for (const Segment& s : layout.segments()) {
    RankWork& w = counted[static_cast<size_t>(s.rank)];
    int64_t in_scan = 0;  // tokens since the segment's scan began
    for (int64_t t = s.begin; t < s.end; ++t) {
      ++w.tokens;
      if (t < p) {
        ++w.attention_tokens;
        w.attention_pairs += t + 1;
      } else {
        ++w.ssm_tokens;
        w.chunk_pairs += in_scan++ % spec.chunk + 1;
      }
    }
    const bool attention = s.begin<p, ssm = s.end> p;
    w.kernel_ranges += attention + ssm + (attention && p < spec.tokens);
  }
  return counted;
}

TEST(CostWork, ClosedFormsMatchTokenCounts) {
  for (const RandomCase& c : random_cases(300)) {
    ASSERT_EQ(rank_work(c.spec, c.transpoint), counted_work(c.spec, c.transpoint)) << describe(c.spec);
  }
}

TEST(CostWork, BytesMatchTheMessagesOfThePlan) {
  size_t compared = 0;
  for (const RandomCase& c : random_cases(60)) {
    PlanDims dims{.dim = 48,
                  .heads = 12,
                  .head_dim = 4,
                  .ffn = 64,
                  .vocab = 32,
                  .chunk = c.spec.chunk,
                  .tokens = c.spec.tokens,
                  .transpoints = {c.transpoint},
                  .batch = 3,
                  .tp = c.spec.tokens % 2 == 0 ? 2 : 1,
                  .sp = c.spec.ranks,
                  .fold = c.spec.fold,
                  .grain = c.spec.grain,
                  .keep_keys = c.spec.tokens % 3 == 0};
    dims.recompute = c.spec.tokens % 5 < 2 ? Recompute::all : Recompute::none;
    const auto traffic = rank_traffic(c.spec, c.transpoint);
    for (const Transport& transport : all_transports()) {
      if (!transport_problem(dims, transport).empty()) continue;
      const Plan plan = make_plan(dims, transport);
      for (bool backward : {false, true}) {
        for (ExchangeKind kind : kExchangeKinds) {
          const auto found = std::find_if(plan.exchanges.begin(), plan.exchanges.end(),
                                          [&](const Exchange& e) { return e.kind == kind && e.backward == backward; });
          for (int r = 0; r < dims.sp; ++r) {
            const int64_t exact = found == plan.exchanges.end()
                                      ? 0
                                      : bytes_received(plan, static_cast<int>(found - plan.exchanges.begin()), r);
            ASSERT_EQ(exchange_bytes(dims, transport, kind, backward, traffic[static_cast<size_t>(r)], r), exact)
                << describe(c.spec) << " " << name_of(transport) << " " << name_of(kind) << " rank " << r;
            compared += exact > 0;
          }
        }
      }
    }
  }
  EXPECT_GT(compared, 2000u);
}

TEST(CostWork, StateBytesDependOnNeitherLengthNorRanks) {
  // Received per rank and layer by the sliced scan, forward: at most 2 m sigma, however many ranks or tokens there are.
  const Transport sliced = transport_named("group_cast+sliced"), gathered = transport_named("group_cast+all_gather");
  const double sigma = 16 * 128 * 128 * 4;
  for (int fold : {1, 2, 4}) {
    std::set<int64_t> over_length;
    double last_gathered = 0;
    for (int sp : {4, 8, 16, 32, 64}) {
      for (int64_t tokens : {int64_t{65536}, int64_t{1} << 20}) {
        PlanDims dims = v9_dims(tokens, sp, fold);
        const auto traffic = rank_traffic(dims.layout(), tokens / 2);
        int64_t most = 0, most_gathered = 0;
        for (int r = 0; r < sp; ++r) {
          const RankTraffic& t = traffic[static_cast<size_t>(r)];
          most = std::max(most, exchange_bytes(dims, sliced, ExchangeKind::state_slices, false, t, r) +
                                    exchange_bytes(dims, sliced, ExchangeKind::inflow_slices, false, t, r));
          most_gathered = std::max(most_gathered, exchange_bytes(dims, gathered, ExchangeKind::summaries, false, t, r));
        }
        EXPECT_LE(static_cast<double>(most), 2 * fold * sigma) << "sp " << sp << " fold " << fold;
        EXPECT_GE(static_cast<double>(most), 0.7 * fold * sigma) << "sp " << sp << " fold " << fold;
        if (sp == 8) over_length.insert(most);
        if (tokens == 65536) {
          EXPECT_GT(static_cast<double>(most_gathered), 1.5 * last_gathered);  // this one grows with the ranks
          last_gathered = static_cast<double>(most_gathered);
        }
      }
    }
    EXPECT_EQ(over_length.size(), 1u);
  }
}

// --- Balance

double counted_balance(const PlanDims& dims, const MachineModel& machine) {
  double mean = 0, slowest = 0;
  for (int64_t p : dims.transpoints) {
    double most = 0;
    for (const RankWork& w : counted_work(dims.layout(), p)) {
      const double load = layer_seconds(dims, machine, w, p).sum().total();
      mean += load / dims.sp;
      most = std::max(most, load);
    }
    slowest += most;
  }
  return mean / slowest;
}

// The machine that the design's balance table assumes: fractions of 989 TFLOP/s, nothing bound by memory.
MachineModel assumed_machine() {
  MachineModel machine = h200_machine(128);
  for (Rate& rate : machine.streaming) rate = {1e6, 1e6};
  machine.compute[WorkKind::linear] = {0.70, 0.70};
  machine.compute[WorkKind::attention] = {0.65, 0.55};
  machine.compute[WorkKind::ssd] = {0.25, 0.25};
  machine.compute[WorkKind::converter] = {0.25, 0.25};
  return machine;
}

TEST(Balance, MatchesTokenCountsAndTheDesign) {
  struct Row {
    int64_t tokens;
    std::array<double, 4> design;  // fold 1, 2, 4, 8; counted there with z for every token
  };
  for (const Row& row : {Row{8192, {.919, .980, .995, .999}}, Row{131072, {.558, .836, .954, .989}}}) {
    for (size_t i = 0; i < 4; ++i) {
      const int fold = 1 << i;
      const PlanDims dims = v9_dims(row.tokens, 8, fold);
      for (const MachineModel& machine : {h200_machine(128), assumed_machine()}) {
        EXPECT_NEAR(balance_efficiency(dims, machine), counted_balance(dims, machine), 1e-6)
            << row.tokens << " fold " << fold;
      }
      EXPECT_NEAR(balance_efficiency(dims, assumed_machine()), row.design[i], 0.015) << row.tokens << " fold " << fold;
      RecordProperty(str("balance_", row.tokens, "_fold_", fold), str(balance_efficiency(dims, h200_machine(128))));
    }
  }
  EXPECT_GE(balance_efficiency(v9_dims(8192, 8, 4), h200_machine(128)), 0.99);
  EXPECT_GE(balance_efficiency(v9_dims(131072, 8, 4), h200_machine(128)), 0.94);
}

TEST(Balance, UnevenSplitsMatchTokenCounts) {
  for (int sp : {3, 5, 6, 7, 12}) {
    for (int fold : {1, 2, 3, 4}) {
      const PlanDims dims = v9_dims(8192 + 37, sp, fold);
      EXPECT_NEAR(balance_efficiency(dims, h200_machine(128)), counted_balance(dims, h200_machine(128)), 1e-6) << sp;
    }
  }
}

// --- Counts

TEST(Flops, PaperTable) {
  const PaperCosts large = paper_costs(8192, 4096), small = paper_costs(8192, 1536);
  EXPECT_NEAR(large.transformer / large.optimum, 2.29, 0.005);
  EXPECT_NEAR(large.mamba / large.optimum, 1.14, 0.005);
  EXPECT_NEAR(small.transformer, 10.31e10, 0.005e10);
  EXPECT_NEAR(small.mamba, 1.93e10, 0.005e10);
  EXPECT_NEAR(small.optimum, 1.84e10, 0.005e10);
  EXPECT_EQ(small.best_transpoint, 768);
  EXPECT_EQ(paper_costs(512, 4096).best_transpoint, 512);  // the optimum lies beyond the sequence
  for (double p : {0.0, 100.0, 767.0, 769.0, 5000.0, 8192.0}) EXPECT_GT(paper_flops(8192, p, 1536), small.optimum);
}

TEST(Flops, LayerCountsMatchLoopsOverTokens) {
  for (int64_t tokens : {64, 77, 256}) {
    for (int64_t p : {int64_t{0}, int64_t{1}, int64_t{33}, tokens - 1, tokens}) {
      PlanDims dims{.dim = 24,
                    .heads = 4,
                    .head_dim = 6,
                    .ffn = 40,
                    .vocab = 50,
                    .chunk = 16,
                    .tokens = tokens,
                    .transpoints = {p}};
      double attention = 0, ssd = 0, converter = 0, linear = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        linear += 2 * 24 * (3 * 24 + 24 + (p < tokens ? 4 : 0) + (t >= p ? 24 : 0)) + 2 * 3 * 24 * 40;
        for (int64_t key = 0; t < p && key <= t; ++key) attention += 4 * (2 * 6 + 2 * 6);  // q.k and p v, each head
        for (int64_t key = p + (t - p) / 16 * 16; t >= p && key <= t; ++key) ssd += 4 * (2 * 6 + 2 * 6);
        if (t >= p) ssd += 4 * (2 * 36 + 2 * 36);  // reads the state and adds to it
        if (t < p && p < tokens) converter += 4 * 2 * 36;
      }
      const LayerFlops flops = layer_flops(dims, p);
      EXPECT_EQ(flops.attention, attention) << tokens << " " << p;
      EXPECT_EQ(flops.ssd, ssd) << tokens << " " << p;
      EXPECT_EQ(flops.converter, converter);
      EXPECT_EQ(flops.linear, linear);
      EXPECT_EQ(model_flops(dims), flops.total() + 2.0 * 24 * 50 * static_cast<double>(tokens));
      dims.batch = 7;  // counts are of one sequence
      dims.tp = 2;
      EXPECT_EQ(layer_flops(dims, p).total(), flops.total());
    }
  }
}

TEST(Flops, ParametersOfThe400MModel) {
  PlanDims dims{.dim = 1536, .heads = 16, .head_dim = 96, .ffn = 4096, .vocab = 32768, .tokens = 8192};
  dims.transpoints.assign(12, 0);
  // Per layer: norms 2 d, qkv, z and out 5 d^2, conv 3 d (4 + 1), dt H d and three per head, out_norm d, MLP 3 d F.
  const int64_t d = 1536, layer = 2 * d + 5 * d * d + 15 * d + 16 * d + 48 + d + 3 * d * 4096;
  EXPECT_EQ(costs_of(dims).parameters, 12 * layer + d + 2 * 32768 * d);
  dims.tied_head = true, dims.z_gate = false;
  EXPECT_EQ(costs_of(dims).parameters, 12 * (layer - d * d) + d + 32768 * d);
}

TEST(Flops, TheFastestTransPointIsWithinTheSequence) {
  PlanDims dims{
      .dim = 1536, .heads = 16, .head_dim = 96, .ffn = 4096, .vocab = 32768, .tokens = 8192, .transpoints = {0}};
  const MachineModel machine = h200_machine(96);
  const auto seconds = [&](int64_t p) {
    return layer_seconds(dims, machine, rank_work(dims.layout(), p).front(), p).sum().total();
  };
  double least = seconds(64);
  for (int64_t p = 128; p < 8192; p += 64) least = std::min(least, seconds(p));
  EXPECT_LT(least, seconds(0));
  EXPECT_LT(least, seconds(8192));
}

}  // namespace
}  // namespace tmamba
