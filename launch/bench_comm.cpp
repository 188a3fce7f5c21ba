// transmamba bench comm: time and bandwidth of every exchange that training uses, by size, along each axis of the mesh.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>

#include "dist/device_world.h"
#include "dist/mesh.h"
#include "kernels/base/buffer.h"
#include "launch/command.h"
#include "launch/config.h"
#include "launch/devices.h"
#include "launch/progress.h"
#include "launch/trainer.h"
#include "launch/verbs.h"

namespace tmamba {

namespace po = boost::program_options;

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int kSamples = 9;

// One kind of exchange on n elements: x and y have that many. By the convention of nccl-tests its bytes are those of
// the whole tensor, and its bus bandwidth counts what each link of a ring must carry.
struct Exchange {
  const char* name;
  double bus_factor;  // of n ranks
  std::function<Work(Communicator&, const Tensor& y, const Tensor& x)> start;
};

std::vector<int64_t> pieces(int64_t elements, int size, bool even) {
  std::vector<int64_t> counts(static_cast<size_t>(size), elements / size);
  // ZeRO cuts at rows of parameters: no two slices are quite the same.
  const int64_t moved = even || size == 1 ? 0 : elements / size / 16;
  counts.front() += moved, counts.back() -= moved;
  counts.back() += elements - elements / size * size;
  return counts;
}

Tensor piece_of(const Tensor& whole, const std::vector<int64_t>& counts, int rank) {
  int64_t begin = 0;
  for (int r = 0; r < rank; ++r) begin += counts[static_cast<size_t>(r)];
  return whole.slice(0, begin, counts[static_cast<size_t>(rank)]);
}

Work reduce_scatter(Communicator& comm, const Tensor& y, const Tensor& x, bool even) {
  const auto counts = pieces(x.numel(), comm.size(), even);
  return comm.reduce_scatter(piece_of(y, counts, comm.rank()), x, counts);
}

Work all_gather(Communicator& comm, const Tensor& y, const Tensor& x, bool even) {
  const auto counts = pieces(x.numel(), comm.size(), even);
  return comm.all_gather(y, piece_of(x, counts, comm.rank()), counts);
}

Work all_to_all(Communicator& comm, const Tensor& y, const Tensor& x) {
  const int64_t piece = x.numel() / comm.size();
  const std::vector<int64_t> counts(static_cast<size_t>(comm.size()), piece);
  return comm.all_to_all(y.slice(0, 0, piece * comm.size()), counts, x.slice(0, 0, piece * comm.size()), counts);
}

// Everything to the next rank of the ring, and everything from the one before.
Work shift(Communicator& comm, const Tensor& y, const Tensor& x) {
  const int next = (comm.rank() + 1) % comm.size(), previous = (comm.rank() + comm.size() - 1) % comm.size();
  const Message messages[] = {{.peer = next, .recv = {}, .send = x}, {.peer = previous, .recv = y, .send = {}}};
  return comm.send_recv(messages);
}

std::vector<Exchange> exchanges(int ranks) {
  const double part = static_cast<double>(ranks - 1) / ranks;
  using C = Communicator;
  using T = const Tensor;
  return {
      {"all_reduce", 2 * part, [](C& c, T& y, T&) { return c.all_reduce(y, ReduceOp::sum); }},
      {"reduce_scatter", part, [](C& c, T& y, T& x) { return reduce_scatter(c, y, x, true); }},
      {"reduce_scatter uneven", part, [](C& c, T& y, T& x) { return reduce_scatter(c, y, x, false); }},
      {"all_gather", part, [](C& c, T& y, T& x) { return all_gather(c, y, x, true); }},
      {"all_gather uneven", part, [](C& c, T& y, T& x) { return all_gather(c, y, x, false); }},
      {"all_to_all", part, [](C& c, T& y, T& x) { return all_to_all(c, y, x); }},
      {"send_recv", 1, [](C& c, T& y, T& x) { return shift(c, y, x); }},
  };
}

// A blocking copy comes after everything that was waited for, on a device too.
void synchronize(const Tensor& y) {
  double element = 0;
  const auto size = static_cast<int64_t>(size_of(y.dtype()));
  copy_blocking(Tensor(&element, {size}, DType::u8), ConstTensor(y.raw(), {size}, DType::u8, y.device()));
}

// Seconds of one exchange: the median of samples, of each the slowest rank.
double seconds_of(World& world, Communicator& comm, const Exchange& exchange, const Tensor& y, const Tensor& x) {
  const int64_t at_once = std::clamp<int64_t>((int64_t{8} << 20) / std::max<int64_t>(x.bytes(), 1), 1, 20);
  std::vector<double> times;
  for (int sample = -2; sample < kSamples; ++sample) {  // two to connect the ranks and to warm up
    world.comm().barrier();
    const auto begin = Clock::now();
    for (int64_t i = 0; i < at_once; ++i) exchange.start(comm, y, x).wait();
    synchronize(y);
    double seconds = std::chrono::duration<double>(Clock::now() - begin).count() / static_cast<double>(at_once);
    world.comm().all_reduce(Tensor(&seconds, {1}, DType::f64), ReduceOp::max).wait();
    if (sample >= 0) times.push_back(seconds);
  }
  std::nth_element(times.begin(), times.begin() + kSamples / 2, times.end());
  return times[kSamples / 2];
}

// The axes along which there is anybody to talk to; dp only where zero has other ranks.
std::vector<Communicator*> axes(Mesh& mesh) {
  std::vector<Communicator*> found;
  for (Communicator* comm : {&mesh.tp(), &mesh.sp(), &mesh.zero()}) {
    if (comm->size() > 1) found.push_back(comm);
  }
  if (mesh.shape().sp > 1 && mesh.shape().dp > 1) found.push_back(&mesh.dp());
  return found;
}

json measure(World& world, Communicator& comm, DType dtype, Device device, int64_t min_bytes, int64_t max_bytes) {
  const auto size = static_cast<int64_t>(size_of(dtype));
  const Buffer x_buffer({max_bytes / size}, dtype, device), y_buffer({max_bytes / size}, dtype, device);
  json rows = json::array();
  for (const Exchange& exchange : exchanges(comm.size())) {
    for (int64_t bytes = min_bytes; bytes <= max_bytes; bytes *= 4) {
      const int64_t n = bytes / size;
      const double seconds =
          seconds_of(world, comm, exchange, y_buffer.tensor({n}, dtype), x_buffer.tensor({n}, dtype));
      const double rate = static_cast<double>(bytes) / seconds;
      rows.push_back({{"axis", comm.name()},
                      {"ranks", comm.size()},
                      {"exchange", exchange.name},
                      {"bytes", bytes},
                      {"us", seconds * 1e6},
                      {"algorithm_gb_per_s", rate / 1e9},
                      {"bus_gb_per_s", rate * exchange.bus_factor / 1e9}});
    }
  }
  return rows;
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
  json result = {{"device", config.run.device}, {"dtype", name_of(config.dtype())}, {"exchanges", json::array()}};
  for (Communicator* comm : axes(mesh)) {
    for (json& row : measure(world, *comm, config.dtype(), ops->device(), min_bytes, max_bytes)) {
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
