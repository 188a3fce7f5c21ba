// class Mesh: the ranks of the job as a tp x sp x dp grid, with a communicator along each axis.
//
// rank = (dp * SP + sp) * TP + tp. tp is innermost and dp outermost, so that the ranks that communicate most share a
// host.
//   tp    ranks with the same sp and dp: shards of a layer (tensor parallelism; it includes what Megatron calls
//   sequence
//         parallelism)
//   sp    ranks with the same tp and dp: segments of a sequence (what Megatron calls context parallelism, CP)
//   dp    ranks with the same tp and sp: different sequences (data parallelism)
//   zero  ranks with the same tp, ordered by dp, then sp: gradients are summed over them, and ZeRO shards the optimizer
//         state among them
#pragma once

#include <cstdint>
#include <memory>

#include "dist/comm/communicator.h"

namespace tmamba {

struct MeshCoordinates {
  int tp = 0, sp = 0, dp = 0;
  friend constexpr bool operator==(const MeshCoordinates&, const MeshCoordinates&) = default;
};

struct MeshShape {
  int tp = 1, sp = 1, dp = 1;

  constexpr int size() const { return tp * sp * dp; }
  constexpr int zero() const { return sp * dp; }
  constexpr MeshCoordinates coordinates(int rank) const { return {rank % tp, rank / tp % sp, rank / (tp * sp)}; }
  constexpr int rank_of(const MeshCoordinates& at) const { return (at.dp * sp + at.sp) * tp + at.tp; }
  // Index among the ranks with the same tp.
  constexpr int zero_rank(const MeshCoordinates& at) const { return at.dp * sp + at.sp; }
};

// The mesh of a job of `ranks` ranks; dp = 0 means ranks / (tp * sp). Throws UserError with a number that would fit
// unless tp * sp * dp = ranks.
MeshShape mesh_shape(int64_t tp, int64_t sp, int64_t dp, int ranks);

class Mesh {
 public:
  // Collective over `world`; throws UserError unless it has shape.size() ranks. The communicators are of the same kind
  // as `world` (host or device tensors).
  Mesh(Communicator& world, const MeshShape& shape);

  const MeshShape& shape() const { return shape_; }
  // The coordinates of this rank.
  const MeshCoordinates& coordinates() const { return coordinates_; }

  Communicator& tp() { return *tp_; }
  Communicator& sp() { return *sp_; }
  Communicator& dp() { return *dp_; }
  Communicator& zero() { return *zero_; }

 private:
  MeshShape shape_;
  MeshCoordinates coordinates_;
  std::unique_ptr<Communicator> tp_, sp_, dp_, zero_;
};

static_assert(MeshShape{2, 3, 4}.coordinates(0) == MeshCoordinates{0, 0, 0});
static_assert(MeshShape{2, 3, 4}.coordinates(1) == MeshCoordinates{1, 0, 0});
static_assert(MeshShape{2, 3, 4}.coordinates(2) == MeshCoordinates{0, 1, 0});
static_assert(MeshShape{2, 3, 4}.coordinates(6) == MeshCoordinates{0, 0, 1});
static_assert(MeshShape{2, 3, 4}.coordinates(23) == MeshCoordinates{1, 2, 3});
static_assert(MeshShape{2, 3, 4}.rank_of({1, 2, 3}) == 23 && MeshShape{2, 3, 4}.zero_rank({1, 2, 3}) == 11);

}  // namespace tmamba
