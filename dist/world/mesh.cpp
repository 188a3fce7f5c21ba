#include "dist/world/mesh.h"

namespace tmamba {

namespace {
void require_size(const MeshShape& shape, int ranks) {
  if (shape.size() != ranks) {
    throw UserError(str("parallel: tp * sp * dp = ", shape.tp, " * ", shape.sp, " * ", shape.dp, " = ", shape.size(),
                        ", but the job has ", ranks, " ranks"));
  }
}
}  // namespace

MeshShape mesh_shape(int64_t tp, int64_t sp, int64_t dp, int ranks) {
  if (tp < 1 || sp < 1 || dp < 0) {
    throw UserError(str("parallel: tp = ", tp, ", sp = ", sp, ", dp = ", dp,
                        ": tp and sp must be at least 1; dp must be at least 1, or 0 for all remaining ranks"));
  }
  // In this order of comparisons no product can overflow.
  const bool fits = tp <= ranks && sp <= ranks && ranks % (tp * sp) == 0 && (dp == 0 || dp == ranks / (tp * sp));
  if (fits) return {static_cast<int>(tp), static_cast<int>(sp), static_cast<int>(ranks / (tp * sp))};
  if (tp <= ranks && sp <= ranks && ranks % (tp * sp) == 0) {
    throw UserError(str("parallel: tp * sp * dp = ", tp, " * ", sp, " * ", dp, ", but the job has ", ranks,
                        " ranks; set parallel.dp = ", ranks / (tp * sp), ", or 0 for all remaining ranks"));
  }
  throw UserError(str("parallel: ", ranks, " ranks is not divisible by tp * sp = ", tp, " * ", sp,
                      "; start a multiple of it, or change parallel.tp or parallel.sp"));
}

Mesh::Mesh(Communicator& world, const MeshShape& shape) : shape_(shape) {
  require_size(shape, world.size());
  coordinates_ = shape.coordinates(world.rank());
  const auto [tp, sp, dp] = coordinates_;
  tp_ = world.split(shape.zero_rank(coordinates_), tp, "tp");
  sp_ = world.split(dp * shape.tp + tp, sp, "sp");
  dp_ = world.split(sp * shape.tp + tp, dp, "dp");
  zero_ = world.split(tp, shape.zero_rank(coordinates_), "zero");
}

}  // namespace tmamba
