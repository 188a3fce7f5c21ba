#include "dist/world/host_group.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <vector>

namespace tmamba {

namespace {

constexpr int64_t kPage = 4096;

std::string problem(const char* what, int code) {
  return str("cannot ", what, " shared memory for the ranks of this host: ", std::generic_category().message(code),
             "; set checkpoint.writers = \"rank\", or make room in /dev/shm");
}

}  // namespace

// The name of the shared memory is removed as soon as every rank has attached it, so that a crash leaves nothing in
// /dev/shm.
HostGroup::HostGroup(Communicator& comm, int color, int64_t bytes_per_rank)
    : ranks_(comm.split(color, comm.rank(), "host")),
      bytes_per_rank_(static_cast<size_t>(round_up(bytes_per_rank, kPage))),
      bytes_(bytes_per_rank_ * static_cast<size_t>(ranks_->size())) {
  std::array<char, 40> name{};
  uint64_t nonce = 0;
  if (leads()) {
    if (::getrandom(&nonce, sizeof nonce, 0) != sizeof nonce)
      throw Error("getrandom failed: the system returned no random bytes");
    std::snprintf(name.data(), name.size(), "/tmamba-host-%016llx", static_cast<unsigned long long>(nonce));
  }
  ranks_->broadcast(Tensor(name.data(), {std::ssize(name)}, DType::u8), 0).wait();
  std::string failure;
  // The leader creates the memory in the first iteration, the others open it in the second.
  for (const bool create : {true, false}) {
    if (leads() == create) failure = attach(name.data(), create);
    int64_t failed = failure.empty() ? 0 : 1;
    ranks_->all_reduce(Tensor(&failed, {1}, DType::i64), ReduceOp::sum).wait();
    if (failed == 0) continue;
    if (leads()) ::shm_unlink(name.data());
    throw Error(failure.empty() ? problem("use", ENOMEM) : failure);
  }
  if (leads()) ::shm_unlink(name.data());
}

// Returns the problem, or an empty string on success.
std::string HostGroup::attach(const std::string& name, bool create) {
  const int fd = ::shm_open(name.c_str(), O_RDWR | (create ? O_CREAT | O_EXCL : 0), 0600);
  if (fd < 0) return problem("open", errno);
  // Allocated now, because a page that cannot be allocated on first use would kill the process.
  const int failed = create ? ::posix_fallocate(fd, 0, static_cast<off_t>(bytes_)) : 0;
  void* begin = failed == 0 ? ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  const int code = failed != 0 ? failed : errno;
  ::close(fd);
  if (begin == MAP_FAILED) return problem("allocate", code);
  begin_ = begin;
  return "";
}

HostGroup::~HostGroup() {
  if (begin_ != nullptr) ::munmap(begin_, bytes_);
}

std::span<std::byte> HostGroup::memory(int rank) const {
  return {static_cast<std::byte*>(begin_) + static_cast<size_t>(rank) * bytes_per_rank_, bytes_per_rank_};
}

}  // namespace tmamba
