// The names of everything in a plan, as its JSON, the configuration and the tables print them.
#include "dist/planner/plan.h"

namespace tmamba {

const char* name_of(Payload payload) {
  constexpr std::array<const char*, kPayloads> names{
      "halo",    "halo_grad",    "key", "value", "key_grad", "value_grad", "log_decay", "state", "inflow",
      "adjoint", "outflow_grad", "qkv", "dt",    "y",        "qkv_grad",   "dt_grad",   "y_grad"};
  return names[static_cast<size_t>(payload)];
}

const char* name_of(ExchangeKind kind) {
  constexpr std::array<const char*, kExchangeKinds> names{
      "halo",           "keys",      "summaries",  "decays",         "state_slices",
      "inflow_slices",  "to_heads",  "to_tokens",  "adjoints",       "adjoint_slices",
      "outflow_slices", "key_grads", "halo_grads", "grads_to_heads", "grads_to_tokens"};
  return names[static_cast<size_t>(kind)];
}

Collective collective_of(ExchangeKind kind, const Transport& transport) {
  const bool gather = transport.keys == KeyTransport::gather;
  switch (kind) {
    case ExchangeKind::halo:
    case ExchangeKind::halo_grads:
      return Collective::send_recv;
    case ExchangeKind::keys:
      return gather ? Collective::all_gather : Collective::send_recv;
    case ExchangeKind::key_grads:
      return gather ? Collective::reduce_scatter : Collective::send_recv;
    case ExchangeKind::summaries:
    case ExchangeKind::decays:
    case ExchangeKind::adjoints:
      return Collective::all_gather;
    default:
      return Collective::all_to_all;
  }
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

Transport transport_named(const std::string& name) {
  std::string known;
  for (const Transport& transport : all_transports()) {
    if (name_of(transport) == name) return transport;
    known += (known.empty() ? "" : ", ") + name_of(transport);
  }
  throw UserError(str("\"", name, "\" is not a transport: one of ", known));
}

}  // namespace tmamba
