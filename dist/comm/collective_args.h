// What every communicator checks and counts before it moves anything: the same messages and figures from each backend.
#pragma once

#include <span>

#include "dist/comm/communicator.h"

namespace tmamba {

// Who is asked to do what, for messages: "all_gather on "sp", rank 1 of 4".
struct CallSite {
  const Communicator& comm;
  Collective op;
  std::string text() const;
};

// Throws Error unless `tensor` is contiguous and lies on `device`; tensors without elements always pass.
void check_tensor(const CallSite& site, const char* what, const ConstTensor& tensor, Device device);
// Throws Error unless there is one count >= 0 per rank and they add up to the elements of `whole`; where `piece` is
// given it must have counts[rank] elements of the type of `whole`.
void check_counts(const CallSite& site, const char* what, const ConstTensor& whole, std::span<const int64_t> counts);
void check_piece(const CallSite& site, const ConstTensor& whole, const ConstTensor& piece,
                 std::span<const int64_t> counts);
void check_same_type(const CallSite& site, const ConstTensor& a, const ConstTensor& b);
// Of all_to_all: the counts, one type, and as much to oneself as from oneself.
void check_all_to_all(const CallSite& site, const ConstTensor& out, std::span<const int64_t> out_counts,
                      const ConstTensor& in, std::span<const int64_t> in_counts);
void check_peer(const CallSite& site, const char* what, int peer);

// Bytes this rank receives by the rule beside TrafficCounter, of an all_reduce, reduce_scatter or all_gather: `whole`
// bytes are those of the unsplit tensor, `own` those of this rank's piece (all_reduce has none).
int64_t received_bytes(Collective op, int64_t whole, int64_t own, int size);

// Sum of counts[0, rank): where the piece of `rank` begins.
int64_t piece_begin(std::span<const int64_t> counts, int rank);

// Elements [begin, begin + count) of a contiguous tensor, as one dimension.
Tensor flat_slice(const Tensor& whole, int64_t begin, int64_t count);
ConstTensor flat_slice(const ConstTensor& whole, int64_t begin, int64_t count);

}  // namespace tmamba
