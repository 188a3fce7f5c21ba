// ModelCosts: what one layer and the head of a model compute and keep, as plain numbers. launch/plan/model_costs.h
// measures them with dry runs of the model's own code; the planner scales them to any layout by arithmetic and knows
// nothing else of what a layer is made of.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/base/enum_names.h"

namespace tmamba {

// The kinds of work that a machine has rates for.
enum class WorkKind : uint8_t { linear, head, attention, ssd, converter, elementwise };
inline constexpr auto kWorkKinds = enum_values<WorkKind, static_cast<size_t>(WorkKind::elementwise) + 1>();
const char* name_of(WorkKind kind);

// What costs are linear in: counts of one rank's part of a micro-batch in one layer with TransPoint P.
enum class Term : uint8_t {
  constant,               // 1: weights, and of memory the states of a sequence
  tokens,                 // of the embedding, the last norm and the head
  attention_tokens,       // t < P
  ssm_tokens,             // t >= P
  attention_pairs,        // a query and a key that it sees
  chunk_pairs,            // the same within a chunk of the scan
  head_share,             // head-parallel layers: 1 / sp, the rank's share of the heads
  head_attention_tokens,  // and P / sp, the attention tokens of a share of the heads
};
inline constexpr int kTerms = static_cast<int>(Term::head_attention_tokens) + 1;

struct Counts {
  std::array<double, kTerms> of{};
  double& operator[](Term term) { return of[static_cast<size_t>(term)]; }
  double operator[](Term term) const { return of[static_cast<size_t>(term)]; }
};

struct LinearCost {
  Counts per;
  double at(const Counts& counts) const {
    double sum = 0;
    for (size_t i = 0; i < counts.of.size(); ++i) sum += per.of[i] * counts.of[i];
    return sum;
  }
};

// FLOPs and memory traffic of one kind of work. `bytes` counts every tensor of an op once.
struct WorkCost {
  LinearCost flops, bytes;
};
struct PassCosts {
  WorkCost forward, backward;
  WorkCost recomputed;  // what the level of recomputation adds to backward
};
// By kind of work.
template <class T>
struct ByKind : std::array<T, kWorkKinds.size()> {
  T& operator[](WorkKind kind) { return this->at(static_cast<size_t>(kind)); }
  const T& operator[](WorkKind kind) const { return this->at(static_cast<size_t>(kind)); }
};
using KindCosts = ByKind<PassCosts>;

// Bytes of one rank; those that tensor-parallel ranks divide among them, and those that each holds whole.
struct SplitBytes {
  double divided = 0, whole = 0;
  double on(int tp) const { return divided / tp + whole; }
  SplitBytes& operator+=(const SplitBytes& other) {
    divided += other.divided, whole += other.whole;
    return *this;
  }
};
struct MemoryCost {
  LinearCost divided, whole;
  SplitBytes at(const Counts& counts) const { return {divided.at(counts), whole.at(counts)}; }
};

struct LayerMemory {
  MemoryCost kept;     // by every layer until its backward pass
  MemoryCost shared;   // once for all layers: what backward recomputes of one at a time, and the last norm's
  MemoryCost scratch;  // during the mixer's backward pass, without what exchanges with other ranks take
};

struct LayerCosts {
  KindCosts work;
  LayerMemory by_tokens;  // where each sequence rank mixes its own tokens
  LayerMemory by_heads;   // where it mixes all tokens of a share of the heads (head_parallel)
};

// Scratch of a pass without the mixing of tokens (MLP, head), for a micro-batch of `rows` tokens on a rank.
struct ScratchSample {
  double rows = 0;
  SplitBytes bytes;
};

struct ModelCosts {
  int64_t parameters = 0;              // of the whole model
  int64_t optimizer_bytes = 0;         // of the optimizer state of all parameters
  LayerCosts mixed;                    // a layer with P < T
  LayerCosts attention;                // a layer with P = T
  KindCosts head;                      // embedding, last norm, head and loss, in Term::tokens
  std::vector<ScratchSample> scratch;  // ascending in rows

  // Interpolated between samples; proportional to the rows beyond the last one.
  SplitBytes scratch_at(double rows) const;
  const LayerCosts& layer(int64_t transpoint, int64_t tokens) const { return transpoint < tokens ? mixed : attention; }
};

}  // namespace tmamba
