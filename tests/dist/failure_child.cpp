// A job that goes wrong in the way its first argument names; failure_test.cpp starts it under mpirun and watches.
#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "dist/world.h"
#include "kernels/base/buffer.h"

namespace tmamba {
namespace {

int misbehave(World& world, const std::string& how) {
  Communicator& comm = world.comm();
  const bool last = world.rank() == world.size() - 1;
  if (how == "none") return 0;
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
  return tmamba::run_main([&](tmamba::World& world) { return tmamba::misbehave(world, argv[1]); });
}
