// Argument checks and traffic counts that all communicator backends share.
#pragma once

#include <span>

#include "dist/comm/communicator.h"

namespace tmamba {

// A collective call, for messages: `all_gather on "sp", rank 1 of 4`.
struct CallSite {
  const Communicator& comm;
  Collective op;
  std::string text() const;
};

// Throws Error unless `tensor` is contiguous and on `device`; tensors without elements always pass.
void check_tensor(const CallSite& site, const char* what, const ConstTensor& tensor, Device device);
// Throws Error unless there is one count >= 0 per rank and their sum is the number of elements of `whole`.
void check_counts(const CallSite& site, const char* what, const ConstTensor& whole, std::span<const int64_t> counts);
// Throws Error unless `shard` has counts[rank] elements of the type of `whole`.
void check_shard(const CallSite& site, const ConstTensor& whole, const ConstTensor& shard,
                 std::span<const int64_t> counts);
void check_same_type(const CallSite& site, const ConstTensor& a, const ConstTensor& b);
// For all_to_all: checks both counts, that the types agree, and that this rank sends itself as much as it receives from
// itself.
void check_all_to_all(const CallSite& site, const ConstTensor& out, std::span<const int64_t> out_counts,
                      const ConstTensor& in, std::span<const int64_t> in_counts);
void check_peer(const CallSite& site, const char* what, int peer);

// Bytes that this rank receives in an all_reduce, reduce_scatter or all_gather, by the rules of TrafficCounter. `whole`
// is the bytes of the complete tensor, `own` those of this rank's shard (0 for all_reduce).
int64_t received_bytes(Collective op, int64_t whole, int64_t own, int size);

// Sum of counts[0, rank): the first element of the shard of `rank`.
int64_t shard_begin(std::span<const int64_t> counts, int rank);

// Elements [begin, begin + count) of a contiguous tensor as a 1-D view.
Tensor flat_slice(const Tensor& whole, int64_t begin, int64_t count);
ConstTensor flat_slice(const ConstTensor& whole, int64_t begin, int64_t count);

}  // namespace tmamba
