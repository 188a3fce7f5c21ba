// The planner's cost model: FLOPs, seconds and bytes of a training step for any tp x sp x dp x fold and transport, from
// what the model costs (model_costs.h) and a machine described by a few measured rates. Pure functions; nothing is run.
//
// One step = micro_batches x (forward + backward) + gradient reduction + optimizer. The exchanges of a layer couple its
// sequence ranks, so a layer takes as long as its slowest rank: seconds = sum over layers of max over ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dist/planner/cost_work.h"
#include "dist/planner/model_costs.h"
#include "dist/planner/plan.h"

namespace tmamba {

// --- Machine

// Fractions of a peak.
struct Rate {
  double forward = 1;
  double backward = 1;
};

struct Link {
  double bandwidth = 0;  // bytes per second that one rank receives
  double latency = 0;    // seconds of an exchange without bytes
};

struct MachineModel {
  std::string name;
  double peak_flops = 0;        // of one rank, in the activation type
  double memory_bandwidth = 0;  // bytes per second, measured copy
  double memory_bytes = 0;
  // A kind of work takes as long as the slower of its arithmetic and its memory traffic.
  ByKind<Rate> compute = {};       // fractions of peak_flops
  ByKind<Rate> streaming = {};     // fractions of memory_bandwidth
  double launch_seconds = 0;       // of each kernel range of a segment
  Link inside = {}, between = {};  // links within a node and between nodes
  int ranks_per_node = 8;
  double overlap = 0;  // fraction of a layer's mixing (for gradients: of the backward pass) that hides messages
};

// One H200 per rank, bfloat16. Rates of compute: this program's own, from the tables of kernels/cuda/PERFORMANCE.md
// (commit 61bf423, T = 8192, heads 96 wide); links within a node as measured with NCCL. Assumed, not measured: 5 us per
// kernel range, 50 GB/s between nodes, overlap 0.8.
MachineModel h200_machine(int64_t head_dim);
// One core of a CPU per rank: rates of compute and memory from `bench ops --save-machine` on one core of an AMD EPYC
// with AVX-512, heads 32 and 64 wide, 1024 to 4096 tokens. Links are orders of magnitude. Refit it on the machine at
// hand.
MachineModel cpu_machine();
// As JSON, to be refitted by hand or by a benchmark. Reading throws UserError naming what is missing or out of range.
std::string machine_to_json(const MachineModel& machine);
MachineModel machine_from_json(const std::string& text);

// --- Counts

// Forward FLOPs of the GEMMs of one layer for one sequence, as the model's dry run counts them.
struct LayerFlops {
  double linear = 0;  // projections of the mixer, MLP
  double attention = 0;
  double ssd = 0;
  double converter = 0;
  double total() const { return linear + attention + ssd + converter; }
};
LayerFlops layer_flops(const ModelCosts& costs, const PlanDims& dims, int64_t transpoint);
double head_flops(const ModelCosts& costs, const PlanDims& dims);
// All layers and the head, one sequence, forward.
double model_flops(const ModelCosts& costs, const PlanDims& dims);

// The paper's cost of sequence mixing (table 2 and eq. 10), with N = d: P^2 N + (T - P) N^2.
double paper_flops(double tokens, double transpoint, double width);
struct PaperCosts {
  double transformer = 0, mamba = 0, optimum = 0;  // P = T, P = 0, P = best_transpoint
  double best_transpoint = 0;                      // N / 2, at most T
};
PaperCosts paper_costs(double tokens, double width);

// Forward and backward seconds of one rank's part of a layer, one micro-batch. Recomputation counts as backward.
struct Seconds {
  double forward = 0;
  double backward = 0;
  double total() const { return forward + backward; }
  Seconds operator+(const Seconds& other) const { return {forward + other.forward, backward + other.backward}; }
  Seconds operator/(double by) const { return {forward / by, backward / by}; }
};
struct KindSeconds : ByKind<Seconds> {
  Seconds sum() const;
  Seconds mixing() const;  // attention, SSD and converter
};
KindSeconds layer_seconds(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine,
                          const RankWork& work, int64_t transpoint);
// The same for embedding, head and loss over `tokens` tokens of each sequence.
KindSeconds head_seconds(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine, int64_t tokens);

// Mean load of a layout / sum over layers of the largest load of a rank. Loads are forward and backward seconds of the
// layers; 1 is perfect.
double balance_efficiency(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine);

// Seconds of `steps` exchanges among `size` ranks that stand `stride` apart.
double exchange_seconds(const MachineModel& machine, int64_t size, int64_t stride, int steps, double bytes);
// Seconds of a reduce-scatter or all-gather of `bytes`, first within nodes, then between them.
double sharding_seconds(const MachineModel& machine, int64_t size, int64_t stride, int64_t buckets, double bytes);

// --- Prediction

// Seconds of one optimizer step. Work is the mean over sequence ranks; waiting is what the slowest ranks add.
struct StepTime {
  double linear = 0, head = 0, attention = 0, ssm = 0, elementwise = 0, launches = 0;
  double waiting = 0;
  double tp = 0, sp = 0, dp = 0;  // exposed communication
  double optimizer = 0;
  double total() const {
    return linear + head + attention + ssm + elementwise + launches + waiting + tp + sp + dp + optimizer;
  }
};

// Bytes on the rank that needs most.
struct MemoryUse {
  double parameters = 0, gradients = 0, optimizer = 0;
  double activations = 0;  // saved for backward, and room for what it recomputes of one layer
  double scratch = 0;      // temporaries of a pass, exchanges included
  double total() const { return parameters + gradients + optimizer + activations + scratch; }
};

struct Prediction {
  StepTime time;
  MemoryUse memory;
  double sp_bytes = 0;           // received by a rank in the sequence exchanges of one micro-batch, at most
  double balance = 1;            // balance_efficiency
  double mfu = 0;                // 3 x model_flops() / (seconds x ranks x peak)
  double tokens_per_second = 0;  // of the whole run
  bool fits = false;             // in the machine's memory, less 5 %
};

struct LayoutChoice {
  int tp = 1, sp = 1, dp = 1, fold = 1;
  Transport transport;
  int split_layers = 0;  // layers whose TransPoint falls inside a segment
  Prediction prediction = {};
};

// Predictions for a model on a machine, with the tp, sp, dp and fold of `dims`. `transports`: one for all layers, or
// one for each. Throws UserError where such a run cannot exist.
Prediction predict(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine,
                   const std::vector<Transport>& transports);
// For each layer the fastest transport; among those whose messages are all hidden, the one with the fewest bytes.
std::vector<Transport> choose_transports(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine);
// The fold to split the sequence with, among 1, 2, 4, .. max_fold, each with its best transports and grain 1: of those
// within 1 % of the fastest the one that splits fewest segments, then the smallest. Throws UserError if none is
// possible.
int choose_fold(const ModelCosts& costs, PlanDims dims, const MachineModel& machine, int max_fold = 16);
// Every tp x sp x dp of exactly `ranks` ranks, fold 1, 2, 4, .. max_fold and transport that can run, with grain 1:
// those that fit in memory first, then by predicted step time. Where dims.batch is 0, a micro-batch has all sequences
// of a data-parallel rank. Empty if no layout can run.
std::vector<LayoutChoice> rank_layouts(const ModelCosts& costs, PlanDims dims, const MachineModel& machine,
                                       int64_t ranks, int max_fold = 16);

}  // namespace tmamba
