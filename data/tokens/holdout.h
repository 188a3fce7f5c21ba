// Which documents or blocks are held out: a pure function of (seed, share, index).
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/base/rng.h"

namespace tmamba {

class HoldOut {
 public:
  HoldOut(double share, uint64_t seed) : share_(share), random_(seed, stream_id("data/held out")) {}

  // One index of each stratum of 1 / share consecutive indices.
  bool holds_out(int64_t index) const {
    if (share_ <= 0) return false;
    const auto stratum = static_cast<int64_t>(std::floor(static_cast<double>(index) * share_));
    return drawn(stratum) == index || (stratum > 0 && drawn(stratum - 1) == index) || drawn(stratum + 1) == index;
  }

 private:
  int64_t drawn(int64_t stratum) const {
    const double place = static_cast<double>(stratum) + random_.uniform(static_cast<uint64_t>(stratum));
    return static_cast<int64_t>(std::floor(place / share_));
  }

  double share_;
  Philox random_;
};

}  // namespace tmamba
