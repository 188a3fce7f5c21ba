// class SliceRelay: how the ranks of a host hand the bytes of their slices to the one that writes the host's file, each
// on a thread of its own and without MPI: through a ring of a few MiB of shared memory per rank. The writer asks for
// the slice it wants next; the bounded rings are all the memory it takes.
#pragma once

#include <atomic>
#include <span>

#include "data/checkpoint/checkpoint.h"
#include "dist/world/host_group.h"

namespace tmamba {

class SliceRelay {
 public:
  // Of shared memory per rank that a relay wants.
  static constexpr int64_t kBytesPerRank = int64_t{4} << 20;

  explicit SliceRelay(HostGroup& group) : group_(group) {}

  // Forgets the save before. On every rank, before any rank goes on to what follows.
  void reset();

  // On the leader: the next `bytes` bytes of slice `index` of `rank`. Slices are taken whole, one after the other.
  // Throws Error where the rank has given up, or `cancelled` is set meanwhile.
  void pull(int rank, int64_t index, char* out, size_t bytes, const std::atomic<bool>& cancelled);
  // On the leader: nothing more will be asked for.
  void finish();

  // On the others: gives slices until the leader has finished. Throws Error where `cancelled` is set meanwhile.
  void serve(std::span<const TensorSlice> slices, const std::atomic<bool>& cancelled);

 private:
  struct Channel;
  Channel& channel(int rank) const;
  std::span<std::byte> ring(int rank) const;
  void push(Channel& to, const char* data, size_t bytes, const std::atomic<bool>& cancelled);

  HostGroup& group_;
};

}  // namespace tmamba
