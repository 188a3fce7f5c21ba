// Predictions, the ranking of layouts, and machine models.
#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>
#include <set>

#include "dist/planner/cost.h"
#include "tests/dist/planner/measured_costs.h"
#include "tests/dist/planner/plan_cases.h"

namespace tmamba {
namespace {

// --- Predictions

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

// The paper's 400M model on one H200 as measured, two sequences at a time.
PlanDims measured_dims(std::vector<int64_t> transpoints) {
  return {.dim = 1536,
          .heads = 16,
          .head_dim = 96,
          .ffn = 4096,
          .vocab = 32768,
          .tokens = 8192,
          .transpoints = std::move(transpoints),
          .batch = 2};
}

// The steps that the machine's rates were taken from (one) or were not (two), in ms, kernels/cuda/PERFORMANCE.md.
TEST(Predict, StepsOfTheH200AreThoseMeasured) {
  const std::vector<int64_t> v9{0, 128, 256, 512, 1024, 2048, 4096, 8192, 0, 128, 256, 512};
  const std::pair<std::vector<int64_t>, double> measured[] = {
      {v9, 87.8}, {std::vector<int64_t>(12, 8192), 112.9}, {std::vector<int64_t>(12, 0), 83.6}};
  for (const auto& [transpoints, milliseconds] : measured) {
    const double predicted = 1e3 * predict(measured_dims(transpoints), h200_machine(96), {Transport{}}).time.total();
    EXPECT_NEAR(predicted / milliseconds, 1, 0.05) << predicted << " ms, P of layer 1: " << transpoints[1];
  }
}

TEST(Predict, ZeroStagesShardWhatTheySay) {
  PlanDims dims = v9_dims(8192, 2, 2);
  dims.dp = 4;
  const double parameters = static_cast<double>(costs_of(dims).parameters);
  for (int zero : {0, 1, 2}) {
    dims.zero = zero;
    const MemoryUse memory = predict(dims, h200_machine(128), {Transport{}}).memory;
    EXPECT_DOUBLE_EQ(memory.parameters, 2 * parameters);
    EXPECT_DOUBLE_EQ(memory.gradients, 4 * parameters * (zero == 2 ? 1 + 2.0 / 8 : 1));
    EXPECT_DOUBLE_EQ(memory.optimizer, 12 * parameters / (zero == 0 ? 1 : 8));
  }
  dims.activation_bytes = 4;  // no master copy beside float32 weights
  EXPECT_DOUBLE_EQ(predict(dims, h200_machine(128), {Transport{}}).memory.optimizer, 8 * parameters / 8);
}

TEST(Predict, ActivationsOfTheRecomputePolicy) {
  // 12.3 [T, d] tensors a layer where SSM tokens keep z (design's memory plan), here T = 8192, d = 1536, F = 4096.
  PlanDims dims{.dim = 1536, .heads = 16, .head_dim = 96, .ffn = 4096, .vocab = 32768, .tokens = 8192};
  dims.recompute = Recompute::cheap;
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
    const std::clock_t start = std::clock();  // of this process: other programs do not count; with the dry runs
    const size_t layouts = rank_layouts(dims, h200_machine(128), 4096).size();
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    RecordProperty(str("seconds_", tokens), str(seconds));
    RecordProperty(str("layouts_", tokens), static_cast<int>(layouts));
    EXPECT_GT(layouts, 500u);
    EXPECT_LT(seconds, 1.0);
  }
}

// --- Machines

// `bench ops` of the V9 model, ms a step (kernels/cuda/PERFORMANCE.md).
TEST(Machine, RatesGiveBackTheMeasuredTimesOfOps) {
  const PlanDims dims = measured_dims({0, 128, 256, 512, 1024, 2048, 4096, 8192, 0, 128, 256, 512});
  KindSeconds sum;
  for (int64_t p : dims.transpoints) {
    const KindSeconds layer = layer_seconds(dims, h200_machine(96), rank_work(dims.layout(), p).front(), p);
    for (WorkKind kind : kWorkKinds) sum[kind] = sum[kind] + layer[kind];
  }
  const Seconds scans = sum[WorkKind::ssd] + sum[WorkKind::converter];
  EXPECT_NEAR(scans.forward, 1.70e-3, 0.03e-3);
  EXPECT_NEAR(scans.backward, 5.24e-3, 0.03e-3);
  // Attention alone over the whole sequence: 412 GFLOP forward at 572 TFLOP/s, 1031 backward at 460.
  const Seconds attention =
      layer_seconds(dims, h200_machine(96), rank_work(dims.layout(), 8192).front(), 8192)[WorkKind::attention];
  EXPECT_NEAR(attention.forward, 0.721e-3, 0.01e-3);
  EXPECT_NEAR(attention.backward, 2.241e-3, 0.03e-3);
  const Seconds head = head_seconds(dims, h200_machine(96), dims.tokens)[WorkKind::head];
  EXPECT_NEAR(sum[WorkKind::linear].forward + head.forward, 18.70e-3, 0.2e-3);
  EXPECT_NEAR(sum[WorkKind::linear].backward + head.backward, 39.15e-3, 0.4e-3);
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
