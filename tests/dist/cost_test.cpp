// The cost model's closed forms against counts token by token and against the messages of explicit plans.
#include "dist/cost.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <set>

#include "kernels/base/rng.h"

namespace tmamba {
namespace {

// Schedule V9 of the paper scaled to a sequence length; the model of the balance figures: d 2048, 16 heads of 128.
PlanDims v9_dims(int64_t tokens, int sp, int fold, int64_t layers = 8) {
  PlanDims dims{
      .dim = 2048, .heads = 16, .head_dim = 128, .ffn = 5632, .vocab = 32768, .tokens = tokens, .sp = sp, .fold = fold};
  constexpr std::array<int64_t, 8> v9{0, 128, 256, 512, 1024, 2048, 4096, 8192};
  for (int64_t l = 0; l < layers; ++l) dims.transpoints.push_back(v9[static_cast<size_t>(l % 8)] * tokens / 8192);
  return dims;
}

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
    spec.tokens = in(3, spec.ranks * spec.fold * spec.chunk, 4 * spec.ranks * spec.fold * spec.chunk);
    const int64_t choice = in(4, 0, 4);
    const int64_t p = choice == 0 ? 0 : choice == 1 ? spec.tokens : in(5, 0, spec.tokens);
    spec.transpoints = {p};
    if (cut_problem(spec).empty()) cases.push_back({spec, p});
  }
  return cases;
}

