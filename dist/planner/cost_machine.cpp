// Machine presets and their JSON.
#include <nlohmann/json.hpp>

#include "dist/planner/cost.h"

namespace tmamba {

namespace {

using Json = nlohmann::ordered_json;

// Calls visit(name, value, lowest and highest allowed) for every number of a machine.
template <class Machine, class Visit>
void for_each_number(Machine& machine, Visit&& visit) {
  constexpr double least = 1e-9, any = 1e30;
  visit("peak_flops", machine.peak_flops, least, any);
  visit("memory_bandwidth", machine.memory_bandwidth, least, any);
  visit("memory_bytes", machine.memory_bytes, least, any);
  for (WorkKind kind : kWorkKinds) {
    for (const auto& [name, rates] : {std::pair{"compute.", &machine.compute}, {"streaming.", &machine.streaming}}) {
      visit(str(name, name_of(kind), ".forward"), (*rates)[kind].forward, least, 1.0);
      visit(str(name, name_of(kind), ".backward"), (*rates)[kind].backward, least, 1.0);
    }
  }
  visit("inside.bandwidth", machine.inside.bandwidth, least, any);
  visit("between.bandwidth", machine.between.bandwidth, least, any);
  visit("launch_seconds", machine.launch_seconds, 0.0, 1.0);
  visit("inside.latency", machine.inside.latency, 0.0, 1.0);
  visit("between.latency", machine.between.latency, 0.0, 1.0);
  visit("overlap", machine.overlap, 0.0, 1.0);
}

}  // namespace

MachineModel h200_machine(int64_t head_dim) {
  MachineModel h200{.name = "NVIDIA H200, bf16",
                    .peak_flops = 989e12,
                    .memory_bandwidth = 4.20e12,
                    .memory_bytes = 139.0 * (1 << 30)};
  // From `bench ops` (V9), head included: linear_forward; linear_backward_input and linear_backward_weight together.
  h200.compute[WorkKind::linear] = h200.compute[WorkKind::head] = {725.0 / 989, 693.0 / 989};
  // Attention of heads 96 wide over 8192 keys (cuda_mixer_bench); for other widths in proportion to cuDNN's rates.
  const Rate cudnn = head_dim <= 64 ? Rate{439, 376} : head_dim <= 96 ? Rate{467, 368} : Rate{582, 497};
  h200.compute[WorkKind::attention] = {cudnn.forward / 467 * 572 / 989, cudnn.backward / 368 * 460 / 989};
  // ssd_forward 1.70 ms and ssd_backward 5.24 ms, scans and converters together. Neither arithmetic nor memory bounds
  // them; their time is best described as passes over [T, d], 6 and 12 of a scan and 2 and 4 of a converter. The
  // arguments of a scan, which a dry run counts, are only 4 and 7 of its passes.
  h200.streaming[WorkKind::converter] = {0.443, 0.286};
  h200.streaming[WorkKind::ssd] = {0.443 * 4 / 6, 0.286 * 7 / 12};
  // conv_silu, rmsnorm, swiglu, gated_norm, rope, and what the step takes beyond all rows.
  h200.streaming[WorkKind::elementwise] = {0.80, 0.50};
  for (WorkKind kind : {WorkKind::linear, WorkKind::head, WorkKind::attention}) h200.streaming[kind] = {0.9, 0.9};
  h200.launch_seconds = 5e-6;
  h200.inside = {.bandwidth = 336e9, .latency = 20e-6};
  h200.between = {.bandwidth = 50e9, .latency = 30e-6};
  h200.ranks_per_node = 8;
  h200.overlap = 0.8;
  return h200;
}

MachineModel cpu_machine() {
  MachineModel cpu{.name = "one CPU core per rank, float32",
                   .peak_flops = 110e9,
                   .memory_bandwidth = 36e9,
                   .memory_bytes = 4.0 * (1 << 30)};
  for (Rate& rate : cpu.compute) rate = {0.5, 0.5};
  for (Rate& rate : cpu.streaming) rate = {0.5, 0.5};
  cpu.compute[WorkKind::linear] = cpu.compute[WorkKind::head] = {0.95, 0.95};
  cpu.compute[WorkKind::attention] = {0.75, 0.88};
  cpu.compute[WorkKind::ssd] = cpu.compute[WorkKind::converter] = {0.45, 0.45};
  cpu.streaming[WorkKind::elementwise] = {0.45, 0.40};
  cpu.launch_seconds = 1e-6;
  cpu.inside = {.bandwidth = 3e9, .latency = 10e-6};
  cpu.between = {.bandwidth = 1e9, .latency = 50e-6};
  cpu.ranks_per_node = 64;
  return cpu;
}

std::string machine_to_json(const MachineModel& machine) {
  Json json{{"name", machine.name}, {"ranks_per_node", machine.ranks_per_node}};
  for_each_number(machine, [&](const std::string& name, double value, double, double) { json[name] = value; });
  return json.dump(2) + "\n";
}

MachineModel machine_from_json(const std::string& text) {
  MachineModel machine;
  try {
    const Json json = Json::parse(text);
    machine.name = json.at("name").get<std::string>();
    machine.ranks_per_node = json.at("ranks_per_node").get<int>();
    if (machine.ranks_per_node < 1) throw UserError("machine model: ranks_per_node must be at least 1");
    for_each_number(machine, [&](const std::string& name, double& value, double lowest, double highest) {
      value = json.at(name).get<double>();
      if (!(value >= lowest && value <= highest)) {
        throw UserError(str("machine model: ", name, " = ", value, " must be from ", lowest, " to ", highest));
      }
    });
  } catch (const nlohmann::json::exception& error) {
    throw UserError(str("not a machine model: ", error.what()));
  }
  return machine;
}

}  // namespace tmamba
