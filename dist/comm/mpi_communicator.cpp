#include "dist/comm/mpi_communicator.h"

#include <cstring>
#include <exception>
#include <numeric>
#include <utility>

#include "dist/comm/collective_args.h"
#include "dist/comm/mpi_check.h"
#include "dist/comm/reduce.h"
#include "dist/comm/self_communicator.h"
#include "dist/comm/self_messages.h"
#include "dist/comm/shard.h"

namespace tmamba {

namespace {

// Every MPI library supports tags up to 32767. One is for send_recv; collectives cycle through the others, so that
// concurrent ones have different tags. The kind of operation is part of the tag: ranks that issue different operations
// wait for each other, which the watchdog reports, and never receive each other's data.
constexpr int kSendRecvTag = 0;
constexpr int64_t kTagRounds = 32767 / kCollectives;

int collective_tag(Collective op, int64_t number) {
  return static_cast<int>(1 + number % kTagRounds * kCollectives + static_cast<int64_t>(op));
}

// Up to this size in bytes, every rank sends its complete tensor to all others: one round of messages instead of two.
constexpr int64_t kSmallAllReduce = 8192;

class MpiWork final : public Work::State {
 public:
  MpiWork(std::shared_ptr<MpiProgress> progress, MpiOperationPtr operation)
      : progress_(std::move(progress)), operation_(std::move(operation)) {}
  void wait() override { progress_->wait(operation_); }
  void abandon() noexcept override { progress_->abandon(operation_); }

