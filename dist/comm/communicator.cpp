#include "dist/comm/communicator.h"

#include <exception>
#include <utility>

namespace tmamba {

Work& Work::operator=(Work&& other) {
  wait();
  state_ = std::move(other.state_);
  return *this;
}

Work::~Work() {
  if (!state_) return;
  if (std::uncaught_exceptions() > 0) {
    state_->abandon();
    return;
  }
  try {
    wait();
  } catch (const Error&) {
    // A destructor cannot report the error; the communicator throws it from its next call.
  }
}

void Work::wait() {
  if (auto state = std::move(state_)) state->wait();
}

}  // namespace tmamba