std::string describe(const LayoutSpec& spec) {
  return str("tokens ", spec.tokens, " ranks ", spec.ranks, " fold ", spec.fold, " chunk ", spec.chunk, " P ",
             spec.transpoints.front());
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
        w.converter_tokens += p < spec.tokens;
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
                  .keep_keys = c.spec.tokens % 3 == 0};
    const auto traffic = rank_traffic(c.spec, c.transpoint);
    for (const Transport& transport : all_transports()) {
      if (!transport_problem(dims, transport).empty()) continue;
      const Plan plan = make_plan(dims, transport);
      for (bool backward : {false, true}) {
        for (int k = 0; k < kExchangeKinds; ++k) {
          const auto kind = static_cast<ExchangeKind>(k);
          if (backward != is_backward(kind) && kind != ExchangeKind::keys) continue;
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
// ----------------------------------------------------------------------------------------------------------

// Forward and backward seconds of one rank's tokens in one layer, from counts, written out once more.
double counted_load(const PlanDims& dims, const MachineModel& m, const RankWork& w, int64_t p) {
  const auto n = [](int64_t x) { return static_cast<double>(x); };
  const double d = n(dims.dim), in = n(dims.inner()), f = n(dims.ffn), e = 2, tokens = n(w.tokens),
               ssm = n(w.ssm_tokens);
  const auto time = [&](WorkKind kind, double flops, double flops_b, double bytes, double bytes_b) {
    const Rate &c = m.compute[static_cast<size_t>(kind)], &s = m.streaming[static_cast<size_t>(kind)];
    return std::max(flops / m.peak_flops / c.forward, bytes / m.memory_bandwidth / s.forward) +
           std::max(flops_b / m.peak_flops / c.backward, bytes_b / m.memory_bandwidth / s.backward);
  };
  const double dt = p < dims.tokens ? d * n(dims.heads) : 0, all = 4 * d * in + 3 * d * f + dt;
  const double linear = 2 * (tokens * all + ssm * d * in);
  const double rows = e * (tokens * (4 * d + 4 * in + 3 * f) + ssm * (d + in) + all + d * in);
  const double pairs = 4 * in * n(w.attention_pairs), scan = 4 * in * (n(w.chunk_pairs) + n(dims.head_dim) * ssm);
  const double turn = 2 * in * n(dims.head_dim * w.converter_tokens);
  return time(WorkKind::linear, linear, 2 * linear, rows, 2 * rows + 8 * (all + d * in)) +
         time(WorkKind::elementwise, 24 * in * tokens, 48 * in * tokens,
              e * (tokens * (8 * d + 6 * in + 3 * f) + 3 * in * ssm),
              e * (tokens * (9 * d + 9 * in + 5 * f) + 5 * in * ssm)) +
         time(WorkKind::attention, pairs, 2.5 * pairs, 4 * e * in * n(w.attention_tokens),
              8 * e * in * n(w.attention_tokens)) +
         time(WorkKind::ssd, scan, 2.5 * scan, 6 * e * in * ssm, 12 * e * in * ssm) +
         time(WorkKind::converter, turn, 2 * turn, 2 * e * in * n(w.converter_tokens),
              4 * e * in * n(w.converter_tokens));
}

double counted_balance(const PlanDims& dims, const MachineModel& machine) {
  double mean = 0, slowest = 0;
  for (int64_t p : dims.transpoints) {
    double most = 0;
    for (const RankWork& w : counted_work(dims.layout(), p)) {
      const double load = counted_load(dims, machine, w, p);
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
  machine.compute[static_cast<size_t>(WorkKind::linear)] = {0.70, 0.70};
  machine.compute[static_cast<size_t>(WorkKind::attention)] = {0.65, 0.55};
  machine.compute[static_cast<size_t>(WorkKind::ssd)] = {0.25, 0.25};
  machine.compute[static_cast<size_t>(WorkKind::converter)] = {0.25, 0.25};
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

TEST(Balance, UnevenCutsMatchTokenCounts) {
  for (int sp : {3, 5, 6, 7, 12}) {
    for (int fold : {1, 2, 3, 4}) {
      const PlanDims dims = v9_dims(8192 + 37, sp, fold);
      EXPECT_NEAR(balance_efficiency(dims, h200_machine(128)), counted_balance(dims, h200_machine(128)), 1e-6) << sp;
    }
  }
}

// --- Counts
// -----------------------------------------------------------------------------------------------------------

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
      double attention = 0, ssd = 0, converter = 0, projections = 0, mlp = 0, conv = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        projections += 2 * 24 * (3 * 24 + 24 + (p < tokens ? 4 : 0) + (t >= p ? 24 : 0));
        conv += 2 * 4 * 3 * 24;
        mlp += 2 * 3 * 24 * 40;
        for (int64_t key = 0; t < p && key <= t; ++key) attention += 4 * (2 * 6 + 2 * 6);  // q.k and p v, each head
        for (int64_t key = p + (t - p) / 16 * 16; t >= p && key <= t; ++key) ssd += 4 * (2 * 6 + 2 * 6);
        if (t >= p) ssd += 4 * (2 * 36 + 2 * 36);  // reads the state and adds to it
        if (t < p && p < tokens) converter += 4 * 2 * 36;
      }
      const LayerFlops flops = layer_flops(dims, p);
      EXPECT_EQ(flops.attention, attention) << tokens << " " << p;
      EXPECT_EQ(flops.ssd, ssd) << tokens << " " << p;
      EXPECT_EQ(flops.converter, converter);
      EXPECT_EQ(flops.projections, projections);
      EXPECT_EQ(flops.mlp, mlp);
      EXPECT_EQ(flops.conv, conv);
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
  EXPECT_EQ(parameter_count(dims), 12 * layer + d + 2 * 32768 * d);
  dims.tied_head = true, dims.z_gate = false;
  EXPECT_EQ(parameter_count(dims), 12 * (layer - d * d) + d + 32768 * d);
}

TEST(Flops, FastestTransPointIsTheMinimum) {
  PlanDims dims{
      .dim = 1536, .heads = 16, .head_dim = 96, .ffn = 4096, .vocab = 32768, .tokens = 8192, .transpoints = {0}};
  const MachineModel machine = h200_machine(96);
  const int64_t best = fastest_transpoint(dims, machine);
  const auto seconds = [&](int64_t p) {
    LayoutSpec spec = dims.layout();
    return layer_seconds(dims, machine, rank_work(spec, p).front(), p).sum().total();
  };
  for (int64_t p = 0; p <= 8192; p += 64) EXPECT_GE(seconds(p), seconds(best)) << p;
  EXPECT_GT(best, 0);
  EXPECT_LT(best, 8192);
}

// --- Predictions
// ------------------------------------------------------------------------------------------------------

TEST(Predict, OneRankIsTheSumOfItsLayers) {
  PlanDims dims = v9_dims(8192, 1, 1);
  const MachineModel machine = h200_machine(128);
  double seconds = 0;
  for (int64_t p : dims.transpoints) {
    seconds += layer_seconds(dims, machine, rank_work(dims.layout(), p).front(), p).sum().total();
  }
  seconds += head_seconds(dims, machine, 8192).sum().total();
  const Prediction one = predict(dims, machine, {Transport{}});
  EXPECT_NEAR(one.time.total(), seconds + one.time.launches + one.time.optimizer, 1e-9);
  EXPECT_EQ(one.time.waiting + one.time.tp + one.time.sp + one.time.dp, 0);
  EXPECT_NEAR(one.mfu, 3 * model_flops(dims) / one.time.total() / machine.peak_flops, 1e-12);
  EXPECT_NEAR(one.tokens_per_second, 8192 / one.time.total(), 1e-6);
  dims.global_batch = 4;  // four micro-batches, one optimizer step
  const Prediction four = predict(dims, machine, {Transport{}});
  EXPECT_NEAR(four.time.total() - four.time.optimizer, 4 * (one.time.total() - one.time.optimizer), 1e-9);
}

TEST(Predict, MoreRanksShareTheWork) {
  const MachineModel machine = h200_machine(128);
  const Prediction one = predict(v9_dims(131072, 1, 1), machine, {Transport{}});
  for (int sp : {2, 4, 8}) {
    const Prediction many = predict(v9_dims(131072, sp, 4), machine, {transport_named("group_cast+sliced")});
    EXPECT_NEAR(many.time.attention, one.time.attention / sp, 1e-9);
    EXPECT_NEAR(many.time.ssm, one.time.ssm / sp, 0.02 * one.time.ssm / sp);
    EXPECT_LT(many.time.total(), one.time.total() / sp * 1.15);
    EXPECT_GT(many.time.total(), one.time.total() / sp);
    EXPECT_LT(many.memory.total(), one.memory.total());
  }
  PlanDims two = v9_dims(8192, 1, 1);
  two.tp = 2;
  const Prediction tensor = predict(two, machine, {Transport{}}),
                   single = predict(v9_dims(8192, 1, 1), machine, {Transport{}});
  EXPECT_NEAR(tensor.time.linear, single.time.linear / 2, 1e-12);
  EXPECT_GT(tensor.time.tp, 0);
  EXPECT_NEAR(tensor.memory.parameters, single.memory.parameters / 2, 1);
}

TEST(Predict, ZeroStagesShardWhatTheySay) {
  PlanDims dims = v9_dims(8192, 2, 2);
  dims.dp = 4;
  const double parameters = static_cast<double>(parameter_count(dims));
  for (int zero : {0, 1, 2}) {
    dims.zero = zero;
    const MemoryUse memory = predict(dims, h200_machine(128), {Transport{}}).memory;
    EXPECT_DOUBLE_EQ(memory.parameters, 2 * parameters);
    EXPECT_DOUBLE_EQ(memory.gradients, 4 * parameters / (zero == 2 ? 8 : 1));
    EXPECT_DOUBLE_EQ(memory.optimizer, 12 * parameters / (zero == 0 ? 1 : 8));
  }
  dims.activation_bytes = 4;  // no master copy beside float32 weights
  EXPECT_DOUBLE_EQ(predict(dims, h200_machine(128), {Transport{}}).memory.optimizer, 8 * parameters / 8);
}

TEST(Predict, ActivationsOfTheRecomputePolicy) {
  // 12.3 [T, d] tensors a layer where SSM tokens keep z (design's memory plan), here T = 8192, d = 1536, F = 4096.
  PlanDims dims{
      .dim = 1536, .heads = 16, .head_dim = 96, .ffn = 4096, .vocab = 32768, .tokens = 8192, .recompute = true};
  const auto activations = [&](int layers) {
    dims.transpoints.assign(static_cast<size_t>(layers), 0);
    return predict(dims, h200_machine(96), {Transport{}}).memory.activations;
  };
  const double per_layer = activations(2) - activations(1), tensor = 2.0 * 8192 * 1536;
  EXPECT_NEAR(per_layer / tensor, 12.33, 0.15);
}

TEST(Predict, ChoosesTheFasterTransport) {
  const MachineModel machine = h200_machine(128);
  for (int sp : {2, 8, 16}) {
    for (int64_t tokens : {8192, 131072}) {
      const PlanDims dims = v9_dims(tokens, sp, 4);
      const auto chosen = choose_transports(dims, machine);
      ASSERT_EQ(chosen.size(), dims.transpoints.size());
      const double seconds = predict(dims, machine, chosen).time.total();
      for (const Transport& transport : all_transports()) {
        EXPECT_LE(seconds, predict(dims, machine, {transport}).time.total() + 1e-12) << name_of(transport);
      }
    }
  }
}

TEST(Predict, ChoosesAFastAlignedFold) {
  const MachineModel machine = h200_machine(128);
  for (int64_t tokens : {8192, 131072, 8192 + 37}) {
    for (int sp : {1, 3, 8}) {
      PlanDims dims = v9_dims(tokens, sp, 1);
      const auto measure = [&](int fold) {
        dims.fold = fold;
        return std::pair(predict(dims, machine, choose_transports(dims, machine)).time.total(),
                         SequenceLayout(dims.layout()).alignment().splits.size());
      };
      const int chosen = choose_fold(dims, machine);
      const auto [seconds, splits] = measure(chosen);
      double least = seconds;
      for (int fold : {1, 2, 4, 8, 16}) least = std::min(least, measure(fold).first);
      EXPECT_LE(seconds, 1.01 * least) << tokens << " sp " << sp;
      for (int fold : {1, 2, 4, 8, 16}) {
        const auto [other_seconds, other_splits] = measure(fold);
        if (other_seconds <= 1.01 * least && sp > 1) {
          EXPECT_GE(other_splits, splits) << tokens << " sp " << sp << " fold " << fold;
        }
      }
    }
  }
  EXPECT_GE(choose_fold(v9_dims(131072, 8, 1), machine), 4);
}

TEST(Predict, KeysTravelSlowerBetweenNodes) {
  MachineModel machine = h200_machine(128);
  machine.overlap = 0;
  PlanDims dims = v9_dims(131072, 8, 4);
  const double inside = predict(dims, machine, {Transport{}}).time.sp;
  machine.ranks_per_node = 4;
  const double across = predict(dims, machine, {Transport{}}).time.sp;
  EXPECT_GT(across, 2 * inside);
}

TEST(Rank, ListsEveryLayoutThatCanRunFastestFirst) {
  PlanDims dims = v9_dims(8192, 1, 1);
  dims.global_batch = 64;
  const auto choices = rank_layouts(dims, h200_machine(128), 16, 8);
  std::set<std::string> seen;
  for (size_t i = 0; i < choices.size(); ++i) {
    const LayoutChoice& c = choices[i];
    EXPECT_EQ(c.tp * c.sp * c.dp, 16);
    PlanDims run = dims;
    run.tp = c.tp, run.sp = c.sp, run.dp = c.dp, run.fold = c.fold;
    EXPECT_EQ(dims_problem(run), "");
    EXPECT_EQ(transport_problem(run, c.transport), "");
    EXPECT_DOUBLE_EQ(predict(run, h200_machine(128), {c.transport}).time.total(), c.prediction.time.total());
    EXPECT_EQ(c.split_layers, static_cast<int>(SequenceLayout(run.layout()).alignment().splits.size()));
    EXPECT_TRUE(seen.insert(str(c.tp, " ", c.sp, " ", c.dp, " ", c.fold, " ", name_of(c.transport))).second);
    if (i == 0) continue;
    const Prediction &before = choices[i - 1].prediction, &here = c.prediction;
    EXPECT_TRUE(before.fits > here.fits || (before.fits == here.fits && before.time.total() <= here.time.total()));
  }
  // tp 1..16, sp 1..16 / tp: 5 with sp = 1; 10 with sp > 1, each with folds 1, 2, 4, 8 of four transports, and, where
  // sp divides the heads (always here), head_parallel.
  EXPECT_EQ(choices.size(), 5u + 10u * 4u * 4u + 10u);
}

TEST(Rank, LayoutsOverTheMemoryComeLast) {
  PlanDims dims = v9_dims(int64_t{1} << 20, 1, 1, 24);
  dims.global_batch = 8;
  const auto choices = rank_layouts(dims, h200_machine(128), 64);
  ASSERT_FALSE(choices.empty());
  EXPECT_TRUE(choices.front().prediction.fits);
  EXPECT_FALSE(choices.back().prediction.fits);
}

TEST(Rank, ThousandsOfRanksInUnderASecond) {
  for (int64_t tokens : {8192, 131072}) {
    PlanDims dims = v9_dims(tokens, 1, 1, 24);
    dims.global_batch = 4096;
    const std::clock_t start = std::clock();  // of this process: other programs do not count
    const size_t layouts = rank_layouts(dims, h200_machine(128), 4096).size();
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    RecordProperty(str("seconds_", tokens), str(seconds));
    RecordProperty(str("layouts_", tokens), static_cast<int>(layouts));
    EXPECT_GT(layouts, 500u);
    EXPECT_LT(seconds, 1.0);
  }
}

// --- Machines
// ---------------------------------------------------------------------------------------------------------

TEST(Machine, ScanRatesGiveBackTheMeasuredTimes) {
  PlanDims dims{.dim = 1536,
                .heads = 16,
                .head_dim = 96,
                .ffn = 4096,
                .vocab = 32768,
                .tokens = 8192,
                .transpoints = {0},
                .batch = 2};
  const RankWork all = rank_work(dims.layout(), 0).front();
  const Seconds ssd = layer_seconds(dims, h200_machine(96), all, 0)[WorkKind::ssd];
  EXPECT_NEAR(ssd.forward, 0.56e-3, 0.02e-3);
  EXPECT_NEAR(ssd.backward, 1.97e-3, 0.02e-3);
  const RankWork prefix = rank_work(dims.layout(), 8192).front();
  const Seconds attention = layer_seconds(dims, h200_machine(96), prefix, 8192)[WorkKind::attention];
  EXPECT_NEAR(attention.forward, 2 * 2.0 * 8192 * 8192 * 1536 / 467e12, 0.01e-3);
}

TEST(Machine, JsonRoundTripAndRefusals) {
  for (const MachineModel& machine : {h200_machine(64), h200_machine(128), cpu_machine()}) {
    const std::string text = machine_to_json(machine);
    EXPECT_EQ(machine_to_json(machine_from_json(text)), text);
    const PlanDims dims = v9_dims(8192, 4, 2);
    EXPECT_EQ(predict(dims, machine_from_json(text), {Transport{}}).time.total(),
              predict(dims, machine, {Transport{}}).time.total());
  }
  const std::string text = machine_to_json(cpu_machine());
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    return changed.replace(changed.find(from), from.size(), to);
  };
  EXPECT_THROW(machine_from_json("{}"), UserError);
  EXPECT_THROW(machine_from_json(text.substr(0, 40)), UserError);
  EXPECT_THROW(machine_from_json(replaced("\"overlap\": 0.0", "\"overlap\": 1.5")), UserError);
  EXPECT_THROW(machine_from_json(replaced("\"peak_flops\"", "\"peak\"")), UserError);
}

TEST(Predict, RefusalsNameTheNumberToChange) {
  PlanDims dims = v9_dims(8192, 64, 8);
  EXPECT_THROW(predict(dims, h200_machine(128), {Transport{}}), UserError);
  dims = v9_dims(8192, 32, 1);
  EXPECT_THROW(predict(dims, h200_machine(128), {transport_named("head_parallel")}), UserError);
}

}  // namespace
}  // namespace tmamba
