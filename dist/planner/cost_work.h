// How much each sequence rank computes and receives in a layer with TransPoint P, in tokens, pairs and segments.
// Computed from the segments of a cut in O(segments) per layer, without listing tokens or messages, so that thousands
// of layouts can be compared (cost.h). plan_test and cost_test compare them with both.
#pragma once

#include <cstdint>
#include <vector>

#include "dist/planner/model_costs.h"
#include "dist/planner/plan.h"
#include "dist/sequence/layout.h"

namespace tmamba {

// The work of a rank on one sequence; a micro-batch has `batch` sequences.
struct RankWork {
  int64_t tokens = 0;
  int64_t attention_tokens = 0;  // t < P
  int64_t attention_pairs = 0;   // query t sees t + 1 keys
  int64_t ssm_tokens = 0;        // t >= P
  int64_t chunk_pairs = 0;       // within the chunks of the scan, causal
  int64_t kernel_ranges = 0;     // attention, scan and converter ranges that are launched apart
  bool operator==(const RankWork&) const = default;
};

// What a rank receives from others under each transport.
struct RankTraffic {
  int64_t halo_rows = 0, halo_grad_rows = 0;
  int64_t key_tokens_cast = 0, key_tokens_gather = 0;            // K, and as many of V
  int64_t key_grad_tokens_cast = 0, key_grad_tokens_gather = 0;  // dK, and as many of dV
  int64_t feeding_own = 0, feeding_others = 0;                   // segments whose summary some later segment needs
  int64_t inflow_own = 0;                                        // segments that need the state before them
  int64_t adjoints_own = 0, adjoints_others = 0;                 // segments that deliver a gradient to it
  int64_t tokens_own = 0, tokens_others = 0;
  int64_t dt_tokens_own = 0, dt_tokens_others = 0;  // the same where there is a scan
};

// Work and traffic of every rank of the sequence split, in a layer with this TransPoint.
std::vector<RankWork> rank_work(const LayoutSpec& spec, int64_t transpoint);
std::vector<RankTraffic> rank_traffic(const LayoutSpec& spec, int64_t transpoint);

// What the costs of a layer are multiplied with (model_costs.h), of one sequence.
Counts counts_of(const RankWork& work, int ranks, int64_t transpoint);

// Bytes that rank `rank` receives in an exchange of this kind; 0 where the transport has no such exchange.
int64_t exchange_bytes(const PlanDims& dims, const Transport& transport, ExchangeKind kind, bool backward,
                       const RankTraffic& traffic, int rank);

// Bytes of a layer that exist because a sequence has several segments, whole micro-batch.
struct ExchangeMemory {
  double kept = 0;     // halo rows, log-decays, the state before each segment
  double scratch = 0;  // what the exchanges of a backward pass gather, stage and send (dist/sequence/exchange_*.cpp)
};
// 0 for head-parallel layers, whose buffers are the model's own.
ExchangeMemory exchange_memory(const PlanDims& dims, const Transport& transport, const RankWork& work,
                               const RankTraffic& traffic, int64_t transpoint);

}  // namespace tmamba
