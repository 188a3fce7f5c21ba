// The parts that saving is made of, each alone.
#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <set>

#include "data/io/fs.h"
#include "dist/comm/self_communicator.h"
#include "launch/cli/line_log.h"
#include "launch/state/run_progress.h"
#include "launch/state/run_state.h"
#include "launch/state/save_interval.h"
#include "launch/state/saver.h"
#include "launch/state/sharding.h"
#include "launch/state/snapshot.h"
#include "launch/train/spike_guard.h"
#include "model/schedule.h"
#include "tests/data/checkpoint/checkpoint_fixture.h"
#include "tests/data/temp_folder.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using testing_files::FileSizeLimit;

bool spikes(const SpikeGuard& guard, double loss, double grad_norm) {
  return loss > guard.limits().loss || grad_norm > guard.limits().grad_norm;
}

TEST(SpikeGuard, DistinguishesASpikeFromNoise) {
  SpikeGuard guard(8, 4);
  for (int i = 0; i < 8; ++i) {
    EXPECT_FALSE(spikes(guard, 100, 100)) << "decided after " << i << " steps";
    guard.applied(2 + 0.1 * (i % 2), 1 + 0.1 * (i % 3));
  }
  EXPECT_FALSE(spikes(guard, 2.2, 1.2));
  EXPECT_FALSE(spikes(guard, -100, -100));  // improvements are not spikes
  EXPECT_TRUE(spikes(guard, 2.3, 1.1));
  EXPECT_TRUE(spikes(guard, 2.05, 2.0));
  // It moves on with the run.
  for (int i = 0; i < 8; ++i) guard.applied(5 + 0.1 * (i % 2), 1 + 0.1 * (i % 3));
  EXPECT_FALSE(spikes(guard, 5.1, 1.1));
  EXPECT_FALSE(spikes(SpikeGuard(0, 4), 1e9, 1e9));
}

TEST(SpikeGuard, ItsStateComesBackToTheLastBit) {
  SpikeGuard guard(16, 3), other(16, 3), shorter(4, 3);
  const Philox random(3, 1);
  for (uint64_t i = 0; i < 40; ++i) guard.applied(random.words(i)[0] * 1e-9 + 1, random.words(i)[1] * 1e-9);
  const std::string text = guard.state().dump();
  other.restore(nlohmann::json::parse(text));
  EXPECT_EQ(other.state().dump(), text);
  shorter.restore(nlohmann::json::parse(text));
  EXPECT_EQ(shorter.state()["loss"].size(), 4u);
  EXPECT_EQ(shorter.state()["loss"][3], guard.state()["loss"][15]);
  EXPECT_THROW(other.restore({{"loss", "x"}}), nlohmann::json::exception);
  EXPECT_TRUE(SpikeGuard(0, 3).state().is_null());
}

TEST(SaveInterval, IsThatOfYoungAndDaly) {
  // 6.3 s a save and a failure every 7.9 hours.
  EXPECT_NEAR(best_interval(6.3, 7.9 * 3600), 599, 1);
  SaveInterval interval(7.9);
  for (int i = 0; i < 9; ++i) {
    EXPECT_FALSE(interval.due()) << i;
    interval.step(2.0, false);
  }
  interval.step(2.0, false);
  EXPECT_TRUE(interval.due());
  for (int i = 0; i < 3; ++i) interval.step(3.6, true);  // three steps, each 1.6 s longer than usual
  interval.saved(1.5);
  ASSERT_TRUE(interval.cost());
  EXPECT_NEAR(*interval.cost(), 6.3, 0.01);
  int steps = 0;
  for (; !interval.due(); ++steps) interval.step(2.0, false);
  EXPECT_NEAR(steps, 300, 2);
}

