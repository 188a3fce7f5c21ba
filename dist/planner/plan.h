// Plan: every message that the sequence-parallel ranks exchange in one forward and backward pass of the mixers, decided
// before the run from the layout alone. A pure function of its inputs: every rank computes the same plan, and
// check_plan() proves it free of deadlock and complete (dist/planner/plan_check.cpp).
//
// Exchanges of a layer, forward (only what a rank needs is in the plan)
//   halo            send_recv   the last W-1 pre-conv rows of a segment, to the owner of the next
//   keys            send_recv   K and V inside [0, P), to ranks that own later queries              group_cast
//                   all_gather  all K and V inside [0, P), to all                                   gather
//   summaries       all_gather  log-decay and state of each segment that feeds a later one          all_gather
//   decays          all_gather  the log-decays alone                                                sliced
//   state_slices    all_to_all  rank j gets its slice of every segment's state, and scans it        sliced
//   inflow_slices   all_to_all  the scanned slices go back to the owners                            sliced
// or, head_parallel, instead of all of them
//   to_heads        all_to_all  each rank gets all tokens of its 1/R of the heads
//   to_tokens       all_to_all  the outputs go back
// and backward, in this order
//   keys            again, unless they were kept
//   adjoints / adjoint_slices + outflow_slices   gradients of the states, against the sequence
//   key_grads       send_recv or reduce_scatter   dK and dV back to the owner
//   halo_grads      send_recv   gradient of the halo rows, back to where they came from
// head_parallel: to_heads and to_tokens again at Recompute::all; grads_to_heads, grads_to_tokens.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/planner/options.h"
#include "dist/sequence/layout.h"
#include "dist/sequence/transport.h"
#include "dist/zero/zero_sharding.h"
#include "kernels/base/enum_names.h"

namespace tmamba {

// The sizes of a model and of its parallel run. They identify the run that a plan is for (dims_difference) and
// determine who sends how many bytes to whom; what a layer computes and keeps is in ModelCosts.
struct PlanDims : ParallelOptions, ActivationOptions {
  int64_t dim = 0;         // d
  int64_t heads = 0;       // H
  int64_t head_dim = 0;    // D = key width = value width
  int64_t ffn = 0;         // F
  int64_t vocab = 0;       // V
  int64_t conv_width = 4;  // W
  int64_t chunk = 64;      // Q
  bool tied_head = false;
  bool z_gate = true;
  int64_t tokens = 0;                     // T
  std::vector<int64_t> transpoints = {};  // P of each layer
  int64_t batch = 1;                      // sequences of a micro-batch
  int64_t global_batch = 0;               // sequences of a step; 0: one micro-batch per data-parallel rank
  int64_t activation_bytes = 2;
  int64_t state_bytes = 4;  // of states, log-decays, gradient sums and optimizer state
  int tp = 1, sp = 1, dp = 1;
  int fold = 1;
  int grain = 1;           // consecutive segments of a rank (LayoutSpec)
  bool keep_keys = false;  // keep the gathered K and V for backward instead of exchanging them again

