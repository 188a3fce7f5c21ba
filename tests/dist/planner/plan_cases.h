// Runs that the planner's tests share.
#pragma once

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "dist/planner/plan.h"

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
