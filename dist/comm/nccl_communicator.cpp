#include "dist/comm/nccl_communicator.h"

#include <algorithm>
#include <exception>
#include <optional>
#include <utility>

#include "dist/comm/collective_args.h"
#include "dist/comm/reduce_device.h"
#include "dist/comm/self_communicator.h"
#include "dist/comm/self_messages.h"

namespace tmamba {

namespace {

size_t at(int rank) { return static_cast<size_t>(rank); }
size_t count_of(int64_t elements) { return static_cast<size_t>(elements); }

// The NCCL type whose reduction matches the rules of communicator.h; nullopt if there is none.
std::optional<ncclDataType_t> reduction_type(DType dtype, ReduceOp op) {
  const bool sum = op == ReduceOp::sum;
  switch (dtype) {
    case DType::f32:
      return sum ? std::optional(ncclFloat32) : std::nullopt;
    case DType::f64:
      return sum ? std::optional(ncclFloat64) : std::nullopt;
    case DType::bf16:
      return sum ? std::optional(ncclBfloat16) : std::nullopt;
    case DType::i32:
      return ncclInt32;
    case DType::i64:
      return ncclInt64;
    case DType::u8:
      return ncclUint8;
    case DType::u16:
      return std::nullopt;
  }
  return std::nullopt;
}

ncclRedOp_t nccl_op(ReduceOp op) { return op == ReduceOp::sum ? ncclSum : op == ReduceOp::max ? ncclMax : ncclMin; }

bool all_equal(std::span<const int64_t> counts) {
  return std::all_of(counts.begin(), counts.end(), [&](int64_t count) { return count == counts.front(); });
}

}  // namespace

// Owns the event that is recorded after an operation.
class NcclCommunicator::Pending final : public Work::State {
 public:
  Pending(NcclCommunicator& comm, cudaEvent_t done) : comm_(comm), done_(done), sequence_(comm.current_.sequence) {}
  ~Pending() override { comm_.runtime_->give_event(done_); }
  void wait() override {
    NcclRuntime& runtime = *comm_.runtime_;
    runtime.check_alive();
    comm_.check(cudaStreamWaitEvent(runtime.compute(), done_, 0), "cudaStreamWaitEvent");
  }
  void abandon() noexcept override {
    // A completed operation needs no abort.
    if (cudaEventQuery(done_) == cudaSuccess) return;
    comm_.runtime_->abandon(str("operation #", sequence_, " on \"", comm_.name_, "\", ", comm_.runtime_->rank_name()));
  }

 private:
  NcclCommunicator& comm_;
  cudaEvent_t done_;
  int64_t sequence_;
};

NcclCommunicator::NcclCommunicator(std::unique_ptr<Communicator> host, std::string name, int world_rank,
                                   std::shared_ptr<NcclRuntime> runtime)
    : host_(std::move(host)), name_(std::move(name)), world_rank_(world_rank), runtime_(std::move(runtime)) {
  std::vector<int> members(at(size()));
  const std::vector<int64_t> ones(members.size(), 1);
  host_->all_gather(Tensor(members.data(), {size()}, DType::i32), ConstTensor(&world_rank_, {1}, DType::i32), ones)
      .wait();
  finished_ = runtime_->make_finished_counter();
  count_ = Buffer({1}, DType::i64, Device::cuda);
  check(cudaHostGetDevicePointer(reinterpret_cast<void**>(&finished_on_device_), finished_, 0),
        "cudaHostGetDevicePointer");
  watched_ = runtime_->watchdog().watch(name_, members, finished_);
  // The highest priority, above the compute stream: other ranks wait for these operations.
  int lowest = 0, highest = 0;
  check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "cudaDeviceGetStreamPriorityRange");
  check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest), "cudaStreamCreateWithPriority");
  check(cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming), "cudaEventCreate");
  connect();
}

