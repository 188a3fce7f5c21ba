#include "dist/comm/collective_args.h"

#include <numeric>

namespace tmamba {

std::string CallSite::text() const {
  return str(name_of(op), " on \"", comm.name(), "\", rank ", comm.rank(), " of ", comm.size());
}

void check_tensor(const CallSite& site, const char* what, const ConstTensor& tensor, Device device) {
  if (tensor.numel() == 0) return;
  if (tensor.device() != device) {
    throw Error(str(site.text(), ": ", what, " ", tensor.shape(), " is on ", name_of(tensor.device()),
                    ", but this communicator needs tensors on ", name_of(device)));
  }
  if (!tensor.contiguous()) {
    throw Error(str(site.text(), ": ", what, " ", tensor.shape(), " is not contiguous; copy it first"));
  }
  if (tensor.empty()) throw Error(str(site.text(), ": ", what, " ", tensor.shape(), " has no memory"));
}

void check_counts(const CallSite& site, const char* what, const ConstTensor& whole, std::span<const int64_t> counts) {
  if (std::ssize(counts) != site.comm.size()) {
    throw Error(str(site.text(), ": ", counts.size(), " counts for ", what, ", expected one per rank"));
  }
  int64_t total = 0;
  for (int64_t count : counts) {
    if (count < 0) throw Error(str(site.text(), ": negative count ", count, " for ", what));
    total += count;
  }
  if (total != whole.numel()) {
    throw Error(
        str(site.text(), ": the counts for ", what, " sum to ", total, ", but it has the shape ", whole.shape()));
  }
}

void check_shard(const CallSite& site, const ConstTensor& whole, const ConstTensor& shard,
                 std::span<const int64_t> counts) {
  const int64_t count = counts[static_cast<size_t>(site.comm.rank())];
  if (shard.numel() != count) {
    throw Error(str(site.text(), ": this rank's shard is ", shard.shape(), ", but its count is ", count));
  }
  check_same_type(site, whole, shard);
}

void check_same_type(const CallSite& site, const ConstTensor& a, const ConstTensor& b) {
  if (a.numel() > 0 && b.numel() > 0 && a.dtype() != b.dtype()) {
    throw Error(
        str(site.text(), ": ", "the tensors have different types, ", name_of(a.dtype()), " and ", name_of(b.dtype())));
  }
}

void check_all_to_all(const CallSite& site, const ConstTensor& out, std::span<const int64_t> out_counts,
                      const ConstTensor& in, std::span<const int64_t> in_counts) {
  check_counts(site, "the output", out, out_counts);
  check_counts(site, "the input", in, in_counts);
  check_same_type(site, out, in);
  const auto own = static_cast<size_t>(site.comm.rank());
  if (in_counts[own] != out_counts[own]) {
    throw Error(
        str(site.text(), ": this rank sends itself ", in_counts[own], " elements and receives ", out_counts[own]));
  }
}

void check_peer(const CallSite& site, const char* what, int peer) {
  if (peer < 0 || peer >= site.comm.size()) {
    throw Error(str(site.text(), ": ", what, " is rank ", peer, ", which does not exist"));
  }
}

int64_t received_bytes(Collective op, int64_t whole, int64_t own, int size) {
  switch (op) {
    case Collective::all_reduce:
      return 2 * whole * (size - 1) / size;
    case Collective::reduce_scatter:
      return own * (size - 1);
    case Collective::all_gather:
      return whole - own;
    default:
      throw Error(str("received_bytes of ", name_of(op), " is known only from its messages"));
  }
}

int64_t shard_begin(std::span<const int64_t> counts, int rank) {
  return std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
}

namespace {
template <class T>
T slice_elements(const T& whole, int64_t begin, int64_t count) {
  TM_CHECK(begin >= 0 && count >= 0 && begin + count <= whole.numel(), "elements [", begin, ", ", begin + count,
           ") are outside the tensor ", whole.shape());
  if (count == 0) return T(nullptr, {0}, whole.dtype(), whole.device());
  return whole.view({whole.numel()}).slice(0, begin, count);
}
}  // namespace

Tensor flat_slice(const Tensor& whole, int64_t begin, int64_t count) { return slice_elements(whole, begin, count); }
ConstTensor flat_slice(const ConstTensor& whole, int64_t begin, int64_t count) {
  return slice_elements(whole, begin, count);
}

}  // namespace tmamba
