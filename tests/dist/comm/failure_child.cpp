// A job that goes wrong in the way its first argument names; failure_test.cpp starts it under mpirun and watches.
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "dist/world/world.h"
#include "kernels/base/buffer.h"

namespace tmamba {
namespace {

void sleep_long() { std::this_thread::sleep_for(std::chrono::seconds(1000)); }

// Operations that a device would carry out, with this program in its place: the host starts them and does not wait.
int hang_on_device(World& world) {
  world.start_watchdog({.timeout_seconds = 3.0, .folder = ""});
  static Watchdog::Finished sequences_done(0), values_done(0);
  Watchdog& watchdog = *world.watchdog();
  const auto sequences = watchdog.watch("sp", {0, 1, 2, 3}, &sequences_done);
  const auto values = watchdog.watch("zero", {0, 1, 2, 3}, &values_done);
  const auto start = [&](const Watchdog::Handle& comm, int64_t number, Collective op) {
    watchdog.started(comm, {.sequence = number, .op = op, .bytes = 4096});
  };
  start(values, 1, Collective::reduce_scatter), values_done = 1;
  start(sequences, 1, Collective::all_gather), sequences_done = 1;
  world.comm().barrier();
  if (world.rank() != 2) {
    // The second of these waits for the first, in which rank 2 is missing.
    start(sequences, 2, Collective::send_recv);
    start(values, 2, Collective::reduce_scatter);
  }
  sleep_long();
  return 0;
}

// A short time limit, and a rank that holds up the others.
int hang(World& world, const std::string& how) {
  world.start_watchdog({.timeout_seconds = how == "hang_not_at_all" ? 5.0 : 3.0, .folder = ""});
  const int rank = world.rank();
  const auto pairs = world.comm().split(rank / 2, rank, "pair");
  const auto halves = world.comm().split(rank % 2, rank, "half");
  Buffer buffer({5000}, DType::f32);
  const Tensor x = buffer.tensor({5000}, DType::f32);
  auto sum = [&](Communicator& comm) { comm.all_reduce(x, ReduceOp::sum).wait(); };
  sum(*pairs);
  if (how == "hang_not_at_all") {
    // Slow: together the waits are longer than the timeout, but each is a tenth of it.
    for (int i = 0; i < 12; ++i) {
      if (rank == 2) std::this_thread::sleep_for(std::chrono::milliseconds(500));
      sum(world.comm());
    }
    return 0;
  }
  if (how == "hang_asleep" && rank == 2) sleep_long();
  if (how == "hang_stopped" && rank == 2) std::raise(SIGSTOP);
  if (how == "hang_by_chain") {
    // 1 waits for 0, 0 for 2, 3 for 2; and 2 sleeps.
    if (rank == 2) sleep_long();
    if (rank == 0) sum(*halves);
    sum(*pairs);
  }
  if (how == "hang_other_operation" && rank == 2) {
    world.comm().broadcast(x, 0).wait();
  }
  if (how == "hang_in_a_circle") sum(rank == 0 || rank == 3 ? *halves : *pairs);
  sum(world.comm());
  return 0;
}

int misbehave(World& world, const std::string& how) {
  Communicator& comm = world.comm();
  const bool last = world.rank() == world.size() - 1;
  if (how == "none") return 0;
  if (how == "hang_on_device") return hang_on_device(world);
  if (how.starts_with("hang_")) return hang(world, how);
  if (how == "return_85") return 85;
  if (how == "user_error_on_all") throw UserError("config.toml:3: there is no key \"lr_\"");
  if (how == "error_on_all") throw Error("the disk is full");
  if (how == "own_error_on_each") throw Error(str("part ", world.rank(), " is damaged"));
  if (how == "user_error_on_last" && last) throw UserError("only here");
  if (how == "error_on_last" && last) throw Error("only here");
  if (how == "unknown_on_last" && last) throw 42;
  if (how == "thread_throws_on_last" && last) {
    std::thread([] { throw Error("from a thread"); }).join();
  }
  if (how == "exit_on_last" && last) std::_Exit(7);
  if (how == "in_flight_on_last") {
    // The exception leaves the scope of a Work whose message nobody will ever send.
    Buffer buffer({100000}, DType::f32);
    const Message message{.peer = 0, .recv = buffer.tensor({100000}, DType::f32), .send = {}};
    if (last) {
      const Work work = comm.send_recv({&message, 1});
      throw Error("only here");
    }
  }
  if (how == "sizes_differ") {
    const int64_t n = last ? 5 : 6;
    Buffer buffer({n}, DType::f32);
    comm.all_reduce(buffer.tensor({n}, DType::f32), ReduceOp::sum).wait();
  }
  comm.barrier();
  return 0;
}

}  // namespace
}  // namespace tmamba

int main(int, char** argv) {
  const std::string how = argv[1];
  tmamba::WorldOptions options;
  // On a busy machine ranks fail at different times; where one fails alone the others never agree.
  options.agree_seconds = how.ends_with("on_all") || how.ends_with("on_each") ? 30 : 0.5;
  return tmamba::run_main([&](tmamba::World& world) { return tmamba::misbehave(world, how); }, options);
}
