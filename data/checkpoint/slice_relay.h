// class SliceRelay passes the bytes of slices from the ranks of a host to the rank that writes the host's file (the
// leader). Every rank has a ring buffer of a few MiB in shared memory; the leader requests one slice after the other.
// It uses no MPI, so it can run on a thread beside training.
#pragma once

#include <atomic>
#include <span>

#include "data/checkpoint/checkpoint.h"
#include "dist/world/host_group.h"

namespace tmamba {

class SliceRelay {
 public:
  // Shared memory per rank that the HostGroup should have.
  static constexpr int64_t kBytesPerRank = int64_t{4} << 20;

  explicit SliceRelay(HostGroup& group) : group_(group) {}

  // Starts a new save. Every rank calls it; all calls must have returned before a rank calls another function.
  void reset();

  // On the leader: reads the next `bytes` bytes of slice `index` of `rank`. A slice must be read completely before the
  // next one. Throws Error if the rank has failed or `cancelled` is set meanwhile.
  void pull(int rank, int64_t index, char* out, size_t bytes, const std::atomic<bool>& cancelled);
  // On the leader: ends serve() on the other ranks.
  void finish();

  // On the other ranks: sends the requested slices until the leader calls finish(). Throws Error if `cancelled` is set
  // meanwhile.
  void serve(std::span<const TensorSlice> slices, const std::atomic<bool>& cancelled);

 private:
  struct Channel;
  Channel& channel(int rank) const;
  std::span<std::byte> ring(int rank) const;
  void push(Channel& to, const char* data, size_t bytes, const std::atomic<bool>& cancelled);

  HostGroup& group_;
};

}  // namespace tmamba