void NcclCommunicator::connect() {
  const std::string where = label();
  ncclUniqueId id{};
  if (rank() == 0) check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId", where);
  host_->broadcast(Tensor(&id, {sizeof id}, DType::u8), 0).wait();
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.commName = name_.c_str();

  // ncclCommInitRankConfig blocks until all ranks have called it, so the watchdog must see it as a wait.
  Watchdog& watchdog = runtime_->watchdog();
  watchdog.wait_begins(watched_, {.sequence = 0, .op = Collective::barrier, .bytes = 0});
  const ncclResult_t code = ncclCommInitRankConfig(&comm_, size(), id, rank(), &config);
  watchdog.wait_ends();
  check_nccl(code, "ncclCommInitRankConfig", where);
  handle_ = runtime_->adopt(comm_, name_);
}

NcclCommunicator::~NcclCommunicator() {
  const bool graceful = runtime_->alive() && std::uncaught_exceptions() == 0;
  if (graceful) cudaStreamSynchronize(stream_);
  runtime_->retire(handle_, graceful);
  cudaEventDestroy(ready_);
  cudaStreamDestroy(stream_);
}

std::string NcclCommunicator::label() const {
  return str(
      current_.sequence == 0 ? std::string("starting") : str(name_of(current_.op), " #", current_.sequence, " on"),
      " \"", name_, "\", rank ", rank(), " of ", size(), " (", runtime_->rank_name(), ")");
}

void NcclCommunicator::check(ncclResult_t code, const char* call) {
  if (code != ncclSuccess) runtime_->fail(str(label(), ": ", call, " failed: ", nccl_error_text(code, comm_)));
}

void NcclCommunicator::check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  runtime_->fail(str(label(), ": ", call, " failed: ", cudaGetErrorString(status)));
}

void NcclCommunicator::begin(Collective op, int64_t bytes, int64_t received_bytes) {
  runtime_->check_alive();
  if (Recorder* recorder = Recorder::current()) {
    recorder->on_replay([=, this] { note(op, bytes, received_bytes); });
    recorder->at_end(this, [this] { join(); });
  } else {
    note(op, bytes, received_bytes);
  }
  check(cudaEventRecord(ready_, runtime_->compute()), "cudaEventRecord");
  check(cudaStreamWaitEvent(stream_, ready_, 0), "cudaStreamWaitEvent");
}

void NcclCommunicator::note(Collective op, int64_t bytes, int64_t received_bytes) {
  runtime_->check_alive();
  ++traffic_.calls[static_cast<size_t>(op)];
  traffic_.bytes[static_cast<size_t>(op)] += received_bytes;
  current_ = {.sequence = current_.sequence + 1, .op = op, .bytes = bytes};
  runtime_->watchdog().started(watched_, current_);
}

// A stream that a capture forked into must be joined to the captured stream before the capture ends.
void NcclCommunicator::join() {
  check(cudaEventRecord(ready_, stream_), "cudaEventRecord");
  check(cudaStreamWaitEvent(runtime_->compute(), ready_, 0), "cudaStreamWaitEvent");
}

Work NcclCommunicator::finish() {
  const cudaEvent_t done = runtime_->take_event();
  auto pending = std::make_unique<Pending>(*this, done);
  check(cudaEventRecord(done, stream_), "cudaEventRecord");
  check(count_on_device(static_cast<int64_t*>(count_.data()), finished_on_device_, stream_), "the counting kernel");
  return Work(std::move(pending));
}

template <class F>
void NcclCommunicator::group(F calls) {
  check(ncclGroupStart(), "ncclGroupStart");
  calls();
  check(ncclGroupEnd(), "ncclGroupEnd");
}

void NcclCommunicator::send(const ConstTensor& x, int peer) {
  if (x.numel() > 0) check(ncclSend(x.raw(), count_of(x.bytes()), ncclUint8, peer, comm_, stream_), "ncclSend");
}

void NcclCommunicator::receive(const Tensor& x, int peer) {
  if (x.numel() > 0) check(ncclRecv(x.raw(), count_of(x.bytes()), ncclUint8, peer, comm_, stream_), "ncclRecv");
}

