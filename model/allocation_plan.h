// Assigns memory to the activations of a layer. A saved activation is written by forward and read by backward: every
// layer has its own memory for it. An activation that backward recomputes is needed by one layer at a time: all layers
// share its memory. A layer lists its tensors once, each with the first level of recomputation
// (dist/planner/recompute.h) that does not save it, and is given memory in two passes: the saved tensors of every
// layer, then the shared ones.
#pragma once

#include <initializer_list>

#include "dist/planner/recompute.h"
#include "kernels/base/buffer.h"

namespace tmamba {

class AllocationPlan {
 public:
  static AllocationPlan saved(Recompute level, Arena& arena) { return {level, arena, false}; }
  static AllocationPlan shared(Recompute level, Arena& arena) { return {level, arena, true}; }

  // Saved at the levels before `first`; from there on it is recomputed. Recompute::none: never saved.
  void save_before(Recompute first, Tensor& x, std::initializer_list<int64_t> sizes, DType dtype) const {
    take(x, recomputes(level_, first), sizes, dtype);
  }
  // Saved at every level.
  void save(Tensor& x, std::initializer_list<int64_t> sizes, DType dtype) const { take(x, false, sizes, dtype); }

  // The second pass, at the end of which every tensor has its memory.
  bool is_shared_pass() const { return is_shared_pass_; }

  // Shared tensors that follow may have the memory of those since `mark`.
  size_t mark() const { return arena_.used(); }
  void reuse_from(size_t mark) const {
    if (is_shared_pass_) arena_.rewind(mark);
  }

 private:
  AllocationPlan(Recompute level, Arena& arena, bool is_shared_pass)
      : level_(level), arena_(arena), is_shared_pass_(is_shared_pass) {}

  void take(Tensor& x, bool shared, std::initializer_list<int64_t> sizes, DType dtype) const {
    if (shared == is_shared_pass_) x = arena_.take(sizes, dtype);
  }

  Recompute level_;
  Arena& arena_;
  bool is_shared_pass_;
};

}  // namespace tmamba
