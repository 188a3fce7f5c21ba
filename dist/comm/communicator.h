// class Communicator: collectives among the ranks of one axis of the mesh. The backends are SelfCommunicator (one
// rank, no library), MpiCommunicator (host tensors) and, in a CUDA build, one over NCCL (device tensors); callers
// cannot tell them apart.
//
// Rules
// - Tensors are contiguous. All ranks of a communicator issue the same operations in the same order, from one thread.
// - An operation is started by the call and finished by Work::wait(); until then its tensors must not be touched.
//   A dropped Work waits in its destructor; one dropped by an exception is abandoned instead, for its peers may never
//   arrive, and its communicator refuses all further work.
// - Operations may be waited for in any order, and any number may be in flight. A Work must not outlive its
// communicator.
// - Reductions combine in a fixed order: the same inputs on the same ranks give the same bits, and every rank gets
// them.
//   On host tensors the order is rank 0 first, and bfloat16 is rounded once; on device tensors it is NCCL's
//   (nccl_communicator.h). Integer sums wrap; the maximum or minimum of anything with a NaN is NaN.
// - On a device an operation comes after what the compute stream was given before, and wait() puts what it is given
//   later behind it. Operations may be recorded (Recorder); each replay counts and names them again.
// - A tensor of no elements may be the empty view.
// - Every call is counted (calls and bytes per operation) and named for the watchdog.
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
inline constexpr int kCollectives = 7;
constexpr const char* name_of(Collective op) {
  constexpr std::array<const char*, kCollectives> names{"all_reduce", "reduce_scatter", "all_gather", "broadcast",
                                                        "all_to_all", "send_recv",      "barrier"};
  return names[static_cast<size_t>(op)];
}

// Calls made and bytes received by this rank, per operation: what must arrive from other ranks whatever the transport
// does. all_gather: all pieces but its own; reduce_scatter: its own piece from each other rank; broadcast: all of it,
// on the root nothing; all_to_all and send_recv: what other ranks send it. all_reduce of n bytes is counted as a
// reduce_scatter and an all_gather of equal pieces, 2 n (size-1)/size.
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
    // Throws Error naming operation, communicator and rank where the operation failed.
    virtual void wait() = 0;
    // Called instead of wait() where an exception is leaving the scope of the Work: must not wait for other ranks.
    virtual void abandon() noexcept = 0;
  };
  Work() = default;
  explicit Work(std::unique_ptr<State> state) : state_(std::move(state)) {}
  Work(Work&&) = default;
  Work& operator=(Work&& other);
  ~Work();
  // Returns when the operation is done here (CPU) or is ordered before later work of the compute stream (GPU).
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

  // x = op over ranks of x.
  virtual Work all_reduce(Tensor x, ReduceOp op) = 0;
  // out = this rank's piece of the sum over ranks of `in`; rank r's piece has counts[r] elements, pieces back to back.
  // `out` may be its place in `in`.
  virtual Work reduce_scatter(Tensor out, ConstTensor in, std::span<const int64_t> counts) = 0;
  // out = the pieces of all ranks back to back; rank r's has counts[r] elements. `in` may be its place in `out`.
  virtual Work all_gather(Tensor out, ConstTensor in, std::span<const int64_t> counts) = 0;
  virtual Work broadcast(Tensor x, int root) = 0;
  // Piece r of `in` (in_counts[r] elements) goes to rank r; piece r of `out` comes from it.
  virtual Work all_to_all(Tensor out, std::span<const int64_t> out_counts, ConstTensor in,
                          std::span<const int64_t> in_counts) = 0;
  // A group of point-to-point messages, all in flight together. Between two ranks messages match in order. A message
  // to oneself is a copy.
  virtual Work send_recv(std::span<const Message> messages) = 0;
  virtual void barrier() = 0;

  // The ranks with the same `color` (0 or more), ordered by `key`, as a new communicator. Every rank takes part;
  // operations in flight are finished first.
  virtual std::unique_ptr<Communicator> split(int color, int key, const std::string& name) = 0;

  const TrafficCounter& traffic() const { return traffic_; }
  void reset_traffic() { traffic_ = {}; }

 protected:
  TrafficCounter traffic_;
};

}  // namespace tmamba
