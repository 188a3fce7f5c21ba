// transmamba bench: times of ops and of whole steps, beside the rates this machine reaches for a plain matrix product
// and a plain copy in the same run.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "dist/self_communicator.h"
#include "kernels/base/rng.h"
#include "launch/command.h"
#include "launch/config.h"
#include "launch/devices.h"
#include "launch/op_profile.h"
#include "launch/progress.h"
#include "launch/run_state.h"
#include "launch/trainer.h"
#include "launch/verbs.h"
#include "model/measure.h"
#include "model/optimizer.h"

namespace tmamba {

namespace po = boost::program_options;

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

struct Roof {
  double flops = 0;  // per second, of a product of large square matrices of random numbers
  double bytes = 0;  // per second read and written by a copy that does not fit the caches
};

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

// One rank's training step on random tokens: forward, backward, gradient norm, AdamW.
class StepBench {
 public:
  StepBench(const RunConfig& config, Ops& ops) : config_(config), table_(config.model) {
    const Device device = ops.device();
    const DType dtype = config.dtype(), acc = accumulate_type(dtype);
    const int64_t B = std::max<int64_t>(config.train.micro_batch, 1), T = config.data.seq_len,
                  size = table_.flat_size();
    ranks_ = std::make_unique<ModelRanks>(
        LayoutSpec{.tokens = T,
                   .chunk = config.model.chunk,
                   .conv_width = static_cast<int>(config.model.conv),
                   .transpoints = transpoints(config.model.schedule, config.model.layers, T)},
        B, ops, self_, self_);
    const ModelMeasure measure = measure_model(config_.model, table_, *ranks_, dtype, device, config.recompute());
    counts_ = measure.counts;
    saved_ = Arena(measure.saved_bytes, device), scratch_ = Arena(measure.scratch_bytes, device);
    params_buffer_ = Buffer({size}, dtype, device), grads_buffer_ = Buffer({size}, acc, device);
    tokens_buffer_ = Buffer({2, B, T}, DType::i32, device), sums_buffer_ = Buffer({3}, DType::f64, device);
    params_ = params_buffer_.tensor({size}, dtype), grads_ = grads_buffer_.tensor({size}, acc);
    tokens_ = tokens_buffer_.tensor({2, B, T}, DType::i32), sums_ = sums_buffer_.tensor({3}, DType::f64);
    random_tokens();
    model_ = std::make_unique<TransMamba>(config_.model, table_, *ranks_, dtype, saved_, config.recompute());
    optimizer_ = std::make_unique<Optimizer>(all_rows(table_), dtype, device);
    initialize_run(ops, table_, 1, params_, *optimizer_);
    for (const OwnedRows& rows : optimizer_->owned()) gradients_.push_back(Optimizer::rows_of(grads_, rows));
  }

  void step(Ops& ops) {
    ops.fill(grads_, 0);
    model_->forward_backward(ops, scratch_, params_, grads_, {tokens_.select(0, 0), tokens_.select(0, 1)},
                             1.0 / static_cast<double>(tokens()),
                             {.loss_1 = sums_.slice(0, 0, 1), .count_1 = sums_.slice(0, 1, 1), .loss_N = {}},
                             [](int) {});
    const ConstTensor grads = grads_;
    ops.sum_squares(sums_.slice(0, 2, 1), {&grads, 1});
    optimizer_->step(ops, params_, gradients_, adamw_step(1, 1e-4, 0.9, 0.95, 1e-8, 0.1, 1));
  }

  const OpCounts& counts() const { return counts_; }
  int64_t tokens() const { return batch() * seq_len(); }
  int64_t parameters() const { return table_.global_size(); }
  int64_t batch() const { return ranks_->batch(); }
  int64_t seq_len() const { return ranks_->layout().tokens(); }
  size_t activation_bytes() const { return saved_.peak() + scratch_.peak(); }

 private:
  void random_tokens() {
    std::vector<int32_t> host(static_cast<size_t>(2 * tokens()));
    for (size_t i = 0; i < host.size(); ++i)
      host[i] = static_cast<int32_t>(Philox(3, 3).words(i)[0] % static_cast<uint64_t>(config_.model.vocab));
    copy_blocking(tokens_, ConstTensor(host.data(), {2, batch(), seq_len()}, DType::i32));
  }

