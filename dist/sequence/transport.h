// Transports of sequence parallelism (`parallel.sp`, what Megatron calls context parallelism, CP): how the ranks of a
// sequence exchange attention keys/values and SSM states in a layer. The planner compares them, the plan records one
// per layer, and SequenceExchange implements them.
//
// Keys and values of the attention prefix:
//   group_cast   sends each segment's keys and values directly to the ranks whose queries attend to it, in one group of
//                point-to-point messages. Ring attention moves the same blocks from neighbour to neighbour, also past
//                ranks that need none of them.
//   gather       all-gathers the keys and values of the complete prefix, as all-gather CP in Megatron-Core and PyTorch.
// States of the segments (B x H x D x D elements each; every rank scans all segments in the same order):
//   all_gather   all-gathers the full states; every rank scans all of them.
//   sliced       all-to-all: rank j scans slice j of 1/R of each state, and a second all-to-all returns the results. It
//                moves fewer bytes and needs two rounds.
// Instead of both:
//   head_parallel  all-to-all before and after the mixer, so that each rank has all tokens of 1/R of the heads, as in
//                DeepSpeed-Ulysses (arXiv:2309.14509). The other two choices then have no effect.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace tmamba {

enum class KeyTransport : uint8_t { group_cast, gather };
enum class StateTransport : uint8_t { all_gather, sliced };

struct Transport {
  bool head_parallel = false;
  KeyTransport keys = KeyTransport::group_cast;
  StateTransport state = StateTransport::all_gather;
  bool operator==(const Transport&) const = default;
};

// "group_cast+all_gather", "group_cast+sliced", "gather+all_gather", "gather+sliced", "head_parallel".
std::string name_of(const Transport& transport);
// Throws UserError that lists the valid names for any other one.
Transport transport_named(const std::string& name);
// The five transports that have a name.
const std::array<Transport, 5>& all_transports();

}  // namespace tmamba