void NcclCommunicator::copy(const Tensor& to, const ConstTensor& from) {
  if (to.numel() == 0 || to.raw() == from.raw()) return;
  check(cudaMemcpyAsync(to.raw(), from.raw(), count_of(from.bytes()), cudaMemcpyDeviceToDevice, stream_),
        "cudaMemcpyAsync");
}

void NcclCommunicator::reduce_gathered(ReduceOp op, const Tensor& out, const ConstTensor& in, int64_t first) {
  const size_t needed = count_of(in.bytes()) * at(size());
  if (gathered_.bytes() < needed) {
    synchronize();  // an operation in flight still uses the old memory
    gathered_ = Buffer();
    gathered_ = Buffer(needed, Device::cuda);
    // The compute stream clears the new memory.
    check(cudaEventRecord(ready_, runtime_->compute()), "cudaEventRecord");
    check(cudaStreamWaitEvent(stream_, ready_, 0), "cudaStreamWaitEvent");
  }
  check(ncclAllGather(in.raw(), gathered_.data(), count_of(in.bytes()), ncclUint8, comm_, stream_), "ncclAllGather");
  const char* terms = static_cast<const char*>(gathered_.data()) + first * static_cast<int64_t>(size_of(in.dtype()));
  check(reduce_on_device(op, out.dtype(), out.raw(), terms, in.numel(), size(), out.numel(), stream_),
        "the reduction kernel");
}

Work NcclCommunicator::all_reduce(Tensor x, ReduceOp op) {
  const CallSite site{*this, Collective::all_reduce};
  check_tensor(site, "tensor", x, Device::cuda);
  begin(site.op, x.bytes(), received_bytes(site.op, x.bytes(), 0, size()));
  if (x.numel() > 0) {
    if (const auto type = reduction_type(x.dtype(), op)) {
      check(ncclAllReduce(x.raw(), x.raw(), count_of(x.numel()), *type, nccl_op(op), comm_, stream_), "ncclAllReduce");
    } else {
      reduce_gathered(op, x, x, 0);
    }
  }
  return finish();
}

Work NcclCommunicator::reduce_scatter(Tensor out, ConstTensor in, std::span<const int64_t> counts) {
  const CallSite site{*this, Collective::reduce_scatter};
  check_tensor(site, "output", out, Device::cuda);
  check_tensor(site, "input", in, Device::cuda);
  check_counts(site, "the input", in, counts);
  check_shard(site, in, out, counts);
  begin(site.op, in.bytes(), received_bytes(site.op, in.bytes(), out.bytes(), size()));
  const auto type = reduction_type(in.dtype(), ReduceOp::sum);
  if (in.numel() == 0) return finish();
  if (!type) {
    reduce_gathered(ReduceOp::sum, out, in, shard_begin(counts, rank()));
  } else if (all_equal(counts)) {
    check(ncclReduceScatter(in.raw(), out.raw(), count_of(out.numel()), *type, ncclSum, comm_, stream_),
          "ncclReduceScatter");
  } else {
    group([&] {
      int64_t begin_of_shard = 0;
      for (int owner = 0; owner < size(); ++owner) {
        const ConstTensor shard = flat_slice(in, begin_of_shard, counts[at(owner)]);
        begin_of_shard += counts[at(owner)];
        if (shard.numel() == 0) continue;
        void* sum = owner == rank() ? out.raw() : nullptr;  // NCCL writes it on the owner only
        check(ncclReduce(shard.raw(), sum, count_of(shard.numel()), *type, ncclSum, owner, comm_, stream_),
              "ncclReduce");
      }
    });
  }
  return finish();
}

