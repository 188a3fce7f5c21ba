// transmamba bench comm: time and bandwidth of every collective that training uses, by size, along each axis of the
// mesh.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "dist/world/device_world.h"
#include "dist/world/mesh.h"
#include "launch/bench/comm_sweep.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/config/config.h"
#include "launch/run/rank_agreement.h"
#include "launch/state/devices.h"
#include "launch/verbs.h"

namespace tmamba {

namespace {

using nlohmann::json;

// The axes of more than one rank; dp only if it differs from zero.
std::vector<Communicator*> axes(Mesh& mesh) {
  std::vector<Communicator*> found;
  for (Communicator* comm : {&mesh.tp(), &mesh.sp(), &mesh.zero()}) {
    if (comm->size() > 1) found.push_back(comm);
  }
  if (mesh.shape().sp > 1 && mesh.shape().dp > 1) found.push_back(&mesh.dp());
  return found;
}

RunConfig config_of(const Command& command) {
  std::vector<std::string> overrides = command.list("set");
  if (command.has("device")) overrides.push_back("run.device=" + command.get<std::string>("device"));
  return command.has("config") ? load_config(command.get<std::string>("config"), overrides)
                               : parse_config("", "bench's own configuration", overrides);
}

int bench_on(World& world, const Command& command, const RunConfig& config) {
  const MeshShape shape = mesh_shape(config.parallel.tp, config.parallel.sp, config.parallel.dp, world.size());
  if (world.size() == 1) throw UserError("bench comm needs more than one rank: mpirun -n 2 transmamba bench comm");
  const auto ops = ops_of(config, world);
  const int64_t max_bytes =
      command.has("max-bytes") ? command.get<int64_t>("max-bytes") : largest_sweep_bytes(ops->device());
  const int64_t min_bytes = command.get<int64_t>("min-bytes");
  if (min_bytes < 16 * world.size() || max_bytes < min_bytes) {
    throw UserError(str("--min-bytes ", min_bytes, " must be at least ", 16 * world.size(), ", and --max-bytes ",
                        max_bytes, " at least --min-bytes"));
  }
  Mesh mesh(*make_device_communicator(world, ops->device(), ops->native_stream()), shape);
  json result = {
      {"device", name_of(config.run.device)}, {"dtype", name_of(config.dtype())}, {"exchanges", json::array()}};
  for (Communicator* comm : axes(mesh)) {
    for (json& row :
         sweep(world, *comm, config.dtype(), ops->device(), {.min_bytes = min_bytes, .max_bytes = max_bytes})) {
      result["exchanges"].push_back(std::move(row));
    }
  }
  if (world.rank() != 0) return kDone;
  if (command.json()) {
    std::printf("%s\n", result.dump(2).c_str());
  } else {
    std::printf("%s, %s\n%s", name_of(config.run.device), name_of(config.dtype()),
                sweep_text(result["exchanges"]).c_str());
  }
  return kDone;
}

}  // namespace

int bench_comm(const Arguments& arguments) {
  return run_main([&](World& world) {
    Command command("bench comm");
    RunConfig config;
    const bool runs = parse_together(world, "bench comm", command, arguments, [&](RankFacts& facts) {
      config = config_of(command);
      facts.add(config);
    });
    return runs ? bench_on(world, command, config) : static_cast<int>(kDone);
  });
}

}  // namespace tmamba
