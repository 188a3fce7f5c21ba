#include "launch/bench/bench_step.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "dist/world/device_world.h"
#include "kernels/base/clock.h"
#include "kernels/base/device.h"
#include "kernels/base/rng.h"
#include "launch/bench/bench_io.h"
#include "launch/cli/format.h"
#include "launch/cli/statistics.h"
#include "launch/config/batch_split.h"
#include "launch/plan/device_peak.h"
#include "launch/plan/memory_check.h"
#include "launch/state/devices.h"
#include "launch/state/run_state.h"

namespace tmamba {

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

double seconds_of(Ops& ops, const auto& work) {
  ops.synchronize();
  const auto begin = Clock::now();
  work();
  ops.synchronize();
  return seconds_since(begin);
}

void fill_random(Ops& ops, const Tensor& flat, double std) {
  const DType acc = accumulate_type(flat.dtype());
  const Buffer host({flat.numel()}, acc);
  const Tensor host_flat = host.tensor({flat.numel()}, acc);
  dispatch_float(acc, [&]<class T>() {
    T* data = host_flat.data<T>();
    const Philox random(7, 7);
#pragma omp parallel for
    for (int64_t i = 0; i < flat.numel(); ++i) data[i] = static_cast<T>(std * random.normal(static_cast<uint64_t>(i)));
  });
  copy_from_host(ops, flat, host_flat);
}

// The configuration with `micro_batches` micro-batches per step.
RunConfig with_micro_batches(RunConfig config, const MeshShape& shape, int64_t micro_batches) {
  config.train.micro_batch = std::max<int64_t>(config.train.micro_batch, 1);
  const BatchSplit batch{.dp = shape.dp, .micro_batch = config.train.micro_batch, .micro_batches = micro_batches};
  config.train.global_batch = batch.sequences();
  return config;
}

double over_ranks(World& world, double value, ReduceOp op) {
  world.comm().all_reduce(Tensor(&value, {1}, DType::f64), op).wait();
  return value;
}

MeshShape shape_of(const RunConfig& config, const World& world) {
  return mesh_shape(config.parallel.tp, config.parallel.sp, config.parallel.dp, world.size());
}

RunPlan plan_that_fits(const RunConfig& config, const MeshShape& shape, Device device, World& world) {
  RunPlan plan = agree_plan(config, shape, world.comm());
  require_memory(config, plan, device, world);
  return plan;
}

}  // namespace

Roof measure_roof(Ops& ops, DType dtype) {
  const bool gpu = ops.device() == Device::cuda;
  const int64_t n = gpu ? 8192 : 2048, copied = int64_t{1} << (gpu ? 29 : 26);
  Buffer a({n, n}, dtype, ops.device()), b({n, n}, dtype, ops.device()), c({n, n}, dtype, ops.device());
  for (const Buffer* buffer : {&a, &b}) fill_random(ops, buffer->tensor({n * n}, dtype), 1);
  Buffer from({copied}, dtype, ops.device()), to({copied}, dtype, ops.device());
  std::vector<double> product, copy;
  for (int i = 0; i < 6; ++i) {
    product.push_back(seconds_of(ops, [&] {
      ops.linear_forward(
          {.y_NO = c.tensor({n, n}, dtype), .x_NI = a.tensor({n, n}, dtype), .w_OI = b.tensor({n, n}, dtype)});
    }));
    copy.push_back(seconds_of(ops, [&] { ops.copy({to.tensor({copied}, dtype), from.tensor({copied}, dtype)}); }));
  }
  return {.flops = 2.0 * static_cast<double>(n * n * n) / median_of(product),
          .bytes = 2.0 * static_cast<double>(copied) * static_cast<double>(size_of(dtype)) / median_of(copy)};
}

StepBench::StepBench(const RunConfig& config, World& world, Ops& ops, int64_t micro_batches)
    : config_(with_micro_batches(config, shape_of(config, world), micro_batches)),
      device_(make_device_communicator(world, ops.device(), ops.native_stream())),
      mesh_(*device_, shape_of(config, world)),
      plan_(plan_that_fits(config_, mesh_.shape(), ops.device(), world)),
      tp_(mesh_.tp()),
      sp_(mesh_.sp()),
      zero_(mesh_.zero()),
      all_(*device_),
      step_(config_, plan_,
            {.tp = tp_, .sp = sp_, .zero = zero_, .all = all_, .shape = mesh_.shape(), .at = mesh_.coordinates()},
            {.micro_batches = plan_.dims.micro_batches(),
             .global_sequences = config_.train.global_batch,
             .record = config_.run.graph},
            ops),
      taken_({2, step_.ranks().batch(), step_.ranks().local_tokens()}, DType::i32, ops.device()) {
  initialize_run(ops, step_.table(), 1, step_.params(), step_.optimizer());
}

