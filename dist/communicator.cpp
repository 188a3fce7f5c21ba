#include "dist/communicator.h"

#include <utility>

namespace tmamba {

Work& Work::operator=(Work&& other) {
  wait();
  state_ = std::move(other.state_);
  return *this;
}

Work::~Work() { wait(); }

void Work::wait() {
  if (auto state = std::move(state_)) state->wait();
}

}  // namespace tmamba
