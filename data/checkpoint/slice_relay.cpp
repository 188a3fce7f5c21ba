#include "data/checkpoint/slice_relay.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <thread>

namespace tmamba {

// At the start of a rank's shared memory, before the ring buffer. Used by one thread of the leader and one of the rank.
struct SliceRelay::Channel {
  alignas(64) std::atomic<int64_t> wanted;   // index of the slice that the leader requests
  std::atomic<int64_t> requests;             // number of requests so far, or kFinished
  alignas(64) std::atomic<int64_t> written;  // bytes written to the ring so far
  alignas(64) std::atomic<int64_t> taken;    // bytes read from the ring so far
  std::atomic<bool> failed;                  // the rank cannot serve the request
};

namespace {

constexpr int64_t kFinished = -1;
static_assert(std::atomic<int64_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

// Waits for the other process: first yields, then sleeps for up to a millisecond at a time.
template <class Condition>
void wait_until(const std::atomic<bool>& cancelled, Condition&& condition) {
  auto pause = std::chrono::microseconds(1);
  for (int spins = 0; !condition(); ++spins) {
    if (cancelled) throw Error("the save was cancelled because the program is exiting");
    if (spins < 100) {
      std::this_thread::yield();
      continue;
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, std::chrono::microseconds(1000));
  }
}

}  // namespace

SliceRelay::Channel& SliceRelay::channel(int rank) const {
  return *std::launder(reinterpret_cast<Channel*>(group_.memory(rank).data()));
}

std::span<std::byte> SliceRelay::ring(int rank) const { return group_.memory(rank).subspan(sizeof(Channel)); }

void SliceRelay::reset() { new (group_.memory(group_.ranks().rank()).data()) Channel(); }

void SliceRelay::pull(int rank, int64_t index, char* out, size_t bytes, const std::atomic<bool>& cancelled) {
  Channel& from = channel(rank);
  const std::span<std::byte> memory = ring(rank);
  const auto size = static_cast<int64_t>(memory.size());
  if (from.requests == 0 || from.wanted != index) {
    from.wanted = index;
    ++from.requests;
  }
  while (bytes > 0) {
    const int64_t taken = from.taken;
    wait_until(cancelled, [&] { return from.written != taken || from.failed; });
    if (from.written == taken) throw Error(str("rank ", rank, " of this host failed to send slice ", index));
    const int64_t at = taken % size;
    const auto count = static_cast<size_t>(std::min({from.written - taken, size - at, static_cast<int64_t>(bytes)}));
    std::memcpy(out, memory.data() + at, count);
    out += count, bytes -= count;
    from.taken = taken + static_cast<int64_t>(count);
  }
}

void SliceRelay::finish() {
  for (int rank = 1; rank < group_.ranks().size(); ++rank) channel(rank).requests = kFinished;
}

void SliceRelay::push(Channel& to, const char* data, size_t bytes, const std::atomic<bool>& cancelled) {
  const std::span<std::byte> memory = ring(group_.ranks().rank());
  const auto size = static_cast<int64_t>(memory.size());
  while (bytes > 0) {
    const int64_t written = to.written;
    wait_until(cancelled, [&] { return written - to.taken < size || to.requests == kFinished; });
    if (to.requests == kFinished) return;
    const int64_t at = written % size;
    const auto count =
        static_cast<size_t>(std::min({size - (written - to.taken), size - at, static_cast<int64_t>(bytes)}));
    std::memcpy(memory.data() + at, data, count);
    data += count, bytes -= count;
    to.written = written + static_cast<int64_t>(count);
  }
}

void SliceRelay::serve(std::span<const TensorSlice> slices, const std::atomic<bool>& cancelled) {
  Channel& to = channel(group_.ranks().rank());
  try {
    for (int64_t answered = 0;;) {
      wait_until(cancelled, [&] { return to.requests != answered; });
      if (to.requests == kFinished) return;
      ++answered;
      const ConstTensor& data = slices[static_cast<size_t>(to.wanted)].data;
      const int64_t runs = data.contiguous() ? 1 : data.size(0);
      const auto run_bytes = static_cast<size_t>(data.bytes() / runs);
      const size_t step = runs == 1 ? 0 : static_cast<size_t>(data.stride(0)) * size_of(data.dtype());
      const char* run = static_cast<const char*>(data.raw());
      for (int64_t i = 0; i < runs; ++i, run += step) push(to, run, run_bytes, cancelled);
    }
  } catch (...) {
    to.failed = true;
    throw;
  }
}

}  // namespace tmamba
