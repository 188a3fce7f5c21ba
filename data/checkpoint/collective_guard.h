// Steps that all ranks take together: either every rank gets through, or every rank throws the same message.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dist/comm/communicator.h"

namespace tmamba {

class Crew {
 public:
  explicit Crew(Communicator& comm) : comm_(comm) {}

  bool first() const { return comm_.rank() == 0; }
  // Runs `step` here. Where it threw on any rank, all ranks throw Error with the lowest such rank's message (UserError
  // where that rank's was one).
  void together(const std::function<void()>& step);
  // `step` on rank 0 alone, with the same agreement.
  void first_does(const std::function<void()>& step);
  // Rank 0's text, on all ranks.
  std::string from_first(std::string text);
  // All ranks' texts, in the order of ranks.
  std::vector<std::string> gather(const std::string& text);

 private:
  std::string from(int root, std::string text);
  Communicator& comm_;
};

}  // namespace tmamba
