// class CollectiveGuard runs an action on some or all ranks. Either it succeeds on every rank, or every rank throws the
// same message. broadcast_text() distributes what one rank has read or decided.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dist/comm/communicator.h"

namespace tmamba {

// Returns `text` of rank `root` on every rank; collective over host memory.
std::string broadcast_text(Communicator& comm, std::string text, int root = 0);

class CollectiveGuard {
 public:
  explicit CollectiveGuard(Communicator& comm) : comm_(comm) {}

  bool is_root() const { return comm_.rank() == 0; }
  // Runs `step` on every rank. If it throws on any rank, all ranks throw Error with the message of the lowest such rank
  // (UserError if that rank threw one).
  void on_all(const std::function<void()>& step);
  // Runs `step` on rank 0 only; if it throws, all ranks throw its message.
  void on_root(const std::function<void()>& step);
  // Returns rank 0's text on every rank.
  std::string broadcast(std::string text) { return broadcast_text(comm_, std::move(text)); }
  // Returns the texts of all ranks, in rank order.
  std::vector<std::string> gather(const std::string& text);

 private:
  Communicator& comm_;
};

}  // namespace tmamba
