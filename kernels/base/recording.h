// Recording: device work issued once and then replayed by one call (a CUDA graph).
#pragma once

#include <functional>
#include <utility>
#include <vector>

namespace tmamba {

class Recording {
 public:
  virtual ~Recording() = default;
  // Issues the work again, on the memory it was recorded with.
  virtual void replay() = 0;
  // False once memory that it uses has moved: it must be recorded again.
  virtual bool valid() const = 0;
};

// The recording under way in this thread, for those that take part with streams and counters of their own.
class Recorder {
 public:
  // Null where nothing is being recorded.
  static Recorder* current();

  // What the host has to do each time the work is issued, in order.
  void on_replay(std::function<void()> action) { on_replay_.push_back(std::move(action)); }
  // What `who` does at the end of the recording, once, such as making the recorded stream wait for a stream of its own.
  void at_end(const void* who, std::function<void()> action);

 protected:
  // Runs `issue`, then what is to be done at the end; current() is this meanwhile.
  void take_down(const std::function<void()>& issue);
  void issued_again() const;

 private:
  std::vector<std::function<void()>> on_replay_;
  std::vector<std::pair<const void*, std::function<void()>>> at_end_;
};

}  // namespace tmamba
