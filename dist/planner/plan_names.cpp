// What each kind of exchange and of message is: names, as JSON and tables print them, and sizes.
#include "dist/planner/plan.h"

namespace tmamba {

namespace {

struct ExchangeTraits {
  const char* name;
  bool backward, of_heads;
  Collective op;
  Collective gathering = op;  // with KeyTransport::gather
};

const ExchangeTraits& traits_of(ExchangeKind kind) {
  using enum Collective;
  static constexpr std::array<ExchangeTraits, kExchangeKinds.size()> table{{
      {"halo", false, false, send_recv},
      {"keys", false, false, send_recv, all_gather},
      {"summaries", false, false, all_gather},
      {"decays", false, false, all_gather},
      {"state_slices", false, false, all_to_all},
      {"inflow_slices", false, false, all_to_all},
      {"to_heads", false, true, all_to_all},
      {"to_tokens", false, true, all_to_all},
      {"adjoints", true, false, all_gather},
      {"adjoint_slices", true, false, all_to_all},
      {"outflow_slices", true, false, all_to_all},
      {"key_grads", true, false, send_recv, reduce_scatter},
      {"halo_grads", true, false, send_recv},
      {"grads_to_heads", true, true, all_to_all},
      {"grads_to_tokens", true, true, all_to_all},
  }};
  return table[static_cast<size_t>(kind)];
}

// Of one token or element of one head.
struct PayloadTraits {
  const char* name;
  int rows;                // of head_dim activations
  bool of_heads = false;   // a rank holds 1 / sp of the heads
  int activations = 0;     // beside rows
  int state_elements = 0;  // in the type of the states
};

const PayloadTraits& traits_of(Payload payload) {
  static constexpr std::array<PayloadTraits, kPayloads.size()> table{{
      {"halo", 3},
      {"halo_grad", 3},
      {"key", 1},
      {"value", 1},
      {"key_grad", 1},
      {"value_grad", 1},
      {"log_decay", 0, false, 0, 1},
      {"state", 0, false, 0, 1},
      {"inflow", 0, false, 0, 1},
      {"adjoint", 0, false, 0, 1},
      {"outflow_grad", 0, false, 0, 1},
      {"qkv", 3, true},
      {"dt", 0, true, 1},
      {"y", 1, true},
      {"qkv_grad", 3, true},
      {"dt_grad", 0, true, 1},
      {"y_grad", 1, true},
  }};
  return table[static_cast<size_t>(payload)];
}

}  // namespace

const char* name_of(Payload payload) { return traits_of(payload).name; }

int64_t payload_bytes(const PlanDims& dims, Payload what, const TokenRange& range) {
  const PayloadTraits& of = traits_of(what);
  const int64_t heads = dims.heads / dims.tp / (of.of_heads ? dims.sp : 1);
  return range.size() * dims.batch * heads *
         ((of.rows * dims.head_dim + of.activations) * dims.activation_bytes + of.state_elements * dims.state_bytes);
}

const char* name_of(ExchangeKind kind) { return traits_of(kind).name; }
bool is_backward(ExchangeKind kind) { return traits_of(kind).backward; }
bool is_of_heads(ExchangeKind kind) { return traits_of(kind).of_heads; }

bool is_repeated(const PlanDims& dims, ExchangeKind kind) {
  if (kind == ExchangeKind::keys) return !dims.keep_keys;
  return is_of_heads(kind) && !is_backward(kind) && dims.recompute == Recompute::all;
}

Collective collective_of(ExchangeKind kind, const Transport& transport) {
  return transport.keys == KeyTransport::gather ? traits_of(kind).gathering : traits_of(kind).op;
}

std::string name_of(const Transport& transport) {
  if (transport.head_parallel) return "head_parallel";
  return str(transport.keys == KeyTransport::gather ? "gather" : "group_cast", "+",
             transport.state == StateTransport::sliced ? "sliced" : "all_gather");
}

const std::array<Transport, 5>& all_transports() {
  static constexpr std::array<Transport, 5> all{{
      {.head_parallel = false, .keys = KeyTransport::group_cast, .state = StateTransport::all_gather},
      {.head_parallel = false, .keys = KeyTransport::group_cast, .state = StateTransport::sliced},
      {.head_parallel = false, .keys = KeyTransport::gather, .state = StateTransport::all_gather},
      {.head_parallel = false, .keys = KeyTransport::gather, .state = StateTransport::sliced},
      {.head_parallel = true},
  }};
  return all;
}

Transport transport_named(const std::string& name) { return value_named(all_transports(), name); }

}  // namespace tmamba