TEST(RunProgress, CountsAttemptsWithoutProgress) {
  testing_files::TempFolder folder;
  const auto start = [&](int64_t step, const std::string& config) {
    return RunProgress(folder.path(), true).stuck(step, config);
  };
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(start(10, "a")) << i;
  EXPECT_TRUE(start(10, "a"));
  EXPECT_TRUE(start(10, "a"));
  EXPECT_FALSE(start(20, "a"));  // a newer checkpoint
  EXPECT_FALSE(start(20, "a"));
  EXPECT_FALSE(start(20, "b"));  // another try
  {
    RunProgress progress(folder.path(), true);
    EXPECT_FALSE(progress.stuck(20, "b"));
    progress.moved_on();
    progress.rolled_back(20, 64);
  }
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(start(20, "b")) << i;
  EXPECT_TRUE(start(20, "b"));
  const RunProgress progress(folder.path(), true);
  EXPECT_TRUE(progress.rolled_back_to(20));
  EXPECT_EQ(progress.skipped_sequences(), 64);
  put_text(folder / "progress.json", "{\"starts\": \"x\"}");
  EXPECT_THROW(RunProgress(folder.path(), true), UserError);
  put_text(folder / "progress.json", "x");
  EXPECT_THROW(RunProgress(folder.path(), true), UserError);
}

TEST(LineLog, LosesWholeLinesAndContinues) {
  testing_files::TempFolder folder;
  const fs::path file = folder / "log";
  LineLog log(file);
  log.append("first");
  {
    const FileSizeLimit limited(10);
    log.append("this one does not fit");
    log.append("nor this");
  }
  log.append("last");
  EXPECT_EQ(file_text(file), "first\nlast\n");
  EXPECT_EQ(log.lost(), 2);
  EXPECT_THROW(LineLog(folder / "none" / "log"), UserError);
}

TEST(Saver, AFailedSaveIsReportedAndTheNextOneIsWhole) {
  testing_files::TempFolder folder;
  SelfCommunicator self("self");
  Saver saver(self, folder.path(), {.keep = 2});
  auto tensors = sample_tensors(4);
  const auto collect = [&] { return deal(tensors, 3, 1); };
  int64_t good = 0;
  for (int64_t step = 1; step <= 12; ++step) {
    std::optional<SaveOutcome> outcome;
    {
      std::optional<FileSizeLimit> limited;
      if (step % 3 == 0) limited.emplace(step % 2 == 0 ? 100 : 100000);
      outcome = saver.start(step, collect, {{"step", step}});
      if (!outcome) outcome = saver.finish();
    }
    EXPECT_FALSE(saver.in_flight());
    EXPECT_EQ(outcome->step, step);
    if (step % 3 == 0) {
      EXPECT_NE(outcome->problem.find("File too large"), std::string::npos) << outcome->problem;
    } else {
      EXPECT_EQ(outcome->problem, "");
      good = step;
    }
    const auto all = list_checkpoints(folder.path());
    EXPECT_EQ(CheckpointReader(all.back()).step(), good);
    EXPECT_TRUE(CheckpointReader(all.back()).verify().empty());
    for (const std::string& name : names_in(folder.path())) EXPECT_EQ(name.find(".tmp"), std::string::npos) << name;
  }
}

TEST(Saver, EndingTheProgramGivesUpWhatIsInFlight) {
  testing_files::TempFolder folder;
  SelfCommunicator self("self");
  std::vector<Logical> tensors;
  tensors.emplace_back("model/w", DType::f32, std::vector<int64_t>{4096, 2048}, 1);
  for (int i = 0; i < 5; ++i) {
    Saver saver(self, folder.path(), {});
    EXPECT_FALSE(saver.start(i, [&] { return deal(tensors, 1, 1); }, {}));
  }
  EXPECT_TRUE(list_checkpoints(folder.path()).empty());
}

TEST(Snapshot, OneBufferServesEverySave) {
  Logical a("a", DType::f32, {7, 3}, 1), b("b", DType::bf16, {11}, 2);
  Snapshot snapshot(Device::cpu);
  snapshot.copy(a.view()), snapshot.copy(b.view());
  const int64_t bytes = snapshot.bytes();
  std::set<const void*> places;
  for (int save = 0; save < 100; ++save) {
    snapshot.clear();
    const Tensor copy_a = snapshot.copy(a.view()), copy_b = snapshot.copy(b.view());
    places.insert({copy_a.raw(), copy_b.raw()});
    EXPECT_EQ(std::memcmp(copy_a.raw(), a.bytes.data(), a.bytes.size()), 0);
    EXPECT_EQ(std::memcmp(copy_b.raw(), b.bytes.data(), b.bytes.size()), 0);
    EXPECT_EQ(snapshot.bytes(), bytes);
  }
  EXPECT_EQ(places.size(), 2u);
}