  const RunConfig config_;
  ParameterTable table_;
  SelfCommunicator self_{"self"};
  std::unique_ptr<ModelRanks> ranks_;
  OpCounts counts_;
  Arena saved_{Device::cpu}, scratch_{Device::cpu};
  Buffer params_buffer_, grads_buffer_, tokens_buffer_, sums_buffer_;
  Tensor params_, grads_, tokens_, sums_;
  std::unique_ptr<TransMamba> model_;
  std::unique_ptr<Optimizer> optimizer_;
  std::vector<Tensor> gradients_;
};

json bench_step(const RunConfig& config, Ops& ops, int64_t steps, const Roof& roof) {
  StepBench bench(config, ops);
  std::vector<double> times;
  for (int64_t i = 0; i <= steps; ++i) times.push_back(seconds_of(ops, [&] { bench.step(ops); }));
  times.erase(times.begin());  // the first one warms caches and pages
  const double seconds = median(times), flops = bench.counts().matmul() / seconds;
  return {{"parameters", bench.parameters()},
          {"batch", bench.batch()},
          {"seq_len", bench.seq_len()},
          {"step_ms", seconds * 1e3},
          {"tokens_per_s", static_cast<double>(bench.tokens()) / seconds},
          {"gflop", bench.counts().matmul() / 1e9},
          {"gflop_linear", bench.counts().linear / 1e9},
          {"gflop_attention", bench.counts().attention / 1e9},
          {"gflop_ssd", bench.counts().ssd / 1e9},
          {"gflops", flops / 1e9},
          {"gemm_gflops", roof.flops / 1e9},
          {"fraction_of_gemm", flops / roof.flops},
          {"activation_bytes", bench.activation_bytes()}};
}

json bench_ops(const RunConfig& config, Ops& ops, int64_t steps, const Roof& roof) {
  StepBench bench(config, ops);
  const auto timed = make_timed_ops(ops);
  bench.step(*timed);
  timed->reset();
  for (int64_t i = 0; i < steps; ++i) bench.step(*timed);
  json rows = op_rows(*timed, steps);
  for (json& row : rows) {
    row["fraction_of_roof"] =
        1e9 * std::max(row["gflops"].get<double>() / roof.flops, row["gb_per_s"].get<double>() / roof.bytes);
  }
  return rows;
}

RunConfig default_config() {
  return parse_config(
      "[model]\nvocab = 4096\ndim = 256\nheads = 4\nlayers = 8\nffn = 688\n"
      "schedule = [0, \"1/64\", \"1/32\", \"1/16\", \"1/8\", \"1/4\", \"1/2\", \"1/1\"]\n"
      "[data]\nseq_len = 1024\n[train]\nmicro_batch = 8\n",
      "bench's own configuration", {});
}

}  // namespace

int bench_verb(const Arguments& arguments) {
  if (!arguments.empty() && arguments.front() == "comm") return bench_comm({arguments.begin() + 1, arguments.end()});
  Command command(
      "bench ops|step|comm [CONFIG] [options]",
      "step  one rank's training step (forward, backward, gradient norm, AdamW) on random tokens\n"
      "ops   the same step op by op: ms per step, GFLOP/s, GB/s, and the larger share of the two roofs\n"
      "comm  every exchange between ranks, by size; bench comm --help shows its own options\n"
      "Roofs are a matrix product (2048^3, on a GPU 8192^3) and a copy, measured in the same run on the same device.");
  command.options()("set", po::value<std::vector<std::string>>(), "override a key: --set model.dim=512 (repeatable)")(
      "steps", po::value<int64_t>()->default_value(5), "steps to time; the median counts")(
      "threads", po::value<int>()->default_value(0), "CPU threads; 0: all")(
      "device", po::value<std::string>(), "cpu or cuda; default: the configuration's");
  command.positional("what");
  command.positional("config");
  if (!command.parse(arguments)) return kDone;
  const std::string what = command.required("what");
  if (what != "ops" && what != "step")
    throw UserError(str("bench ", what, ": there is no such benchmark; one of ops, step, comm"));
  if (command.get<int>("threads") > 0) omp_set_num_threads(command.get<int>("threads"));
  RunConfig config = command.has("config") ? load_config(command.required("config"), {}) : default_config();
  std::vector<std::string> overrides = command.list("set");
  if (command.has("device")) overrides.push_back("run.device=" + command.get<std::string>("device"));
  config = parse_config(to_toml(config), "configuration", overrides);
  if (config.model.vocab == 0) config.model.vocab = 4096;
  const auto ops = ops_of(config);
  ops->measure_choices(true);
  const Roof roof = measure_roof(*ops, config.dtype());
  const json result = what == "step" ? bench_step(config, *ops, command.get<int64_t>("steps"), roof)
                                     : bench_ops(config, *ops, command.get<int64_t>("steps"), roof);
  if (command.json()) {
    std::printf("%s\n", result.dump(2).c_str());
    return kDone;
  }
  std::printf("%s, %d threads, %s: matrix product %.1f GFLOP/s, copy %.1f GB/s\n", config.run.device.c_str(),
              omp_get_max_threads(), name_of(config.dtype()), roof.flops / 1e9, roof.bytes / 1e9);
  if (what == "step") {
    std::printf("%s parameters, B=%lld, T=%lld: %.1f ms a step, %s tokens/s\n",
                count_text(result["parameters"].get<double>()).c_str(), result["batch"].get<long long>(),
                result["seq_len"].get<long long>(), result["step_ms"].get<double>(),
                count_text(result["tokens_per_s"].get<double>()).c_str());
    std::printf(
        "%.1f GFLOP a step (linear %.1f, attention %.1f, SSD %.1f): %.1f GFLOP/s = %.1f %% of the matrix product's "
        "rate\n",
        result["gflop"].get<double>(), result["gflop_linear"].get<double>(), result["gflop_attention"].get<double>(),
        result["gflop_ssd"].get<double>(), result["gflops"].get<double>(),
        100 * result["fraction_of_gemm"].get<double>());
    return kDone;
  }
  std::printf("%s", op_table(result).c_str());
  return kDone;
}

}  // namespace tmamba
