#include "launch/bench_step.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <nlohmann/json.hpp>

#include "dist/device_world.h"
#include "kernels/base/rng.h"
#include "launch/devices.h"
#include "launch/progress.h"
#include "launch/run_state.h"

namespace tmamba {

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

double seconds_of(Ops& ops, const auto& work) {
  ops.synchronize();
  const auto begin = Clock::now();
  work();
  ops.synchronize();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
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

// One micro-batch makes the step.
RunConfig of_one_micro_batch(RunConfig config, const MeshShape& shape) {
  config.train.micro_batch = std::max<int64_t>(config.train.micro_batch, 1);
  config.train.global_batch = config.train.micro_batch * shape.dp;
  return config;
}

double over_ranks(World& world, double value, ReduceOp op) {
  world.comm().all_reduce(Tensor(&value, {1}, DType::f64), op).wait();
  return value;
}

MeshShape shape_of(const RunConfig& config, const World& world) {
  return mesh_shape(config.parallel.tp, config.parallel.sp, config.parallel.dp, world.size());
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
      ops.linear_forward(c.tensor({n, n}, dtype), a.tensor({n, n}, dtype), b.tensor({n, n}, dtype));
    }));
    copy.push_back(seconds_of(ops, [&] { ops.copy(to.tensor({copied}, dtype), from.tensor({copied}, dtype)); }));
  }
  return {.flops = 2.0 * static_cast<double>(n * n * n) / median(product),
          .bytes = 2.0 * static_cast<double>(copied) * static_cast<double>(size_of(dtype)) / median(copy)};
}

StepBench::StepBench(const RunConfig& config, World& world, Ops& ops)
    : config_(of_one_micro_batch(config, shape_of(config, world))),
      device_(make_device_communicator(world, ops.device(), ops.native_stream())),
      mesh_(*device_, shape_of(config, world)),
      plan_(agree_plan(config_, mesh_.shape(), world.comm())),
      tp_(mesh_.tp()),
      sp_(mesh_.sp()),
      zero_(mesh_.zero()),
      all_(*device_),
      step_(config_, plan_,
            {.tp = tp_, .sp = sp_, .zero = zero_, .all = all_, .shape = mesh_.shape(), .at = mesh_.coordinates()},
            {.micro_batches = 1,
             .global_sequences = config_.train.global_batch,
             .zero = static_cast<int>(config_.parallel.zero),
             .rule = {},
             .record = config_.run.graph},
            ops) {
  initialize_run(ops, step_.table(), 1, step_.params(), step_.optimizer());
}

// The same at every step.
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

void StepBench::mute(bool on) {
  for (MutedCommunicator* comm : {&tp_, &sp_, &zero_, &all_}) comm->mute(on);
  step_.forget();
}

void StepBench::step(Ops& ops) {
  StepOrders orders{.number = 1, .lr = 1e-4, .limits = {}};
  orders.limits[kMostLoss] = orders.limits[kMostGradNorm] = std::numeric_limits<double>::infinity();
  step_.run(
      ops, orders, [this](int64_t, const Tensor& tokens_Bn, const Tensor& targets_Bn) { load(tokens_Bn, targets_Bn); },
      [] { return StepWishes{}; });
}

namespace {

// Medians of a number of steps, after one that warms up and one that is recorded: of the slowest rank in each, and of
// this rank.
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
  return {median(slowest), median(own)};
}

}  // namespace

json bench_step(const RunConfig& config, World& world, Ops& ops, int64_t steps, const Roof& roof) {
  StepBench bench(config, world, ops);
  const int ranks = world.size();
  const double seconds = time_steps(bench, world, ops, steps).slowest;
  const auto total = [&](double of_rank) { return over_ranks(world, of_rank, ReduceOp::sum); };
  const double gflop = total(bench.counts().matmul()) / 1e9, roof_gflops = total(roof.flops) / 1e9;
  const PlanDims& dims = bench.plan().dims;
  json result = {{"parameters", bench.parameters()},
                 {"batch", dims.batch * dims.dp},
                 {"seq_len", dims.tokens},
                 {"ranks", ranks},
                 {"tp", dims.tp},
                 {"sp", dims.sp},
                 {"dp", dims.dp},
                 {"fold", dims.fold},
                 {"transport", transports_text(bench.plan().transports)},
                 {"step_ms", seconds * 1e3},
                 {"tokens_per_s", static_cast<double>(bench.tokens()) / seconds},
                 {"gflop", gflop},
                 {"gflop_linear", total(bench.counts().linear) / 1e9},
                 {"gflop_attention", total(bench.counts().attention) / 1e9},
                 {"gflop_ssd", total(bench.counts().ssd) / 1e9},
                 {"gflops", gflop / seconds},
                 {"gemm_gflops", roof_gflops},
                 {"fraction_of_gemm", gflop / seconds / roof_gflops},
                 {"activation_bytes", bench.activation_bytes()},
                 {"graph", bench.recorded()}};
  if (ranks == 1) return result;
  bench.mute(true);
  const Times alone = time_steps(bench, world, ops, steps);
  const double mean = total(alone.own) / ranks, most = over_ranks(world, alone.own, ReduceOp::max);
  const StepTime predicted = predict(dims, machine_of_device(config), bench.plan().transports).time;
  result["work_ms"] = most * 1e3;
  result["balance"] = mean / most;
  result["exposed_ms"] = (seconds - most) * 1e3;
  result["predicted_step_ms"] = predicted.total() * 1e3;
  result["predicted_exposed_ms"] = (predicted.tp + predicted.sp + predicted.dp) * 1e3;
  return result;
}

std::string step_text(const json& r) {
  const auto number = [&](const char* name) { return r.at(name).get<double>(); };
  const auto whole = [&](const char* name) { return r.at(name).get<int64_t>(); };
  std::string text = str(
      count_text(number("parameters")), " parameters, B=", whole("batch"), ", T=", whole("seq_len"), ": ",
      fixed(number("step_ms"), 1), " ms a step, ", count_text(number("tokens_per_s")), " tokens/s\n",
      fixed(number("gflop"), 1), " GFLOP a step (linear ", fixed(number("gflop_linear"), 1), ", attention ",
      fixed(number("gflop_attention"), 1), ", SSD ", fixed(number("gflop_ssd"), 1), "): ", fixed(number("gflops"), 1),
      " GFLOP/s = ", fixed(100 * number("fraction_of_gemm"), 1), " % of the matrix product's rate\n");
  if (whole("ranks") == 1) return text;
  text += str(whole("ranks"), " ranks: tp ", whole("tp"), ", sp ", whole("sp"), ", dp ", whole("dp"), ", fold ",
              whole("fold"), ", ", r.at("transport").get<std::string>(), "\nwork of the slowest rank ",
              fixed(number("work_ms"), 1), " ms (balance ", fixed(number("balance"), 3), "), exchanges not hidden ",
              fixed(number("exposed_ms"), 1), " ms; predicted: step ", fixed(number("predicted_step_ms"), 1),
              " ms, not hidden ", fixed(number("predicted_exposed_ms"), 1), " ms\n");
  return text;
}

}  // namespace tmamba
