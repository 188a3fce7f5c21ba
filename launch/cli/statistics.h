// Medians and how far they can be trusted.
#pragma once

#include <cstdint>
#include <span>

namespace tmamba {

struct Interval {
  double low = 0, high = 0;
  double confidence = 0;  // that the interval holds the true value
};

// The middle value, or the mean of the two middle ones. Throws Error where there is none.
double median_of(std::span<const double> values);

// The narrowest interval between the k-th smallest and the k-th largest value that holds the median of what the values
// are drawn from with at least `confidence`, whatever their distribution: 1 - 2 P(Binomial(n, 1/2) < k). Of fewer
// values than can give it (six for 0.95), their whole range, with the confidence that has.
Interval median_interval(std::span<const double> values, double confidence = 0.95);

// The 95 % interval of median(a) / median(b), from 4000 resamples of both with replacement (percentiles, seeded).
// Resamples never leave the values' range, so of fewer than six values its confidence is that of the range of the fewer
// ones, as median_interval() has it.
Interval ratio_interval(std::span<const double> a, std::span<const double> b, uint64_t seed);

}  // namespace tmamba
