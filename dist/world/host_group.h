// class HostGroup: the ranks of one host, and memory that all of them see.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "dist/comm/communicator.h"

namespace tmamba {

class HostGroup {
 public:
  // The ranks of `comm` with the same `color` (World::host_leader() is one), each with `bytes_per_rank` bytes of shared
  // memory, zeroed. Collective. Throws Error on all ranks of a group alike where the host has no such memory.
  HostGroup(Communicator& comm, int color, int64_t bytes_per_rank);
  ~HostGroup();
  HostGroup(const HostGroup&) = delete;
  HostGroup& operator=(const HostGroup&) = delete;

  // Ordered as in `comm`; the first one leads.
  Communicator& ranks() { return *ranks_; }
  bool leads() const { return ranks_->rank() == 0; }
  // That of a rank of the group.
  std::span<std::byte> memory(int rank) const;

 private:
  std::string attach(const std::string& name, bool create);

  std::unique_ptr<Communicator> ranks_;
  size_t bytes_per_rank_ = 0, bytes_ = 0;
  void* begin_ = nullptr;
};

}  // namespace tmamba
