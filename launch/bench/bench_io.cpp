#include "launch/bench/bench_io.h"

#include <chrono>
#include <nlohmann/json.hpp>

#include "data/io/fs.h"
#include "dist/comm/collective_guard.h"
#include "kernels/base/clock.h"
#include "kernels/base/rng.h"
#include "launch/bench/bench_step.h"
#include "launch/cli/format.h"
#include "launch/cli/statistics.h"
#include "launch/state/saver.h"
#include "launch/state/snapshot.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

double slowest(World& world, double of_rank) {
  world.comm().all_reduce(Tensor(&of_rank, {1}, DType::f64), ReduceOp::max).wait();
  return of_rank;
}

void write_token_file(const fs::path& path, const RunConfig& config, int64_t windows) {
  const auto vocab = static_cast<uint64_t>(config.model.vocab);
  const TokenFileInfo info{.vocab_size = config.model.vocab,
                           .document_end = 0,
                           .tokenizer_kind = "random",
                           .tokenizer_hash = "",
                           .tokenizer_file = "bytes",
                           .split = "train"};
  TokenFileWriter writer(path, info, std::vector<uint16_t>(vocab, 1));
  const Philox random(5, 0);
  std::vector<int32_t> tokens(static_cast<size_t>(config.data.seq_len));
  for (int64_t w = 0; w < windows; ++w) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      const uint64_t at = static_cast<uint64_t>(w) * tokens.size() + i;
      tokens[i] = static_cast<int32_t>(1 + random.words(at)[0] % (vocab - 1));
    }
    writer.append(tokens);
  }
  writer.close(windows * config.data.seq_len, "");
}

// Milliseconds to load the batches of a step: the median of five steps.
double data_ms(const RunConfig& config, World& world, StepBench& bench, const fs::path& folder) {
  constexpr int64_t kSteps = 5;
  const int64_t batch = bench.plan().dims.batch, micro_batches = bench.plan().dims.micro_batches();
  const fs::path path = folder / "tokens.h5";
  CollectiveGuard(world.comm()).on_root([&] { write_token_file(path, config, bench.sequences() + 1); });
  const TokenFile file(path);
  Loader loader(file, config.data.seq_len, static_cast<uint64_t>(config.data.seed));
  std::vector<double> times;
  for (int64_t step = -1; step < kSteps; ++step) {  // step -1 opens the file and warms up
    world.comm().barrier();
    const auto begin = Clock::now();
    for (int64_t micro = 0; micro < micro_batches; ++micro) {
      const int64_t first = (step + 1) * bench.sequences() + (bench.coordinates().dp * micro_batches + micro) * batch;
      bench.take(loader.load(first, batch));
    }
    const double ms = slowest(world, ms_since(begin));
    if (step >= 0) times.push_back(ms);
  }
  return median_of(times);
}

json checkpoint_times(World& world, Ops& ops, StepBench& bench, const fs::path& folder) {
  Saver saver(world.comm(), folder / "checkpoints", SaveOptions{.keep = 1});
  Snapshot snapshot(ops.device());
  bench.slices([&](const Tensor& x) { return snapshot.copy(x); });
  snapshot.clear();
  SaveOutcome outcome;
  double stall = 0, complete = 0;
  for (int64_t step : {1, 2}) {  // the first save touches the pages of the host copy
    world.comm().barrier();
    const auto begin = Clock::now();
    auto failed = saver.start(
        step,
        [&] {
          snapshot.clear();
          return bench.slices([&](const Tensor& x) { return snapshot.copy(x); });
        },
        json::object());
    stall = slowest(world, ms_since(begin));
    outcome = failed ? *failed : saver.finish();
    complete = slowest(world, ms_since(begin));
    if (!outcome.problem.empty())
      throw Error(str("bench step --io ", folder.string(), ": checkpoint failed: ", outcome.problem));
  }
  return {{"checkpoint_stall_ms", stall}, {"checkpoint_ms", complete}, {"checkpoint_bytes", outcome.report.bytes}};
}

}  // namespace

json bench_io(const RunConfig& config, World& world, Ops& ops, StepBench& bench, const std::string& folder) {
  const fs::path place = bench_io_folder(folder);
  CollectiveGuard guard(world.comm());
  guard.on_root([&] {
    fs::remove_all(place);
    make_folders(place / "checkpoints");
  });
  json io = checkpoint_times(world, ops, bench, place);
  io["data_ms"] = data_ms(config, world, bench, place);
  world.comm().barrier();
  guard.on_root([&] { fs::remove_all(place); });
  return io;
}

fs::path bench_io_folder(const fs::path& folder) { return folder / "bench-io"; }

std::string io_text(const json& io) {
  const auto number = [&](const char* name) { return io.at(name).get<double>(); };
  return str("data loading ", fixed(number("data_ms"), 2), " ms per step; checkpoint of ",
             bytes_text(io.at("checkpoint_bytes").get<int64_t>()), ": blocks training for ",
             fixed(number("checkpoint_stall_ms"), 1), " ms, complete after ", fixed(number("checkpoint_ms"), 1),
             " ms\n");
}

}  // namespace tmamba