  int64_t layers() const { return static_cast<int64_t>(transpoints.size()); }
  int64_t inner() const { return heads * head_dim; }
  int64_t ranks() const { return int64_t{tp} * sp * dp; }
  int64_t micro_batches() const { return global_batch == 0 ? 1 : global_batch / (batch * dp); }
  LayoutSpec layout() const;
  ZeroSharding sharding() const { return {zero, int64_t{sp} * dp}; }
  bool operator==(const PlanDims&) const = default;
};

// Calls visit(name in the JSON, key that sets it, field) for every field of PlanDims.
template <class Dims, class Visit>
void for_each_field(Dims& dims, Visit&& visit) {
  visit("dim", "model.dim", dims.dim), visit("heads", "model.heads", dims.heads);
  visit("head_dim", "model.dim / model.heads", dims.head_dim), visit("ffn", "model.ffn", dims.ffn);
  visit("vocab", "model.vocab", dims.vocab), visit("conv_width", "model.conv", dims.conv_width);
  visit("chunk", "model.chunk", dims.chunk), visit("tied_head", "model.tied_head", dims.tied_head);
  visit("z_gate", "model.z_gate", dims.z_gate), visit("tokens", "data.seq_len", dims.tokens);
  visit("transpoints", "model.schedule", dims.transpoints), visit("batch", "train.micro_batch", dims.batch);
  visit("global_batch", "train.global_batch", dims.global_batch);
  visit("activation_bytes", "bytes of train.dtype", dims.activation_bytes);
  visit("state_bytes", "bytes of a sum in train.dtype", dims.state_bytes);
  visit("tp", "parallel.tp", dims.tp), visit("sp", "parallel.sp", dims.sp), visit("dp", "parallel.dp", dims.dp);
  visit("fold", "parallel.fold", dims.fold), visit("grain", "run.canonical", dims.grain);
  for_each_option(dims, visit);
  visit("keep_keys", "keep_keys", dims.keep_keys);
}

// Why such a run is not possible, and which number to change; empty if it is possible.
std::string dims_problem(const PlanDims& dims);
// Why a transport is not possible; empty if it is.
std::string transport_problem(const PlanDims& dims, const Transport& transport);

// What a message holds. A range is one of tokens, of elements of the D x D state of each head, or {0, 1} for a
// log-decay.
enum class Payload : uint8_t {
  halo,
  halo_grad,
  key,
  value,
  key_grad,
  value_grad,
  log_decay,
  state,
  inflow,
  adjoint,
  outflow_grad,
  qkv,
  dt,
  y,
  qkv_grad,
  dt_grad,
  y_grad,
};
inline constexpr auto kPayloads = enum_values<Payload, static_cast<size_t>(Payload::y_grad) + 1>();
const char* name_of(Payload payload);

// Bytes of a message for the whole micro-batch, on one tensor-parallel rank.
int64_t payload_bytes(const PlanDims& dims, Payload what, const TokenRange& range);

// The elements of every D x D state that a rank scans in the sliced transport.
TokenRange state_slice(const PlanDims& dims, int rank);

enum class ExchangeKind : uint8_t {
  halo,
  keys,
  summaries,
  decays,
  state_slices,
  inflow_slices,
  to_heads,
  to_tokens,
  adjoints,
  adjoint_slices,
  outflow_slices,
  key_grads,
  halo_grads,
  grads_to_heads,
  grads_to_tokens,
};
inline constexpr auto kExchangeKinds =
    enum_values<ExchangeKind, static_cast<size_t>(ExchangeKind::grads_to_tokens) + 1>();
const char* name_of(ExchangeKind kind);
// Whether only the backward pass has it.
bool is_backward(ExchangeKind kind);
// Whether only head-parallel layers have it, which have no others.
bool is_of_heads(ExchangeKind kind);
// Whether backward repeats an exchange of the forward pass: of keys that were not kept, and of what head-parallel
// layers recompute.
bool is_repeated(const PlanDims& dims, ExchangeKind kind);
// Whether a pass can have such an exchange.
inline bool is_made(const PlanDims& dims, ExchangeKind kind, bool backward) {
  return backward == is_backward(kind) || (backward && is_repeated(dims, kind));
}

// The collective that carries an exchange.
Collective collective_of(ExchangeKind kind, const Transport& transport);

struct Exchange {
  int layer = 0;
  bool backward = false;
  ExchangeKind kind = ExchangeKind::halo;
  Collective op = Collective::send_recv;
  bool operator==(const Exchange&) const = default;
};

// One message as one rank sees it: sent to, or received from, `peer`. Peers are ranks of the sequence axis.
struct PlanMessage {
  Payload what = Payload::halo;
  int peer = 0;
  int segment = 0;  // whose rows, keys or state; for halo rows the segment that starts with them
  TokenRange range;
  int64_t bytes = 0;
  bool operator==(const PlanMessage&) const = default;
};

// The order of the messages of a step: by peer, segment, payload, range.
bool message_before(const PlanMessage& a, const PlanMessage& b);

// A rank's part in one exchange. All its messages are in flight together; between two ranks they match in order. Both
// lists are sorted by message_before. A rank without messages has the step too.
struct PlanStep {
  int exchange = 0;
  std::vector<PlanMessage> sends = {};
  std::vector<PlanMessage> receives = {};
  bool operator==(const PlanStep&) const = default;
};

struct Plan {
  PlanDims dims;
  std::vector<Transport> transports;  // of each layer
  std::vector<Exchange> exchanges;    // in the order all ranks issue them: forward by layer, backward by layer
  std::vector<std::vector<PlanStep>> programs;  // of each sequence rank
  bool operator==(const Plan&) const = default;
};

// The plan for one transport for all layers, or one for each. Throws UserError with dims_problem() or
// transport_problem().
Plan make_plan(const PlanDims& dims, const Transport& transport);
Plan make_plan(const PlanDims& dims, const std::vector<Transport>& transports);

// The problems of a plan; empty if it is correct: every send has its receive, at the same place between the same two
// ranks; all ranks issue the same exchanges in one order; each rank receives exactly once every key, value, halo row,
// state and gradient that its segments need (for gather and all-gather: that the collective carries) and nothing else.
std::vector<std::string> check_plan(const Plan& plan);

// Bytes that `rank` receives in exchange `exchange`.
int64_t bytes_received(const Plan& plan, int exchange, int rank);

// JSON, one line per step; the same plan gives the same text. Reading throws UserError saying what is wrong.
std::string plan_to_json(const Plan& plan);
Plan plan_from_json(const std::string& text);
// The first field in which the dimensions of a plan differ from those of a run, with both values and the key that sets
// it; empty if there is none.
std::string dims_difference(const PlanDims& plan, const PlanDims& run);
// A hash of the plan, 16 hexadecimal digits.
std::string plan_hash(const Plan& plan);

}  // namespace tmamba