 private:
  std::shared_ptr<MpiProgress> progress_;
  MpiOperationPtr operation_;
};

// Calls f(to, from) in size - 1 rounds; in each round every rank sends to one rank and receives from one.
template <class F>
void for_each_round(int rank, int size, F f) {
  for (int round = 1; round < size; ++round) f((rank + round) % size, (rank - round + size) % size);
}

size_t at(int rank) { return static_cast<size_t>(rank); }

void copy_bytes(const Tensor& to, const ConstTensor& from) {
  if (to.numel() > 0 && to.raw() != from.raw()) std::memmove(to.raw(), from.raw(), static_cast<size_t>(from.bytes()));
}

std::vector<int> world_ranks(MPI_Comm comm, int size, const std::string& where) {
  std::vector<int> ranks(at(size)), of_world(at(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  MPI_Group group = MPI_GROUP_NULL, world = MPI_GROUP_NULL;
  check_mpi(MPI_Comm_group(comm, &group), "MPI_Comm_group", where);
  check_mpi(MPI_Comm_group(MPI_COMM_WORLD, &world), "MPI_Comm_group", where);
  check_mpi(MPI_Group_translate_ranks(group, size, ranks.data(), world, of_world.data()), "MPI_Group_translate_ranks",
            where);
  MPI_Group_free(&group);
  MPI_Group_free(&world);
  return of_world;
}

}  // namespace

MpiCommunicator::MpiCommunicator(MPI_Comm comm, std::string name, std::shared_ptr<MpiProgress> progress)
    : comm_(comm), name_(std::move(name)), progress_(std::move(progress)) {
  const std::string where = "communicator \"" + name_ + "\"";
  check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", where);
  check_mpi(MPI_Comm_set_name(comm_, name_.c_str()), "MPI_Comm_set_name", where);
  check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank", where);
  check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size", where);
  watched_ = progress_->watchdog().watch(name_, world_ranks(comm_, size_, where));
}

MpiCommunicator::~MpiCommunicator() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  // MPI_Comm_free is collective, and after a failure the other ranks may never call it.
  if (!finalized && progress_->clean() && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
}

MpiOperationPtr MpiCommunicator::begin(Collective op, int64_t bytes, int64_t received_bytes) {
  ++traffic_.calls[static_cast<size_t>(op)];
  traffic_.bytes[static_cast<size_t>(op)] += received_bytes;
  return begin_uncounted(op, bytes);
}

MpiOperationPtr MpiCommunicator::begin_uncounted(Collective op, int64_t bytes) {
  auto operation = std::make_shared<MpiOperation>();
  operation->label = str(name_of(op), " #", ++sequence_, " on \"", name_, "\", rank ", rank_, " of ", size_);
  operation->watched = watched_;
  operation->record = {sequence_, op, bytes};
  operation->comm = comm_;
  operation->tag = op == Collective::send_recv ? kSendRecvTag : collective_tag(op, next_tag_++);
  return operation;
}

Work MpiCommunicator::start(const MpiOperationPtr& operation) {
  progress_->watchdog().started(watched_, operation->record);
  progress_->start(operation);
  if (operation->done()) return {};
  return Work(std::make_unique<MpiWork>(progress_, operation));
}

void MpiCommunicator::add_reduce_scatter(const MpiOperationPtr& operation, Tensor out, ConstTensor in,
                                         std::vector<int64_t> counts, ReduceOp op) {
  auto terms = std::make_shared<std::vector<const void*>>(at(size_));
  operation->stages.push_back([=, this, counts = std::move(counts)](const MpiOperationPtr& self) {
    (*terms)[at(rank_)] = flat_slice(in, shard_begin(counts, rank_), out.numel()).raw();
    for_each_round(rank_, size_, [&](int to, int from) {
      const ConstTensor shard = flat_slice(in, shard_begin(counts, to), counts[at(to)]);
      progress_->send(self, shard.raw(), shard.bytes(), to);
      std::byte* term = self->take_scratch(out.bytes());
      progress_->receive(self, term, out.bytes(), from);
      (*terms)[at(from)] = term;
    });
  });
  operation->stages.push_back([=](const MpiOperationPtr& self) {
    reduce_in_order(op, out.dtype(), out.raw(), *terms, out.numel());
    self->scratch.clear();
  });
}

void MpiCommunicator::add_all_gather(const MpiOperationPtr& operation, Tensor out, ConstTensor in,
                                     std::vector<int64_t> counts) {
  operation->stages.push_back([=, this, counts = std::move(counts)](const MpiOperationPtr& self) {
    for_each_round(rank_, size_, [&](int to, int from) {
      const Tensor shard = flat_slice(out, shard_begin(counts, from), counts[at(from)]);
      progress_->receive(self, shard.raw(), shard.bytes(), from);
      progress_->send(self, in.raw(), in.bytes(), to);
    });
    copy_bytes(flat_slice(out, shard_begin(counts, rank_), counts[at(rank_)]), in);
  });
}

Work MpiCommunicator::all_reduce(Tensor x, ReduceOp op) {
  const CallSite site{*this, Collective::all_reduce};
  check_tensor(site, "tensor", x, Device::cpu);
  const auto operation = begin(site.op, x.bytes(), received_bytes(site.op, x.bytes(), 0, size_));
  if (x.bytes() <= kSmallAllReduce) {
    const auto all = Tensor(operation->take_scratch(x.bytes() * size_), {size_, x.numel()}, x.dtype());
    add_all_gather(operation, all, x, std::vector<int64_t>(at(size_), x.numel()));
    operation->stages.push_back([=, this](const MpiOperationPtr&) {
      std::vector<const void*> terms;
      for (int r = 0; r < size_; ++r) terms.push_back(all.select(0, r).raw());
      reduce_in_order(op, x.dtype(), x.raw(), terms, x.numel());
    });
    return start(operation);
  }
  std::vector<int64_t> counts;
  for (int r = 0; r < size_; ++r) counts.push_back(shard_of(x.numel(), r, size_).count);
  const Tensor shard = flat_slice(x, shard_begin(counts, rank_), counts[at(rank_)]);
  add_reduce_scatter(operation, shard, x, counts, op);
  add_all_gather(operation, x, shard, counts);
  return start(operation);
}

Work MpiCommunicator::reduce_scatter(Tensor out, ConstTensor in, std::span<const int64_t> counts) {
  const CallSite site{*this, Collective::reduce_scatter};
  check_tensor(site, "output", out, Device::cpu);
  check_tensor(site, "input", in, Device::cpu);
  check_counts(site, "the input", in, counts);
  check_shard(site, in, out, counts);
  const auto operation = begin(site.op, in.bytes(), received_bytes(site.op, in.bytes(), out.bytes(), size_));
  add_reduce_scatter(operation, out, in, {counts.begin(), counts.end()}, ReduceOp::sum);
  return start(operation);
}

Work MpiCommunicator::all_gather(Tensor out, ConstTensor in, std::span<const int64_t> counts) {
  const CallSite site{*this, Collective::all_gather};
  check_tensor(site, "output", out, Device::cpu);
  check_tensor(site, "input", in, Device::cpu);
  check_counts(site, "the output", out, counts);
  check_shard(site, out, in, counts);
  const auto operation = begin(site.op, out.bytes(), received_bytes(site.op, out.bytes(), in.bytes(), size_));
  add_all_gather(operation, out, in, {counts.begin(), counts.end()});
  return start(operation);
}

// A binomial tree: with ranks relative to the root, a rank's parent is the rank with the lowest set bit cleared.
Work MpiCommunicator::broadcast(Tensor x, int root) {
  const CallSite site{*this, Collective::broadcast};
  check_peer(site, "the root", root);
  check_tensor(site, "tensor", x, Device::cpu);
  const auto operation = begin(site.op, x.bytes(), rank_ == root ? 0 : x.bytes());
  const int from_root = (rank_ - root + size_) % size_;
  int lowest_bit = 1;
  while (lowest_bit < size_ && (from_root & lowest_bit) == 0) lowest_bit *= 2;
  if (from_root != 0) {
    operation->stages.push_back([=, this](const MpiOperationPtr& self) {
      progress_->receive(self, x.raw(), x.bytes(), (from_root - lowest_bit + root) % size_);
    });
  }
  operation->stages.push_back([=, this](const MpiOperationPtr& self) {
    for (int bit = lowest_bit / 2; bit > 0; bit /= 2) {
      if (from_root + bit < size_) progress_->send(self, x.raw(), x.bytes(), (from_root + bit + root) % size_);
    }
  });
  return start(operation);
}

Work MpiCommunicator::all_to_all(Tensor out, std::span<const int64_t> out_counts, ConstTensor in,
                                 std::span<const int64_t> in_counts) {
  const CallSite site{*this, Collective::all_to_all};
  check_tensor(site, "output", out, Device::cpu);
  check_tensor(site, "input", in, Device::cpu);
  check_all_to_all(site, out, out_counts, in, in_counts);
  const int64_t own = out_counts[at(rank_)] * static_cast<int64_t>(size_of(out.dtype()));
  const auto operation = begin(site.op, out.bytes(), out.bytes() - own);
  operation->stages.push_back(
      [=, this, out_counts = std::vector(out_counts.begin(), out_counts.end()),
       in_counts = std::vector(in_counts.begin(), in_counts.end())](const MpiOperationPtr& self) {
        for_each_round(rank_, size_, [&](int to, int from) {
          const Tensor received = flat_slice(out, shard_begin(out_counts, from), out_counts[at(from)]);
          const ConstTensor sent = flat_slice(in, shard_begin(in_counts, to), in_counts[at(to)]);
          progress_->receive(self, received.raw(), received.bytes(), from);
          progress_->send(self, sent.raw(), sent.bytes(), to);
        });
        copy_bytes(flat_slice(out, shard_begin(out_counts, rank_), out_counts[at(rank_)]),
                   flat_slice(in, shard_begin(in_counts, rank_), in_counts[at(rank_)]));
      });
  return start(operation);
}

Work MpiCommunicator::send_recv(std::span<const Message> messages) {
  const CallSite site{*this, Collective::send_recv};
  int64_t received = 0;
  for (const Message& message : messages) {
    check_peer(site, "the peer", message.peer);
    check_tensor(site, "received tensor", message.recv, Device::cpu);
    check_tensor(site, "sent tensor", message.send, Device::cpu);
    if (message.peer != rank_) received += message.recv.bytes();
  }
  const auto operation = begin(site.op, received, received);
  const auto copies = match_self_messages(site, messages);
  // Capturing by reference is safe: the first stage runs within start().
  operation->stages.push_back([&, this](const MpiOperationPtr& self) {
    for (const Message& message : messages) {
      if (message.peer != rank_) progress_->receive(self, message.recv.raw(), message.recv.bytes(), message.peer);
    }
    for (const Message& message : messages) {
      if (message.peer != rank_) progress_->send(self, message.send.raw(), message.send.bytes(), message.peer);
    }
    for (const SelfMessage& message : copies) copy_bytes(message.to, message.from);
  });
  return start(operation);
}

void MpiCommunicator::add_barrier(const MpiOperationPtr& operation) {
  operation->stages.push_back([this](const MpiOperationPtr& self) {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ibarrier(comm_, &request), "MPI_Ibarrier", self->label);
    progress_->add_request(self, request);
  });
}

void MpiCommunicator::barrier() {
  const auto operation = begin(Collective::barrier, 0, 0);
  add_barrier(operation);
  start(operation).wait();
}

std::unique_ptr<Communicator> MpiCommunicator::split(int color, int key, const std::string& name) {
  if (color < 0) throw Error(str("split of \"", name_, "\", rank ", rank_, ": negative color ", color));
  // The watchdog does not see MPI_Comm_split, so a barrier that it sees comes before it.
  const auto barrier = begin_uncounted(Collective::barrier, 0);
  add_barrier(barrier);
  start(barrier).wait();
  progress_->drain();
  const std::string where = str("split of \"", name_, "\" into \"", name, "\", rank ", rank_);
  MPI_Comm comm = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split(comm_, color, key, &comm), "MPI_Comm_split", where);
  int size = 0;
  check_mpi(MPI_Comm_size(comm, &size), "MPI_Comm_size", where);
  if (size > 1) return std::make_unique<MpiCommunicator>(comm, name, progress_);
  check_mpi(MPI_Comm_free(&comm), "MPI_Comm_free", where);
  return std::make_unique<SelfCommunicator>(name);
}

}  // namespace tmamba
