// The planner's rates of a machine: from the times of ops, and those that it has for CPUs.
#include "launch/plan/machine_rates.h"

#include <gtest/gtest.h>

#include "launch/plan/run_plan.h"

namespace tmamba {
namespace {

TEST(MachineRates, ReproduceTheTimesOfTheOps) {
  // 50 of 100 GFLOP/s forward, 80 backward; bytes say little. 4 of 10 GB/s forward, 2 backward.
  const std::map<std::string, OpTiming> timings{
      {"linear_forward", {.calls = 2, .seconds = 2, .flops = 100e9, .bytes = 1e9}},
      {"linear_backward_input", {.calls = 2, .seconds = 1, .flops = 100e9, .bytes = 1e9}},
      {"linear_backward_weight", {.calls = 2, .seconds = 1.5, .flops = 100e9, .bytes = 1e9}},
      {"swiglu_forward", {.calls = 1, .seconds = 1, .flops = 1e9, .bytes = 4e9}},
      {"rmsnorm_backward", {.calls = 1, .seconds = 2, .flops = 1e9, .bytes = 4e9}},
      {"embedding_forward", {.calls = 1, .seconds = 100, .flops = 1, .bytes = 1}},
      {"ssd_forward", {.calls = 1, .seconds = 1, .flops = 120e9, .bytes = 1e9}}};
  const MachineModel prior = cpu_machine(), machine = measured_machine(prior, 100e9, 10e9, timings);
  EXPECT_EQ(machine.peak_flops, 120e9);  // the scan is faster than the GEMM
  EXPECT_EQ(machine.memory_bandwidth, 10e9);
  EXPECT_DOUBLE_EQ(machine.compute[WorkKind::linear].forward * 120e9, 50e9);
  EXPECT_DOUBLE_EQ(machine.compute[WorkKind::linear].backward * 120e9, 80e9);
  EXPECT_EQ(machine.compute[WorkKind::head].backward, machine.compute[WorkKind::linear].backward);
  EXPECT_EQ(machine.streaming[WorkKind::linear].forward, prior.streaming[WorkKind::linear].forward);
  EXPECT_DOUBLE_EQ(machine.streaming[WorkKind::elementwise].forward, 0.4);
  EXPECT_DOUBLE_EQ(machine.streaming[WorkKind::elementwise].backward, 0.2);
  EXPECT_EQ(machine.compute[WorkKind::converter].forward, 1);
  EXPECT_EQ(machine.compute[WorkKind::ssd].backward, prior.compute[WorkKind::ssd].backward);
  EXPECT_EQ(machine.compute[WorkKind::attention].forward, prior.compute[WorkKind::attention].forward);
  EXPECT_EQ(machine.inside.bandwidth, prior.inside.bandwidth);
  EXPECT_NO_THROW(machine_from_json(machine_to_json(machine)));
}

// Step times of the quickstart's model on one core of an AMD EPYC (`bench step --threads 1`), as a Transformer and with
// V9: what the CPU rates say of their ratio must not be off by a quarter.
TEST(MachineRates, RatioOfTransformerAndV9OnACpu) {
  struct Measured {
    int64_t tokens;
    double transformer_ms, v9_ms;
  };
  for (const Measured& measured : {Measured{2048, 1183.6 / 2, 741.2 / 2}, {4096, 3669.7, 2038.0}}) {
    const auto seconds = [&](const std::string& schedule) {
      const RunConfig config =
          parse_config("[model]\nvocab = 4096\ndim = 128\nheads = 4\nlayers = 8\nffn = 344\nschedule = " + schedule +
                           "\n[train]\nglobal_batch = 1\n",
                       "test", {"data.seq_len=" + std::to_string(measured.tokens)});
      const MachineModel machine = machine_of_device(config);
      return predict(choose_plan(config, {1, 1, 1}, machine), machine).time.total();
    };
    const double predicted =
        seconds("[\"1/1\"]") / seconds("[0, \"1/64\", \"1/32\", \"1/16\", \"1/8\", \"1/4\", \"1/2\", \"1/1\"]");
    const double ratio = measured.transformer_ms / measured.v9_ms;
    EXPECT_NEAR(predicted / ratio, 1, 0.25) << measured.tokens << " tokens: measured " << ratio;
    RecordProperty("predicted_" + std::to_string(measured.tokens), std::to_string(predicted));
  }
}

}  // namespace
}  // namespace tmamba
