// Ops in the canonical mode (run.canonical): what a training run computes is the same to the last bit however its
// tokens are spread over ranks, segments and micro-batches. A test mode: on the CPU, in float64, without tensor
// parallelism.
//
// Two things make bits depend on the spread, and the canonical ops take both away.
// - Shapes. BLAS and vector loops group the terms of a sum by the size of the call. So an op on rows is called for one
//   unit of tokens at a time, an op on sequences for one sequence at a time: the same tokens meet the same shapes.
//   (Calls of the mixer are along segments, and the layout makes every unit a segment: LayoutSpec::grain.)
// - Order. (a + b) + c is not a + (b + c) in floating point, and which rank holds a token decides the order of a sum
//   over tokens. So whatever one call adds to such a sum is computed alone from zero and rounded to a multiple of a
//   step g = 2^-e before it is added. A double holds every multiple of g up to 2^53 g, so sums of them that stay below
//   that have no rounding error at all, and a sum without error is the same in any order: over units, segments,
//   micro-batches and ranks, by the plain additions of the communicators.
//
// The price: a rounding error of g / 2 at most per addition, and a range. Gradients of parameters have e = 46 (7e-15,
// sums to 128), of keys and values e = 50 (4e-16, to 8), the loss sum e = 24 (3e-8, to 5e8 nats) and the squares of the
// gradient norm, row by row, e = 36 (7e-12, to 1.3e5). A sum that leaves its range throws Error, numbers that are not
// finite pass. And it is slow: many small calls, and for every unit a pass over the gradient of each matrix.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/ops/ops.h"

namespace tmamba {

struct CanonicalOptions {
  // Tokens of a unit. Rows are whole units, one sequence after the other.
  int64_t unit = 1;
  // How many of the sums made here are added up outside, by ranks: each must stay within 1 / summands of the range.
  int64_t summands = 1;
};

// `inner` computes on the CPU; tensors are float64.
std::unique_ptr<Ops> make_canonical_ops(std::unique_ptr<Ops> inner, const CanonicalOptions& options);

}  // namespace tmamba
