// class HostGroup: the ranks of one host and their shared memory.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "dist/comm/communicator.h"

namespace tmamba {

class HostGroup {
 public:
  // Groups the ranks of `comm` with the same `color`, for example World::host_leader(). Each rank gets `bytes_per_rank`
  // bytes of zeroed shared memory. Collective. Throws Error on all ranks of a group if the host has too little shared
  // memory.
  HostGroup(Communicator& comm, int color, int64_t bytes_per_rank);
  ~HostGroup();
  HostGroup(const HostGroup&) = delete;
  HostGroup& operator=(const HostGroup&) = delete;

  // In the order of `comm`; the first one is the leader.
  Communicator& ranks() { return *ranks_; }
  bool leads() const { return ranks_->rank() == 0; }
  // The shared memory of a rank of the group.
  std::span<std::byte> memory(int rank) const;

 private:
  std::string attach(const std::string& name, bool create);

  std::unique_ptr<Communicator> ranks_;
  size_t bytes_per_rank_ = 0, bytes_ = 0;
  void* begin_ = nullptr;
};

}  // namespace tmamba
