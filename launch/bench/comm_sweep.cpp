#include "launch/bench/comm_sweep.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>

#include "kernels/base/buffer.h"
#include "kernels/base/clock.h"
#include "launch/cli/format.h"
#include "launch/cli/statistics.h"

namespace tmamba {

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int kSamples = 9;

// One collective on tensors x and y of n elements. As in nccl-tests, its bytes are those of the whole tensor, and its
// bus bandwidth counts the bytes that each link of a ring carries.
struct Exchange {
  const char* name;
  double bus_factor;  // bus bandwidth over algorithm bandwidth
  std::function<Work(Communicator&, const Tensor& y, const Tensor& x)> start;
};

std::vector<int64_t> shard_sizes(int64_t elements, int size, bool even) {
  std::vector<int64_t> counts(static_cast<size_t>(size), elements / size);
  // ZeRO shards at rows of parameters, so that shards differ slightly in size.
  const int64_t moved = even || size == 1 ? 0 : elements / size / 16;
  counts.front() += moved, counts.back() -= moved;
  counts.back() += elements - elements / size * size;
  return counts;
}

Tensor shard_of(const Tensor& whole, const std::vector<int64_t>& counts, int rank) {
  int64_t begin = 0;
  for (int r = 0; r < rank; ++r) begin += counts[static_cast<size_t>(r)];
  return whole.slice(0, begin, counts[static_cast<size_t>(rank)]);
}

Work reduce_scatter(Communicator& comm, const Tensor& y, const Tensor& x, bool even) {
  const auto counts = shard_sizes(x.numel(), comm.size(), even);
  return comm.reduce_scatter(shard_of(y, counts, comm.rank()), x, counts);
}

Work all_gather(Communicator& comm, const Tensor& y, const Tensor& x, bool even) {
  const auto counts = shard_sizes(x.numel(), comm.size(), even);
  return comm.all_gather(y, shard_of(x, counts, comm.rank()), counts);
}

Work all_to_all(Communicator& comm, const Tensor& y, const Tensor& x) {
  const int64_t shard = x.numel() / comm.size();
  const std::vector<int64_t> counts(static_cast<size_t>(comm.size()), shard);
  return comm.all_to_all(y.slice(0, 0, shard * comm.size()), counts, x.slice(0, 0, shard * comm.size()), counts);
}

// Sends x to the next rank of the ring and receives y from the previous one.
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

// Waits for the device: a blocking copy is ordered after all work that was waited for.
void synchronize(const Tensor& y) {
  double element = 0;
  const auto size = static_cast<int64_t>(size_of(y.dtype()));
  copy_blocking(Tensor(&element, {size}, DType::u8), ConstTensor(y.raw(), {size}, DType::u8, y.device()));
}

// Seconds of one collective: the median over samples of the slowest rank's time.
double seconds_of(World& world, Communicator& comm, const Exchange& exchange, const Tensor& y, const Tensor& x) {
  const int64_t at_once = std::clamp<int64_t>((int64_t{8} << 20) / std::max<int64_t>(x.bytes(), 1), 1, 20);
  std::vector<double> times;
  for (int sample = -2; sample < kSamples; ++sample) {  // two samples connect the ranks and warm up
    world.comm().barrier();
    const auto begin = Clock::now();
    for (int64_t i = 0; i < at_once; ++i) exchange.start(comm, y, x).wait();
    synchronize(y);
    double seconds = seconds_since(begin) / static_cast<double>(at_once);
    world.comm().all_reduce(Tensor(&seconds, {1}, DType::f64), ReduceOp::max).wait();
    if (sample >= 0) times.push_back(seconds);
  }
  return median_of(times);
}

bool wanted(const std::vector<std::string>& names, const char* name) {
  return names.empty() || std::find(names.begin(), names.end(), name) != names.end();
}

// Whether `seconds` have passed on rank 0. The same on all ranks, so that they continue or stop together.
bool over(World& world, Clock::time_point begin, double seconds) {
  int32_t stop = seconds_since(begin) > seconds ? 1 : 0;
  world.comm().broadcast(Tensor(&stop, {1}, DType::i32), 0).wait();
  return stop != 0;
}

}  // namespace

json sweep(World& world, Communicator& comm, DType dtype, Device device, const SweepOptions& options) {
  const auto size = static_cast<int64_t>(size_of(dtype));
  const Buffer x_buffer({options.max_bytes / size}, dtype, device), y_buffer({options.max_bytes / size}, dtype, device);
  json rows = json::array();
  for (const Exchange& exchange : exchanges(comm.size())) {
    if (!wanted(options.names, exchange.name)) continue;
    const auto begin = Clock::now();
    for (int64_t bytes = options.min_bytes; bytes <= options.max_bytes; bytes *= options.factor) {
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
      if (options.seconds > 0 && over(world, begin, options.seconds)) break;
    }
  }
  return rows;
}

std::string sweep_text(const json& rows) {
  std::array<char, 160> line{};
  std::snprintf(line.data(), line.size(), "%-6s %5s  %-22s %12s %12s %10s %10s\n", "axis", "ranks", "collective",
                "size", "us", "alg GB/s", "bus GB/s");
  std::string text = line.data();
  for (const json& row : rows) {
    std::snprintf(line.data(), line.size(), "%-6s %5d  %-22s %12s %12.1f %10.2f %10.2f\n",
                  row["axis"].get<std::string>().c_str(), row["ranks"].get<int>(),
                  row["exchange"].get<std::string>().c_str(), bytes_text(row["bytes"].get<int64_t>()).c_str(),
                  row["us"].get<double>(), row["algorithm_gb_per_s"].get<double>(), row["bus_gb_per_s"].get<double>());
    text += line.data();
  }
  return text;
}

int64_t largest_sweep_bytes(Device device) { return int64_t{1} << (device == Device::cuda ? 30 : 26); }

}  // namespace tmamba
