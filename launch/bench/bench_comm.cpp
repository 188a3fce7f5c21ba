// transmamba bench comm: time and bandwidth of every exchange that training uses, by size, along each axis of the mesh.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "dist/world/device_world.h"
#include "dist/world/mesh.h"
#include "launch/bench/comm_sweep.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/config/config.h"
#include "launch/state/devices.h"
#include "launch/verbs.h"

namespace tmamba {

namespace po = boost::program_options;

namespace {

using nlohmann::json;

// The axes along which there is anybody to talk to; dp only where zero has other ranks.
std::vector<Communicator*> axes(Mesh& mesh) {
  std::vector<Communicator*> found;
  for (Communicator* comm : {&mesh.tp(), &mesh.sp(), &mesh.zero()}) {
    if (comm->size() > 1) found.push_back(comm);
  }
  if (mesh.shape().sp > 1 && mesh.shape().dp > 1) found.push_back(&mesh.dp());
  return found;
}

void print(const json& result) {
  std::printf("%s, %s\n%-6s %5s  %-22s %12s %12s %10s %10s\n", result["device"].get<std::string>().c_str(),
              result["dtype"].get<std::string>().c_str(), "axis", "ranks", "exchange", "size", "us", "alg GB/s",
              "bus GB/s");
  for (const json& row : result["exchanges"]) {
    std::printf("%-6s %5d  %-22s %12s %12.1f %10.2f %10.2f\n", row["axis"].get<std::string>().c_str(),
                row["ranks"].get<int>(), row["exchange"].get<std::string>().c_str(),
                bytes_text(row["bytes"].get<int64_t>()).c_str(), row["us"].get<double>(),
                row["algorithm_gb_per_s"].get<double>(), row["bus_gb_per_s"].get<double>());
  }
}

int bench_on(World& world, const Command& command) {
  std::vector<std::string> overrides = command.list("set");
  if (command.has("device")) overrides.push_back("run.device=" + command.get<std::string>("device"));
  const RunConfig config = command.has("config") ? load_config(command.get<std::string>("config"), overrides)
                                                 : parse_config("", "bench's own configuration", overrides);
  const MeshShape shape = mesh_shape(config.parallel.tp, config.parallel.sp, config.parallel.dp, world.size());
  if (world.size() == 1) throw UserError("bench comm needs several ranks: mpirun -n 2 transmamba bench comm");
  const auto ops = ops_of(config, &world);
  const bool gpu = ops->device() == Device::cuda;
  const int64_t max_bytes =
      command.has("max-bytes") ? command.get<int64_t>("max-bytes") : int64_t{1} << (gpu ? 30 : 26);
  const int64_t min_bytes = command.get<int64_t>("min-bytes");
  if (min_bytes < 16 * world.size() || max_bytes < min_bytes) {
    throw UserError(str("--min-bytes must be at least ", 16 * world.size(), ", and --max-bytes no less"));
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
    print(result);
  }
  return kDone;
}

}  // namespace

int bench_comm(const Arguments& arguments) {
  return run_main([&](World& world) {
    Command command(
        "bench comm [CONFIG] [options]",
        "Time and bandwidth of every exchange, by size, along each axis of the mesh; started by mpirun or srun.\n"
        "Sizes are those of the whole tensor; times are medians, of the slowest rank. Bus bandwidth is what each link\n"
        "of a ring carries: 2 (n-1)/n of the size for all_reduce, (n-1)/n for the others, all of it for send_recv.\n"
        "\"uneven\": pieces of different sizes, as ZeRO cuts them.");
    command.options()("set", po::value<std::vector<std::string>>(), "override a key: --set parallel.tp=2 (repeatable)")(
        "device", po::value<std::string>(), "cpu or cuda; default: the configuration's")(
        "min-bytes", po::value<int64_t>()->default_value(1024), "smallest size")(
        "max-bytes", po::value<int64_t>(), "largest size; default: 64 MiB on CPUs, 1 GiB on GPUs");
    command.positional("config");
    if (!command.parse(arguments, world.rank() == 0)) return static_cast<int>(kDone);
    return bench_on(world, command);
  });
}

}  // namespace tmamba
