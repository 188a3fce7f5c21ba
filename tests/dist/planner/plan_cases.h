// Runs that the planner's tests share.
#pragma once

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "dist/planner/plan.h"
#include "kernels/base/rng.h"

namespace tmamba {

inline PlanDims small_dims(int sp, int fold, int64_t tokens, std::vector<int64_t> transpoints) {
  return {.dim = 24,
          .heads = 6,
          .head_dim = 4,
          .ffn = 48,
          .vocab = 96,
          .chunk = 4,
          .tokens = tokens,
          .transpoints = std::move(transpoints),
          .batch = 2,
          .sp = sp,
          .fold = fold};
}

inline std::string describe(const PlanDims& dims, const Transport& transport) {
  std::string text = str(name_of(transport), " sp ", dims.sp, " fold ", dims.fold, " grain ", dims.grain, " tokens ",
                         dims.tokens, " P");
  for (int64_t p : dims.transpoints) text += str(" ", p);
  return text;
}

struct Case {
  PlanDims dims;
  Transport transport;
};

// Random runs with every transport that can carry them.
inline std::vector<Case> random_cases(int count) {
  std::vector<Case> cases;
  for (uint64_t seed = 1; seed <= static_cast<uint64_t>(count); ++seed) {
    const Philox philox(seed, stream_id("plan_test"));
    const auto in = [&](uint64_t at, int64_t low, int64_t high) {
      return low + static_cast<int64_t>(philox.uniform(at) * static_cast<double>(high - low + 1));
    };
    const int sp = static_cast<int>(in(0, 1, 7)), fold = static_cast<int>(in(1, 1, 4));
    const int64_t tokens = 4 * sp * fold * in(2, 1, 3) + (in(3, 0, 1) ? 4 * in(4, 0, 5) + 3 : 0);
    PlanDims dims = small_dims(sp, fold, tokens, {0, tokens, in(5, 0, tokens), in(6, 0, tokens / 3)});
    dims.keep_keys = in(7, 0, 1) == 1;
    if (in(8, 0, 1)) dims.tp = 2;
    dims.recompute = kRecomputeLevels.at(static_cast<size_t>(in(10, 0, 3)));
    // Several consecutive segments per rank, if there are enough chunks.
    dims.grain = static_cast<int>(in(9, 1, 3));
    if (!dims_problem(dims).empty()) dims.grain = 1;
    for (const Transport& transport : all_transports()) {
      if (transport_problem(dims, transport).empty()) cases.push_back({dims, transport});
    }
  }
  return cases;
}

// Schedule V9 of the paper scaled to a sequence length; the model of the balance figures: d 2048, 16 heads of
// 128.
inline PlanDims v9_dims(int64_t tokens, int sp, int fold, int64_t layers = 8) {
  PlanDims dims{
      .dim = 2048, .heads = 16, .head_dim = 128, .ffn = 5632, .vocab = 32768, .tokens = tokens, .sp = sp, .fold = fold};
  constexpr std::array<int64_t, 8> v9{0, 128, 256, 512, 1024, 2048, 4096, 8192};
  for (int64_t l = 0; l < layers; ++l) dims.transpoints.push_back(v9[static_cast<size_t>(l % 8)] * tokens / 8192);
  return dims;
}

}  // namespace tmamba
