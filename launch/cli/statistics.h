// Medians and their confidence intervals.
#pragma once

#include <cstdint>
#include <span>

namespace tmamba {

struct Interval {
  double low = 0, high = 0;
  double confidence = 0;  // that the interval holds the true value
};

// The middle value, or the mean of the two middle ones. Throws Error if there are no values.
double median_of(std::span<const double> values);

// The narrowest interval between the k-th smallest and the k-th largest value that contains the distribution's median
// with at least `confidence`, for any distribution: 1 - 2 P(Binomial(n, 1/2) < k). With too few values (under six for
// 0.95) the whole range, with its own confidence.
Interval median_interval(std::span<const double> values, double confidence = 0.95);

// The 95 % interval of median(a) / median(b), from 4000 resamples of both with replacement (percentiles, seeded).
// Resamples stay within the values' range, so under six values the confidence is that of the range of the smaller
// sample, as in median_interval().
Interval ratio_interval(std::span<const double> a, std::span<const double> b, uint64_t seed);

}  // namespace tmamba
