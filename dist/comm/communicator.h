// class Communicator: collectives among the ranks of one axis of the mesh. The backends are SelfCommunicator (one rank,
// no library), MpiCommunicator (host tensors), NcclCommunicator (device tensors, in a CUDA build) and
// AbsentCommunicator (dry runs).
//
// Rules
// - Tensors are contiguous. All ranks of a communicator issue the same operations in the same order, from one thread.
// - The call starts an operation and Work::wait() finishes it; until then its tensors must not be touched. The
//   destructor of a Work waits. During stack unwinding it abandons the operation instead, because the peers may never
//   arrive, and the communicator refuses all further work.
// - Operations may be waited for in any order, and any number may be in flight. A Work must not outlive its
//   communicator.
// - Reductions are deterministic: the same inputs on the same ranks give the same bits on every rank. Host tensors are
//   combined in rank order and bfloat16 is rounded once; device tensors are combined in NCCL's order
//   (nccl_communicator.h). Integer sums wrap around; the maximum or minimum of terms with a NaN is NaN.
// - A device operation starts after the work that the compute stream has at the time of the call, and work that the
//   compute stream gets after wait() starts after the operation. Operations may be recorded (Recorder); every replay
//   counts them and reports them to the watchdog again.
// - A tensor without elements may be a null view.
// - Every call is counted (calls and bytes per operation) and reported to the watchdog.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"

namespace tmamba {

enum class ReduceOp : uint8_t { sum, max, min };

enum class Collective : uint8_t { all_reduce, reduce_scatter, all_gather, broadcast, all_to_all, send_recv, barrier };
inline constexpr int kCollectives = static_cast<int>(Collective::barrier) + 1;
constexpr const char* name_of(Collective op) {
  constexpr std::array<const char*, kCollectives> names{"all_reduce", "reduce_scatter", "all_gather", "broadcast",
                                                        "all_to_all", "send_recv",      "barrier"};
  return names[static_cast<size_t>(op)];
}

// Calls and received bytes of this rank, per operation. The bytes are those that must arrive from other ranks, whatever
// the algorithm. all_gather: all shards but its own. reduce_scatter: its own shard from each other rank. broadcast: the
// tensor, 0 on the root. all_to_all and send_recv: what other ranks send to it. all_reduce of n bytes: as a
// reduce_scatter and an all_gather of equal shards, 2 n (size-1)/size.
struct TrafficCounter {
  std::array<int64_t, kCollectives> calls{};
  std::array<int64_t, kCollectives> bytes{};
};

// Handle of a started operation.
class Work {
 public:
  class State {
   public:
    virtual ~State() = default;
    // Throws Error naming operation, communicator and rank if the operation failed.
    virtual void wait() = 0;
    // Called instead of wait() during stack unwinding; must not wait for other ranks.
    virtual void abandon() noexcept = 0;
  };
  Work() = default;
  explicit Work(std::unique_ptr<State> state) : state_(std::move(state)) {}
  Work(Work&&) = default;
  Work& operator=(Work&& other);
  ~Work();
  // Returns when the operation is complete on this rank (CPU) or ordered before later work of the compute stream (GPU).
  void wait();

 private:
  std::unique_ptr<State> state_;
};

// One message of a send_recv group.
struct Message {
  int peer = 0;
  Tensor recv;       // empty for a send
  ConstTensor send;  // empty for a receive
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // "world", "tp", "sp", ...: used in messages.
  virtual const std::string& name() const = 0;

  // The collectives throw Error if the arguments break the rules above or do not fit together. Counts are in elements.
  // x = the reduction of x over all ranks.
  virtual Work all_reduce(Tensor x, ReduceOp op) = 0;
  // out = this rank's shard of the sum of `in` over all ranks. Rank r's shard has counts[r] elements; shards are
  // adjacent in rank order. `out` may be its own slice of `in`.
  virtual Work reduce_scatter(Tensor out, ConstTensor in, std::span<const int64_t> counts) = 0;
  // out = the shards `in` of all ranks, adjacent in rank order; rank r's has counts[r] elements. `in` may be its own
  // slice of `out`.
  virtual Work all_gather(Tensor out, ConstTensor in, std::span<const int64_t> counts) = 0;
  virtual Work broadcast(Tensor x, int root) = 0;
  // Sends block r of `in` (in_counts[r] elements) to rank r and receives block r of `out` (out_counts[r]) from it.
  virtual Work all_to_all(Tensor out, std::span<const int64_t> out_counts, ConstTensor in,
                          std::span<const int64_t> in_counts) = 0;
  // A group of concurrent point-to-point messages. Messages between two ranks match in order. A message to this rank
  // itself is a copy.
  virtual Work send_recv(std::span<const Message> messages) = 0;
  virtual void barrier() = 0;

  // Returns a new communicator of the ranks with the same `color` (>= 0), ordered by `key`. Collective; waits for all
  // operations in flight.
  virtual std::unique_ptr<Communicator> split(int color, int key, const std::string& name) = 0;

  const TrafficCounter& traffic() const { return traffic_; }
  void reset_traffic() { traffic_ = {}; }

 protected:
  TrafficCounter traffic_;
};

}  // namespace tmamba