// --- resharding: every rank of a layout, one after the other in this process

struct Mesh3 {
  int tp, sp, dp;
};

const Mesh3 kLayouts[] = {{2, 2, 2}, {1, 8, 1}, {4, 1, 2}, {1, 1, 1}, {2, 4, 1}, {1, 2, 3}};

// One rank's share of the model and of the optimizer's state.
struct Rank {
  ParameterTable table;
  Buffer buffer;
  Tensor params;
  Optimizer optimizer;

  // AdamW's slots, and one with a scalar per row.
  static std::vector<StateSlot> slots(DType dtype) {
    std::vector<StateSlot> slots = optimizer_slots({}, dtype);
    slots.push_back({.name = "row_scale", .dtype = DType::f64, .shape = SlotShape::rows});
    return slots;
  }

  Rank(const ModelConfig& model, const Mesh3& mesh, int tp, int zero, DType dtype)
      : table(model, tp, mesh.tp),
        buffer({table.flat_size()}, dtype),
        params(buffer.tensor({table.flat_size()}, dtype)),
        optimizer(owned_rows(table, {}, ZeroSharding(1, mesh.sp * mesh.dp), zero), slots(dtype), Device::cpu) {}
};

TEST(Reshard, ParametersAndMomentsAreTheSameBitsOnEveryLayout) {
  ModelConfig model;
  model.vocab = 51, model.dim = 32, model.heads = 4, model.layers = 2, model.ffn = 48;
  model.schedule = {parse_transpoint("0"), parse_transpoint("1/2")};
  TempFolder folder{TempFolder::memory()};
  SelfCommunicator self("self");
  for (DType dtype : {DType::f32, DType::bf16}) {
    // A run's first checkpoint, from one rank; every bit of the state is random.
    Rank one(model, {1, 1, 1}, 0, 0, dtype);
    std::deque<Logical> random;
    auto fill = [&](const Tensor& x) {
      random.emplace_back("r", x.dtype(), std::vector<int64_t>{x.numel()}, 100 + random.size());
      std::memcpy(x.raw(), random.back().bytes.data(), random.back().bytes.size());
    };
    fill(one.params);
    for (size_t i = 0; i < one.optimizer.owned().size(); ++i) {
      for (size_t slot = 0; slot < one.optimizer.slots().size(); ++slot) fill(one.optimizer.state(slot, i));
    }
    const auto as_it_is = [](const Tensor& x) { return x; };
    int64_t step = dtype == DType::f32 ? 1 : 100;
    fs::path before =
        save_checkpoint(self, folder.path(), step,
                        run_slices(one.table, one.params, one.optimizer, true, true, as_it_is), {}, {.keep = 0})
            .path;
    const CheckpointReader first(before);
    // Loads a checkpoint on every rank of a layout and saves what they hold.
    const auto moved = [&](const fs::path& path, const Mesh3& mesh) {
      const CheckpointReader reader(path);
      std::deque<Rank> ranks;
      std::vector<TensorSlice> slices;
      for (int zero = 0; zero < mesh.sp * mesh.dp; ++zero) {
        for (int tp = 0; tp < mesh.tp; ++tp) {
          Rank& rank = ranks.emplace_back(model, mesh, tp, zero, dtype);
          load_params(reader, rank.table, rank.params);
          load_optimizer(reader, rank.table, rank.optimizer);
          for (TensorSlice& slice : run_slices(rank.table, rank.params, rank.optimizer, true, tp == 0, as_it_is)) {
            slices.push_back(std::move(slice));
          }
        }
      }
      return save_checkpoint(self, folder.path(), ++step, slices, {}, {.keep = 0}).path;
    };
    for (const Mesh3& from : kLayouts) {
      const fs::path there = moved(before, from);
      for (const Mesh3& to : kLayouts) {
        const CheckpointReader saved(moved(there, to));
        ASSERT_EQ(saved.tensors().size(), first.tensors().size());
        for (const StoredTensor& tensor : first.tensors()) {
          const Logical like(tensor.name, tensor.dtype, tensor.shape, 0);
          ASSERT_EQ(read_whole(saved, like), read_whole(first, like))
              << tensor.name << " from " << from.tp << " x " << from.sp << " x " << from.dp << " to " << to.tp << " x "
              << to.sp << " x " << to.dp;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tmamba
