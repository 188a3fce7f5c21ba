// Where the activations of a layer live. What backward finds as forward left it is kept: every layer has its own. What
// backward computes again is needed by one layer at a time: all layers share one place. A layer lists its tensors once,
// each with the first level of recomputation (dist/planner/recompute.h) that does not keep it, and is placed twice:
// first the kept ones of every layer, then the shared ones.
#pragma once

#include <initializer_list>

#include "dist/planner/recompute.h"
#include "kernels/base/buffer.h"

namespace tmamba {

class AllocationPlan {
 public:
  static AllocationPlan kept(Recompute level, Arena& arena) { return {level, arena, false}; }
  static AllocationPlan shared(Recompute level, Arena& arena) { return {level, arena, true}; }

  // Kept at levels below `again`, where it is computed again (Recompute::none: needed in passing alone).
  void keep_below(Recompute again, Tensor& x, std::initializer_list<int64_t> sizes, DType dtype) const {
    take(x, level_ >= again, sizes, dtype);
  }
  // Kept at every level.
  void keep(Tensor& x, std::initializer_list<int64_t> sizes, DType dtype) const { take(x, false, sizes, dtype); }

  // The shared pass, behind which every tensor has its memory.
  bool last() const { return sharing_; }

  // Shared tensors placed from here on may have the memory of those placed since `mark`.
  size_t mark() const { return arena_.used(); }
  void reuse_from(size_t mark) const {
    if (sharing_) arena_.rewind(mark);
  }

 private:
  AllocationPlan(Recompute level, Arena& arena, bool sharing) : level_(level), arena_(arena), sharing_(sharing) {}

  void take(Tensor& x, bool shared, std::initializer_list<int64_t> sizes, DType dtype) const {
    if (shared == sharing_) x = arena_.take(sizes, dtype);
  }

  Recompute level_;
  Arena& arena_;
  bool sharing_;
};

}  // namespace tmamba
