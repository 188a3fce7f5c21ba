// Selects the held-out documents or blocks: a pure function of (seed, fraction, index).
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/base/rng.h"

namespace tmamba {

class HoldOut {
 public:
  // `fraction` is in [0, 1).
  HoldOut(double fraction, uint64_t seed) : fraction_(fraction), random_(seed, stream_id("data/held out")) {}

  // Stratified: true for one random index in each stratum of 1 / fraction consecutive indices.
  bool holds_out(int64_t index) const {
    if (fraction_ <= 0) return false;
    const auto stratum = static_cast<int64_t>(std::floor(static_cast<double>(index) * fraction_));
    return drawn(stratum) == index || (stratum > 0 && drawn(stratum - 1) == index) || drawn(stratum + 1) == index;
  }

 private:
  int64_t drawn(int64_t stratum) const {
    const double position = static_cast<double>(stratum) + random_.uniform(static_cast<uint64_t>(stratum));
    return static_cast<int64_t>(std::floor(position / fraction_));
  }

  double fraction_;
  Philox random_;
};

}  // namespace tmamba