Work NcclCommunicator::all_gather(Tensor out, ConstTensor in, std::span<const int64_t> counts) {
  const CallSite site{*this, Collective::all_gather};
  check_tensor(site, "output", out, Device::cuda);
  check_tensor(site, "input", in, Device::cuda);
  check_counts(site, "the output", out, counts);
  check_shard(site, out, in, counts);
  begin(site.op, out.bytes(), received_bytes(site.op, out.bytes(), in.bytes(), size()));
  if (out.numel() == 0) return finish();
  if (all_equal(counts)) {
    check(ncclAllGather(in.raw(), out.raw(), count_of(in.bytes()), ncclUint8, comm_, stream_), "ncclAllGather");
  } else {
    group([&] {
      int64_t begin_of_shard = 0;
      for (int owner = 0; owner < size(); ++owner) {
        const Tensor shard = flat_slice(out, begin_of_shard, counts[at(owner)]);
        begin_of_shard += counts[at(owner)];
        if (shard.numel() == 0) continue;
        const void* from = owner == rank() ? in.raw() : shard.raw();  // NCCL reads it on the owner only
        check(ncclBroadcast(from, shard.raw(), count_of(shard.bytes()), ncclUint8, owner, comm_, stream_),
              "ncclBroadcast");
      }
    });
  }
  return finish();
}

Work NcclCommunicator::broadcast(Tensor x, int root) {
  const CallSite site{*this, Collective::broadcast};
  check_peer(site, "the root", root);
  check_tensor(site, "tensor", x, Device::cuda);
  begin(site.op, x.bytes(), rank() == root ? 0 : x.bytes());
  if (x.numel() > 0) {
    check(ncclBroadcast(x.raw(), x.raw(), count_of(x.bytes()), ncclUint8, root, comm_, stream_), "ncclBroadcast");
  }
  return finish();
}

Work NcclCommunicator::all_to_all(Tensor out, std::span<const int64_t> out_counts, ConstTensor in,
                                  std::span<const int64_t> in_counts) {
  const CallSite site{*this, Collective::all_to_all};
  check_tensor(site, "output", out, Device::cuda);
  check_tensor(site, "input", in, Device::cuda);
  check_all_to_all(site, out, out_counts, in, in_counts);
  const int64_t own = out_counts[at(rank())];
  begin(site.op, out.bytes(), out.bytes() - own * static_cast<int64_t>(size_of(out.dtype())));
  if (own > 0) {
    copy(flat_slice(out, shard_begin(out_counts, rank()), own), flat_slice(in, shard_begin(in_counts, rank()), own));
  }
  group([&] {
    int64_t sent = 0, received = 0;
    for (int peer = 0; peer < size(); ++peer) {
      if (peer != rank()) {
        send(flat_slice(in, sent, in_counts[at(peer)]), peer);
        receive(flat_slice(out, received, out_counts[at(peer)]), peer);
      }
      sent += in_counts[at(peer)], received += out_counts[at(peer)];
    }
  });
  return finish();
}

Work NcclCommunicator::send_recv(std::span<const Message> messages) {
  const CallSite site{*this, Collective::send_recv};
  int64_t received = 0;
  for (const Message& message : messages) {
    check_peer(site, "the peer", message.peer);
    check_tensor(site, "received tensor", message.recv, Device::cuda);
    check_tensor(site, "sent tensor", message.send, Device::cuda);
    if (message.peer != rank()) received += message.recv.bytes();
  }
  const auto copies = match_self_messages(site, messages);
  begin(site.op, received, received);
  for (const SelfMessage& message : copies) copy(message.to, message.from);
  group([&] {
    for (const Message& message : messages) {
      if (message.peer == rank()) continue;
      send(message.send, message.peer);
      receive(message.recv, message.peer);
    }
  });
  return finish();
}

// Blocks the host. The watchdog reports the oldest operation that the device has not finished.
void NcclCommunicator::synchronize() { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

void NcclCommunicator::barrier() {
  runtime_->check_alive();
  ++traffic_.calls[static_cast<size_t>(Collective::barrier)];
  synchronize();
  host_->barrier();
}

std::unique_ptr<Communicator> NcclCommunicator::split(int color, int key, const std::string& name) {
  if (color < 0) throw Error(str("split of \"", name_, "\", rank ", rank(), ": negative color ", color));
  runtime_->check_alive();
  synchronize();
  auto host = host_->split(color, key, name + " (host)");
  if (host->size() == 1) return std::make_unique<SelfCommunicator>(name);
  return std::make_unique<NcclCommunicator>(std::move(host), name, world_rank_, runtime_);
}

}  // namespace tmamba
