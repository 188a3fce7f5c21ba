// Memory of a rank, measured without ranks or memory: what sequence parallelism saves, and what `transmamba plan`
// predicts.
#include <gtest/gtest.h>

#include <cstdio>

#include "dist/comm/absent_communicator.h"
#include "dist/comm/self_communicator.h"
#include "kernels/base/buffer.h"
#include "launch/plan/plan_memory.h"
#include "model/measure.h"
#include "tests/source_dir.h"

namespace tmamba {
namespace {

// Eight layers of the paper's schedule V9 at its sequence length; a small model of usual proportions.
RunConfig v9_config(const std::vector<std::string>& overrides = {}) {
  std::vector<std::string> all{"parallel.dp=1"};
  all.insert(all.end(), overrides.begin(), overrides.end());
  return parse_config(
      "[model]\nvocab = 32768\ndim = 512\nheads = 8\nlayers = 8\nffn = 1408\n"
      "schedule = [0, 128, 256, 512, 1024, 2048, 4096, 8192]\n"
      "[data]\nseq_len = 8192\n[train]\nglobal_batch = 2\nmicro_batch = 2\n",
      "v9", all);
}

struct Planned {
  RunConfig config;
  RunPlan plan;
  RankMemory memory() const { return largest_memory(config, plan); }
  // Of one rank alone.
  OpCounts counts() const {
    SelfCommunicator self{"self"};
    const auto ops = make_counting_ops(Device::cpu);
    const auto ranks = model_ranks(plan, *ops, self, self);
    return measure_model(config.model, ParameterTable(config.model), *ranks, config.dtype(), Device::cpu,
                         plan.dims.recompute)
        .counts;
  }
};

Planned planned(const RunConfig& config) {
  const MeshShape mesh{static_cast<int>(config.parallel.tp), static_cast<int>(config.parallel.sp),
                       static_cast<int>(config.parallel.dp)};
  return {config, choose_plan(config, mesh, machine_of_device(config))};
}

TEST(Memory, FourSequenceRanksNeedAtMostThreeTenthsOfTheActivationsOfOne) {
  const auto one = static_cast<double>(planned(v9_config()).memory().activations());
  for (const char* transport :
       {"auto", "group_cast+all_gather", "group_cast+sliced", "gather+all_gather", "gather+sliced", "head_parallel"}) {
    for (const char* fold : {"1", "2", "4"}) {
      const Planned four = planned(v9_config(
          {"parallel.sp=4", std::string("parallel.fold=") + fold, std::string("parallel.transport=") + transport}));
      const RankMemory memory = four.memory();
      EXPECT_LE(static_cast<double>(memory.activations()) / one, 0.30)
          << transport << " fold " << fold << ": saved " << memory.saved << ", scratch " << memory.scratch << " of "
          << one;
      EXPECT_GE(static_cast<double>(memory.activations()) / one, 0.25);
    }
  }
}

TEST(Memory, OptimizerBytesDivideBySequenceAndDataRanks) {
  const auto bytes = [](int sp, int dp, const char* zero) {
    return static_cast<double>(planned(v9_config({str("parallel.sp=", sp), str("parallel.dp=", dp),
                                                  "train.global_batch=8", str("parallel.zero=", zero)}))
                                   .memory()
                                   .optimizer);
  };
  const double whole = bytes(1, 1, "1");
  for (const auto& [sp, dp] : {std::pair{4, 1}, {1, 4}, {2, 2}, {4, 2}}) {
    // To within a row of the widest matrix in each bucket.
    EXPECT_NEAR(bytes(sp, dp, "1") * sp * dp / whole, 1, 0.01) << sp << " x " << dp;
    EXPECT_EQ(bytes(sp, dp, "0"), whole) << sp << " x " << dp;
  }
}

// The copy that a save is written from: the model's rows and the optimizer's state, once over all ranks.
TEST(Memory, TheCopyOfASaveIsCounted) {
  const auto copy = [](std::vector<std::string> more) {
    more.push_back("checkpoint.every=10");
    more.push_back("train.global_batch=8");
    return planned(v9_config(more)).memory();
  };
  const RankMemory one = copy({});
  // Without the padding between parameters.
  EXPECT_NEAR(static_cast<double>(one.host_copy) / static_cast<double>(one.parameters + one.optimizer), 1, 1e-3);
  for (const char* dp : {"2", "4"}) {
    const RankMemory many = copy({std::string("parallel.dp=") + dp});
    EXPECT_NEAR(static_cast<double>(many.host_copy) * std::stoi(dp) / static_cast<double>(one.host_copy), 1, 0.02);
  }
  EXPECT_EQ(copy({"checkpoint.async=false"}).host_copy, 0);
  EXPECT_EQ(planned(v9_config({"checkpoint.every=0"})).memory().host_copy, 0);
  EXPECT_GT(copy({"run.device=cuda", "train.dtype=bfloat16", "checkpoint.async=false"}).host_copy, 0);
}

TEST(Memory, PredictionsAreWithinFivePercentOfDryRuns) {
  int compared = 0;
  for (const char* layout : {"tp=1 sp=1", "tp=2 sp=1", "tp=1 sp=4", "tp=2 sp=2", "tp=1 sp=8", "tp=4 sp=4"}) {
    for (const char* fold : {"1", "2", "4"}) {
      for (const char* transport : {"auto", "group_cast+all_gather", "gather+sliced", "head_parallel"}) {
        for (const char* more : {"train.micro_batch=1", "train.dtype=float64", "parallel.zero=2", "model.z_gate=false",
                                 "model.vocab=257", "model.schedule=[0]", "model.schedule=[\"1/1\"]",
                                 "train.recompute=cheap", "train.recompute=mlp", "train.recompute=all"}) {
          std::vector<std::string> overrides{std::string("parallel.fold=") + fold,
                                             std::string("parallel.transport=") + transport, more};
          const std::string text = layout;
          overrides.push_back("parallel." + text.substr(0, 4)), overrides.push_back("parallel." + text.substr(5));
          RunConfig config = v9_config(overrides);
          SCOPED_TRACE(str(layout, " fold ", fold, " ", transport, " ", more));
          if (!transport_problem(
                   plan_dims(config, {static_cast<int>(config.parallel.tp), static_cast<int>(config.parallel.sp), 1}),
                   transport_named(transport == std::string("auto") ? "gather+sliced" : transport))
                   .empty())
            continue;
          const Planned run = planned(config);
          const RankMemory found = run.memory();
          const MemoryUse predicted = predict(run.plan, machine_of_device(config)).memory;
          const auto near = [](const char* what, double a, int64_t b) {
            EXPECT_NEAR(a / static_cast<double>(b), 1, 0.05) << what << ": " << a << " predicted, " << b << " found";
          };
          near("parameters", predicted.parameters, found.parameters);
          near("gradients", predicted.gradients, found.gradients);
          near("optimizer", predicted.optimizer, found.optimizer);
          near("activations", predicted.activations + predicted.scratch, found.activations());
          near("total", predicted.total(), found.total());
          ++compared;
        }
      }
    }
  }
  EXPECT_GT(compared, 400);
}

// Each level takes less than the one before it, on one rank and on many.
TEST(Memory, EveryLevelOfRecomputationTakesLess) {
  for (const char* layout : {"tp=1 sp=1", "tp=2 sp=1", "tp=1 sp=4", "tp=2 sp=4"}) {
    for (const char* transport : {"auto", "head_parallel"}) {
      const std::string text = layout;
      std::vector<std::string> overrides{"parallel.dp=1", "parallel." + text.substr(0, 4), "parallel." + text.substr(5),
                                         std::string("parallel.transport=") + transport, "model.vocab=32768"};
      std::vector<double> gib;
      for (Recompute level : kRecomputeLevels) {
        std::vector<std::string> all = overrides;
        all.push_back(std::string("train.recompute=") + name_of(level));
        const RunConfig config = load_config(TMAMBA_SOURCE_DIR "/configs/transmamba-400m.toml", all);
        const RankMemory memory = planned(config).memory();
        gib.push_back(static_cast<double>(memory.activations()) / (1 << 30));
        if (level == Recompute::none) continue;
        EXPECT_LT(gib.back(), gib[gib.size() - 2]) << layout << " " << transport;
      }
      std::printf("400M, bfloat16, %s, %s: none %.2f, cheap %.2f, mlp %.2f, all %.2f GiB of activations\n", layout,
                  transport, gib[0], gib[1], gib[2], gib[3]);
      EXPECT_LT(gib[3], 0.5 * gib[0]);
    }
  }
}

// The planner scales the costs of short sequences; for a whole run on one rank they are what its own dry run counts.
TEST(Memory, PredictedWorkIsThatOfADryRun) {
  MachineModel machine = cpu_machine();
  machine.peak_flops = 1, machine.memory_bandwidth = 1e30;  // seconds are FLOPs
  machine.compute.fill({1, 1});
  for (const char* change : {"train.dtype=float32", "model.z_gate=false", "model.chunk=48", "model.schedule=[77, 8191]",
                             "model.converter=zero", "model.vocab=300"}) {
    for (Recompute level : kRecomputeLevels) {
      const Planned run = planned(v9_config({change, std::string("train.recompute=") + name_of(level)}));
      const PlanDims& dims = run.plan.dims;
      KindSeconds sum = head_seconds(run.plan.costs, dims, machine, dims.tokens);
      for (int64_t p : dims.transpoints) {
        const KindSeconds layer = layer_seconds(run.plan.costs, dims, machine, rank_work(dims.layout(), p).front(), p);
        for (WorkKind kind : kWorkKinds) sum[kind] = sum[kind] + layer[kind];
      }
      const OpCounts counts = run.counts();
      const auto total = [&](WorkKind kind) { return sum[kind].total(); };
      SCOPED_TRACE(str(change, " ", name_of(level)));
      EXPECT_NEAR((total(WorkKind::linear) + total(WorkKind::head)) / counts.linear, 1, 1e-12);
      EXPECT_NEAR(total(WorkKind::attention) / counts.attention, 1, 1e-12);
      EXPECT_NEAR((total(WorkKind::ssd) + total(WorkKind::converter)) / counts.ssd, 1, 1e-12);
      // On one rank memory is that of the dry run but for the alignment of small tensors.
      const MemoryUse memory = predict(run.plan, machine).memory;
      EXPECT_NEAR((memory.activations + memory.scratch) / static_cast<double>(run.memory().activations()), 1, 2e-3);
    }
  }
}

// The arenas of a real step have exactly the sizes that dry runs measure; the tests of the model run on such arenas.
TEST(Memory, EveryRankOfALayoutIsMeasured) {
  const Planned four = planned(v9_config({"parallel.sp=4", "parallel.tp=2"}));
  RankMemory largest;
  for (int sp = 0; sp < 4; ++sp) {
    for (int tp = 0; tp < 2; ++tp) {
      const RankMemory memory = rank_memory(four.config, four.plan, {.tp = tp, .sp = sp, .dp = 0});
      EXPECT_GT(memory.saved, 0);
      EXPECT_LE(memory.activations(), four.memory().activations());
      EXPECT_LE(memory.optimizer, four.memory().optimizer);
      if (memory.activations() > largest.activations()) largest = memory;
    }
  }
  EXPECT_EQ(largest.activations(), four.memory().activations());
}

TEST(AbsentCommunicator, RefusesToMoveAnything) {
  AbsentCommunicator comm("sp", 2, 4);
  Buffer buffer({4}, DType::f32);
  const Tensor x = buffer.tensor({4}, DType::f32);
  const std::vector<int64_t> counts{1, 1, 1, 1};
  EXPECT_EQ(comm.rank(), 2);
  EXPECT_EQ(comm.size(), 4);
  EXPECT_THROW(comm.all_reduce(x, ReduceOp::sum), Error);
  EXPECT_THROW(comm.reduce_scatter(x.slice(0, 0, 1), x, counts), Error);
  EXPECT_THROW(comm.all_gather(x, x.slice(0, 0, 1), counts), Error);
  EXPECT_THROW(comm.broadcast(x, 0), Error);
  EXPECT_THROW(comm.all_to_all(x, counts, x, counts), Error);
  EXPECT_THROW(comm.send_recv({}), Error);
  EXPECT_THROW(comm.barrier(), Error);
  EXPECT_THROW(comm.split(0, 0, "x"), Error);
  EXPECT_THROW(AbsentCommunicator("sp", 4, 4), Error);
  try {
    comm.barrier();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("barrier on \"sp\", rank 2 of 4"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace tmamba
