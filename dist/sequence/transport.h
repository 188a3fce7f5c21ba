// How the ranks of a sequence reach each other in one layer. The planner compares transports, the plan writes down
// which one each layer uses, and the exchanges carry it out.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace tmamba {

// How prefix keys and values travel: each part to the ranks that need it, or all of the prefix to all.
enum class KeyTransport : uint8_t { group_cast, gather };
// How the state scan crosses ranks: whole states to all, or each rank scans a slice of every state.
enum class StateTransport : uint8_t { all_gather, sliced };

struct Transport {
  // All-to-all around the whole mixer, so that each rank has all tokens of some heads; the other two then mean nothing.
  bool head_parallel = false;
  KeyTransport keys = KeyTransport::group_cast;
  StateTransport state = StateTransport::all_gather;
  bool operator==(const Transport&) const = default;
};

// "group_cast+all_gather", "group_cast+sliced", "gather+all_gather", "gather+sliced", "head_parallel".
std::string name_of(const Transport& transport);
// Throws UserError listing the names for any other.
Transport transport_named(const std::string& name);
// All five.
const std::array<Transport, 5>& all_transports();

}  // namespace tmamba