// Loads the same random tokens at every step.
void StepBench::load(const Tensor& tokens_Bn, const Tensor& targets_Bn) const {
  const Philox random(3, static_cast<uint64_t>(mesh_.shape().zero_rank(mesh_.coordinates())));
  uint64_t i = 0;
  for (const Tensor& x : {tokens_Bn, targets_Bn}) {
    int32_t* ids = x.data<int32_t>();
    for (int64_t n = 0; n < x.numel(); ++n) {
      ids[n] = static_cast<int32_t>(random.words(i++)[0] % static_cast<uint64_t>(config_.model.vocab));
    }
  }
}

void StepBench::take(const Batch& batch) {
  const Buffer host({2, step_.ranks().batch(), step_.ranks().local_tokens()}, DType::i32);
  const Tensor host_2Bn = host.tensor({2, step_.ranks().batch(), step_.ranks().local_tokens()}, DType::i32);
  step_.ranks().shard(host_2Bn.select(0, 0), batch.tokens_BT);
  step_.ranks().shard(host_2Bn.select(0, 1), batch.targets_BT);
  copy_blocking(taken_.tensor({host_2Bn.numel()}, DType::i32), host_2Bn);
}

std::vector<TensorSlice> StepBench::slices(const std::function<Tensor(const Tensor&)>& to_host) {
  const bool owns = step_.reducer().sharding().represents_owned(mesh_.shape().zero_rank(mesh_.coordinates()));
  return run_slices(step_.table(), step_.params(), step_.optimizer(), owns, mesh_.coordinates().tp == 0, to_host);
}

void StepBench::mute(bool on) {
  for (MutedCommunicator* comm : {&tp_, &sp_, &zero_, &all_}) comm->mute(on);
  step_.discard_recordings();
}

void StepBench::step(Ops& ops) {
  step_.run(
      ops, {.number = 1, .lr = 1e-4},
      [this](int64_t, const Tensor& tokens_Bn, const Tensor& targets_Bn) { load(tokens_Bn, targets_Bn); },
      [] { return StepVotes{}; });
}

namespace {

// Median seconds per step: of the slowest rank in each step, and of this rank. One step to warm up and one to record
// the graph come first.
struct Times {
  double slowest = 0, own = 0;
};
Times time_steps(StepBench& bench, World& world, Ops& ops, int64_t steps) {
  std::vector<double> slowest, own;
  for (int64_t i = -2; i < steps; ++i) {
    world.comm().barrier();
    const double seconds = seconds_of(ops, [&] { bench.step(ops); });
    const double most = over_ranks(world, seconds, ReduceOp::max);
    if (i >= 0) slowest.push_back(most), own.push_back(seconds);
  }
  return {median_of(slowest), median_of(own)};
}

// Bytes in use on the rank that uses most: on its GPU, or resident in host memory.
int64_t memory_in_use(World& world, Device device) {
  double bytes = 0;
  if (device == Device::cuda) {
    const DeviceMemory memory = device_memory(device);
    bytes = static_cast<double>(memory.total - memory.free);
  } else {
    std::ifstream in("/proc/self/statm");
    int64_t pages = 0;
    in >> pages >> pages;
    bytes = static_cast<double>(pages * ::sysconf(_SC_PAGESIZE));
  }
  return static_cast<int64_t>(over_ranks(world, bytes, ReduceOp::max));
}

int hosts_of(const World& world) {
  return static_cast<int>(std::set<std::string>(world.hosts().begin(), world.hosts().end()).size());
}

// Adds the exposed communication: the step time minus that of a muted step, and the planner's prediction.
void add_exposed(json& result, const RunConfig& config, StepBench& bench, World& world, Ops& ops, int64_t steps) {
  bench.mute(true);
  const Times alone = time_steps(bench, world, ops, steps);
  bench.mute(false);
  const double mean = over_ranks(world, alone.own, ReduceOp::sum) / world.size();
  const double most = over_ranks(world, alone.own, ReduceOp::max);
  const StepTime predicted = predict(bench.plan(), machine_of_device(config)).time;
  result["work_ms"] = most * 1e3;
  result["balance"] = mean / most;
  result["exposed_ms"] = result["step_ms"].get<double>() - most * 1e3;
  result["predicted_step_ms"] = predicted.total() * 1e3;
  result["predicted_exposed_ms"] = (predicted.tp + predicted.sp + predicted.dp) * 1e3;
}

}  // namespace

