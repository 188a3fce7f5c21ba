#include "dist/comm/mpi_progress.h"

#include <algorithm>

#include "dist/comm/mpi_check.h"
#include "kernels/base/check.h"

namespace tmamba {

std::byte* MpiOperation::take_scratch(int64_t bytes) {
  scratch.push_back(std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(bytes)));
  return scratch.back().get();
}

MpiProgress::MpiProgress(int64_t chunk_bytes, std::shared_ptr<Watchdog> watchdog)
    : chunk_bytes_(chunk_bytes), watchdog_(std::move(watchdog)) {
  TM_CHECK(chunk_bytes > 0 && chunk_bytes <= INT32_MAX, "WorldOptions::chunk_bytes is ", chunk_bytes,
           ", must be in [1, ", INT32_MAX, "]");
}

void MpiProgress::start(const MpiOperationPtr& operation) {
  check_alive();
  run_stages(operation);
  progress(/*block=*/false);
}

void MpiProgress::wait(const MpiOperationPtr& operation) {
  if (operation->done()) return;
  struct Waiting {
    Waiting(Watchdog& dog, const MpiOperation& op) : watchdog(dog) { watchdog.wait_begins(op.watched, op.record); }
    ~Waiting() { watchdog.wait_ends(); }
    Watchdog& watchdog;
  } const waiting(*watchdog_, *operation);
  while (!operation->done()) {
    check_alive();
    progress(/*block=*/true);
  }
}

void MpiProgress::drain() {
  check_alive();
  while (!posted_.empty()) wait(MpiOperationPtr(posted_.front().operation));
}

void MpiProgress::abandon(const MpiOperationPtr& operation) noexcept {
  if (operation->done()) return;
  operation->abandoned = true;
  for (size_t i = 0; i < posted_.size(); ++i) {
    if (posted_[i].operation == operation && posted_[i].expected >= 0) MPI_Cancel(&requests_[i]);
  }
  if (failure_.empty()) failure_ = operation->label + " was aborted because of an earlier error";
}

void MpiProgress::send(const MpiOperationPtr& operation, const void* data, int64_t bytes, int peer) {
  for (int64_t begin = 0; begin < bytes; begin += chunk_bytes_) {
    const int count = static_cast<int>(std::min(chunk_bytes_, bytes - begin));
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Isend(static_cast<const std::byte*>(data) + begin, count, MPI_BYTE, peer, operation->tag,
                        operation->comm, &request),
              "MPI_Isend", operation->label);
    requests_.push_back(request);
    posted_.push_back({operation, peer, -1});
    ++operation->pending;
  }
}

void MpiProgress::receive(const MpiOperationPtr& operation, void* data, int64_t bytes, int peer) {
  for (int64_t begin = 0; begin < bytes; begin += chunk_bytes_) {
    const int count = static_cast<int>(std::min(chunk_bytes_, bytes - begin));
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Irecv(static_cast<std::byte*>(data) + begin, count, MPI_BYTE, peer, operation->tag, operation->comm,
                        &request),
              "MPI_Irecv", operation->label);
    requests_.push_back(request);
    posted_.push_back({operation, peer, count});
    ++operation->pending;
  }
}

void MpiProgress::add_request(const MpiOperationPtr& operation, MPI_Request request) {
  requests_.push_back(request);
  posted_.push_back({operation, -1, -1});
  ++operation->pending;
}

void MpiProgress::check_alive() const {
  if (!failure_.empty()) throw Error(failure_);
}

void MpiProgress::run_stages(const MpiOperationPtr& operation) {
  while (operation->pending == 0 && operation->next_stage < operation->stages.size() && !operation->abandoned) {
    operation->stages[operation->next_stage++](operation);
  }
  if (operation->done()) operation->scratch.clear();
}

void MpiProgress::progress(bool block) {
  if (requests_.empty()) return;
  const size_t posted = requests_.size();
  indices_.resize(posted);
  statuses_.resize(posted);
  int completed = 0;
  const int code = (block ? MPI_Waitsome : MPI_Testsome)(static_cast<int>(posted), requests_.data(), &completed,
                                                         indices_.data(), statuses_.data());
  if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) fail("waiting for messages: " + mpi_error_text(code));
  if (completed == MPI_UNDEFINED) return;

  std::vector<MpiOperationPtr> ready;
  for (int i = 0; i < completed; ++i) {
    MPI_Status& status = statuses_[static_cast<size_t>(i)];
    if (code == MPI_SUCCESS) status.MPI_ERROR = MPI_SUCCESS;  // MPI sets it only after an error
    const auto index = static_cast<size_t>(indices_[static_cast<size_t>(i)]);
    complete(index, status);
    if (--posted_[index].operation->pending == 0) ready.push_back(posted_[index].operation);
    posted_[index].operation = nullptr;
  }
  remove_completed();
  for (const MpiOperationPtr& operation : ready) run_stages(operation);
}

void MpiProgress::complete(size_t index, const MPI_Status& status) {
  const Posted& posted = posted_[index];
  if (posted.operation->abandoned) return;
  if (status.MPI_ERROR != MPI_SUCCESS) {
    const char* advice = posted.expected >= 0 ? "; a truncated message means that the ranks disagree on its size" : "";
    fail(str(posted.operation->label, ": ", posted.expected >= 0 ? "receiving from" : "sending to", " rank ",
             posted.peer, " failed: ", mpi_error_text(status.MPI_ERROR), advice));
  }
  if (posted.expected < 0) return;
  int received = 0;
  check_mpi(MPI_Get_count(&status, MPI_BYTE, &received), "MPI_Get_count", posted.operation->label);
  if (received != posted.expected) {
    fail(str(posted.operation->label, ": rank ", posted.peer, " sent ", received, " bytes, this rank expects ",
             posted.expected, "; the ranks disagree on the size of a tensor"));
  }
}

void MpiProgress::remove_completed() {
  size_t kept = 0;
  for (size_t i = 0; i < posted_.size(); ++i) {
    if (posted_[i].operation == nullptr) continue;
    requests_[kept] = requests_[i];
    if (kept != i) posted_[kept] = std::move(posted_[i]);
    ++kept;
  }
  requests_.resize(kept);
  posted_.resize(kept);
}

void MpiProgress::fail(const std::string& message) {
  failure_ = message;
  throw Error(message);
}

}  // namespace tmamba
