#include "dist/planner/model_costs.h"

#include <algorithm>

namespace tmamba {

const char* name_of(WorkKind kind) {
  constexpr std::array<const char*, kWorkKinds.size()> names{"linear", "head",      "attention",
                                                             "ssd",    "converter", "elementwise"};
  return names[static_cast<size_t>(kind)];
}

SplitBytes ModelCosts::scratch_at(double rows) const {
  const auto next =
      std::find_if(scratch.begin(), scratch.end(), [&](const ScratchSample& s) { return s.rows >= rows; });
  const bool between = next != scratch.begin() && next != scratch.end();
  const ScratchSample& high = next == scratch.end() ? scratch.back() : *next;
  const ScratchSample low = between ? *(next - 1) : ScratchSample{};
  const double at = (rows - low.rows) / (high.rows - low.rows);
  return {low.bytes.divided + at * (high.bytes.divided - low.bytes.divided),
          low.bytes.whole + at * (high.bytes.whole - low.bytes.whole)};
}

}  // namespace tmamba
