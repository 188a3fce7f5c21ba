#include "dist/comm/nccl_runtime.h"

#include <cstdlib>
#include <new>

#include "dist/comm/print_line.h"
#include "kernels/base/check.h"

namespace tmamba {

namespace {

constexpr auto kPollInterval = std::chrono::milliseconds(200);

static_assert(sizeof(Watchdog::Finished) == 8 && Watchdog::Finished::is_always_lock_free,
              "the host must read the 8 bytes that the device writes atomically");

}  // namespace

NcclRuntime::NcclRuntime(std::string rank_name, std::shared_ptr<Watchdog> watchdog, cudaStream_t compute)
    : rank_name_(std::move(rank_name)), watchdog_(std::move(watchdog)), compute_(compute) {
  thread_ = std::thread([this] { poll_errors(); });
}

NcclRuntime::~NcclRuntime() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_requested_.notify_all();
  thread_.join();
  for (cudaEvent_t event : events_) cudaEventDestroy(event);
}

Watchdog::Finished* NcclRuntime::make_finished_counter() const {
  void* memory = nullptr;
  check_cuda(cudaHostAlloc(&memory, sizeof(Watchdog::Finished), cudaHostAllocMapped), "cudaHostAlloc", rank_name_);
  return new (memory) Watchdog::Finished(0);
}

cudaEvent_t NcclRuntime::take_event() {
  cudaEvent_t event = nullptr;
  if (events_.empty()) {
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate", rank_name_);
    return event;
  }
  event = events_.back();
  events_.pop_back();
  return event;
}

int NcclRuntime::adopt(ncclComm_t comm, const std::string& name) {
  const std::lock_guard lock(mutex_);
  adopted_[next_handle_] = {comm, name};
  return next_handle_++;
}

void NcclRuntime::retire(int handle, bool graceful) noexcept {
  ncclComm_t comm = nullptr;
  {
    const std::lock_guard lock(mutex_);
    const auto found = adopted_.find(handle);
    if (found == adopted_.end()) return;  // abandon() has aborted it
    comm = found->second.comm;
    adopted_.erase(found);
  }
  graceful ? ncclCommDestroy(comm) : ncclCommAbort(comm);
}

void NcclRuntime::check_alive() const {
  if (!alive()) throw Error(failure_);
}

void NcclRuntime::abandon(const std::string& operation) noexcept {
  if (alive()) failure_ = operation + " was aborted because of an earlier error";
  // All communicators, because the memory that any of their kernels uses is about to be freed.
  std::map<int, Adopted> aborted;
  {
    const std::lock_guard lock(mutex_);
    aborted.swap(adopted_);
  }
  for (const auto& [handle, adopted] : aborted) ncclCommAbort(adopted.comm);
}

void NcclRuntime::fail(const std::string& message) {
  if (alive()) failure_ = message;
  throw Error(message);
}

// NCCL's own threads detect errors such as a lost connection, which a main thread that waits for the device would never
// see. The device's data may be wrong after such an error, so this process exits and the launcher ends the others.
void NcclRuntime::poll_errors() {
  std::unique_lock lock(mutex_);
  while (!stop_requested_.wait_for(lock, kPollInterval, [this] { return stopping_; })) {
    for (const auto& [handle, adopted] : adopted_) {
      ncclResult_t state = ncclSuccess;
      const ncclResult_t code = ncclCommGetAsyncError(adopted.comm, &state);
      if (code != ncclSuccess) state = code;
      if (state == ncclSuccess || state == ncclInProgress) continue;
      print_line(str(rank_name_, ": NCCL failed on communicator \"", adopted.name,
                     "\": ", nccl_error_text(state, adopted.comm), "; ending the job"));
      std::_Exit(1);
    }
  }
}

}  // namespace tmamba