json bench_step(const RunConfig& config, World& world, Ops& ops, const StepBenchOptions& options) {
  StepBench bench(config, world, ops, options.micro_batches);
  const double seconds = time_steps(bench, world, ops, options.steps).slowest;
  const auto total = [&](double of_rank) { return over_ranks(world, of_rank, ReduceOp::sum); };
  const PlanDims& dims = bench.plan().dims;
  const auto gflop_of = [&](double of_micro_batch) {
    return total(of_micro_batch) * static_cast<double>(dims.micro_batches()) / 1e9;
  };
  const double gflop = gflop_of(bench.counts().matmul()), roof_gflops = total(options.roof.flops) / 1e9;
  json result = {{"parameters", bench.parameters()},
                 {"batch", bench.sequences()},
                 {"micro_batches", dims.micro_batches()},
                 {"seq_len", dims.tokens},
                 {"ranks", world.size()},
                 {"hosts", hosts_of(world)},
                 {"processors", std::thread::hardware_concurrency()},
                 {"threads", omp_get_max_threads()},
                 {"tp", dims.tp},
                 {"sp", dims.sp},
                 {"dp", dims.dp},
                 {"fold", dims.fold},
                 {"transport", transports_text(bench.plan().transports)},
                 {"step_ms", seconds * 1e3},
                 {"tokens_per_s", static_cast<double>(bench.tokens()) / seconds},
                 {"gflop", gflop},
                 {"gflop_linear", gflop_of(bench.counts().linear)},
                 {"gflop_attention", gflop_of(bench.counts().attention)},
                 {"gflop_ssd", gflop_of(bench.counts().ssd)},
                 {"gflops", gflop / seconds},
                 {"activation_bytes", bench.activation_bytes()},
                 {"memory_bytes", memory_in_use(world, ops.device())},
                 {"graph", bench.recorded()}};
  if (roof_gflops > 0) {
    result["gemm_gflops"] = roof_gflops;
    result["fraction_of_gemm"] = gflop / seconds / roof_gflops;
  }
  const Peak peak = peak_of_ranks(config, world);
  result["peak_source"] = peak.source;
  if (peak.flops > 0) {
    result["peak_tflops"] = peak.flops / 1e12;
    const double forward = model_flops(bench.plan().costs, dims) * static_cast<double>(bench.sequences());
    result["mfu"] = mfu(forward, seconds, world.size(), peak);
  }
  if (!options.io_folder.empty()) result["io"] = bench_io(config, world, ops, bench, options.io_folder);
  if (world.size() > 1) add_exposed(result, config, bench, world, ops, options.steps);
  return result;
}

std::string step_text(const json& r) {
  const auto number = [&](const char* name) { return r.at(name).get<double>(); };
  const auto whole = [&](const char* name) { return r.at(name).get<int64_t>(); };
  std::string text = str(
      count_text(number("parameters")), " parameters, B=", whole("batch"), ", T=", whole("seq_len"), ": ",
      fixed(number("step_ms"), 1), " ms per step, ", count_text(number("tokens_per_s")), " tokens/s\n",
      fixed(number("gflop"), 1), " GFLOP per step (linear ", fixed(number("gflop_linear"), 1), ", attention ",
      fixed(number("gflop_attention"), 1), ", SSD ", fixed(number("gflop_ssd"), 1), "): ", fixed(number("gflops"), 1),
      " GFLOP/s",
      r.contains("gemm_gflops") ? str(" = ", fixed(100 * number("fraction_of_gemm"), 1), " % of the GEMM rate")
                                : std::string(),
      "\n",
      r.contains("mfu")
          ? str("MFU ", fixed(100 * number("mfu"), 1), " % of ", fixed(number("peak_tflops"), 1), " TFLOP/s per rank, ")
          : std::string("MFU: "),
      r.at("peak_source").get<std::string>(), "\n");
  if (r.contains("io")) text += io_text(r.at("io"));
  if (whole("ranks") == 1) return text;
  text += str(whole("ranks"), " ranks: tp ", whole("tp"), ", sp ", whole("sp"), ", dp ", whole("dp"), ", fold ",
              whole("fold"), ", ", r.at("transport").get<std::string>(), "\ncompute on the slowest rank ",
              fixed(number("work_ms"), 1), " ms (balance ", fixed(number("balance"), 3), "), exposed communication ",
              fixed(number("exposed_ms"), 1), " ms; predicted: step ", fixed(number("predicted_step_ms"), 1),
              " ms, exposed ", fixed(number("predicted_exposed_ms"), 1), " ms\n");
  return text;
}

}  // namespace tmamba
