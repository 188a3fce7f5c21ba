// class CpuOps: every op on the host, in float32 and float64. It is the specification that other backends are tested
// against. One file per group of ops; GEMMs go through gemm.h, loops over threads through parallel.h.
#pragma once

#include <vector>

#include "kernels/ops/ops.h"

namespace tmamba {

// cos and sin of position * theta^(-2i/D) for any position, by the angle sums of two short tables:
// position = kFine * coarse + fine. Float64, so that the result does not depend on how far a table reaches.
class RopeTable {
 public:
  static constexpr int64_t kFine = 256;
  // Prepares positions 0 .. positions - 1 for `pairs` = D/2 frequencies.
  void prepare(int64_t positions, int64_t pairs, double theta);
  // cos_sin: `pairs` cosines, then `pairs` sines.
  template <class T>
  void angles(T* cos_sin, int64_t position) const;

 private:
  double theta_ = 0;
  int64_t pairs_ = 0;
  std::vector<double> frequency_;
  std::vector<double> fine_, coarse_;  // [position][cosines, sines]
};

class CpuOps final : public Ops {
 public:
  CpuOps();
  Device device() const override { return Device::cpu; }
  void synchronize() override {}

  TMAMBA_FOR_EACH_OP(TMAMBA_OVERRIDE_OP)

 private:
  RopeTable rope_table_;
};

}  // namespace tmamba
