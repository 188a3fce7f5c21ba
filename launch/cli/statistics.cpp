#include "launch/cli/statistics.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/rng.h"

namespace tmamba {

namespace {

double middle(std::vector<double>& values) {
  const size_t half = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(half), values.end());
  if (values.size() % 2 == 1) return values[half];
  return 0.5 * (values[half] + *std::max_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(half)));
}

// P(Binomial(n, 1/2) <= k).
double binomial_up_to(size_t n, size_t k) {
  double sum = 0;
  for (size_t i = 0; i <= k; ++i) {
    const auto x = static_cast<double>(n), y = static_cast<double>(i);
    sum += std::exp(std::lgamma(x + 1) - std::lgamma(y + 1) - std::lgamma(x - y + 1) - x * std::log(2.0));
  }
  return sum;
}

}  // namespace

double median_of(std::span<const double> values) {
  TM_CHECK(!values.empty(), "the median of nothing");
  std::vector<double> copy(values.begin(), values.end());
  return middle(copy);
}

Interval median_interval(std::span<const double> values, double confidence) {
  TM_CHECK(!values.empty(), "the median of nothing");
  std::vector<double> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  const size_t n = sorted.size();
  size_t k = 1;
  while (k < n / 2 && 1 - 2 * binomial_up_to(n, k) >= confidence) ++k;
  return {sorted[k - 1], sorted[n - k], 1 - 2 * binomial_up_to(n, k - 1)};
}

Interval ratio_interval(std::span<const double> a, std::span<const double> b, uint64_t seed) {
  constexpr int kResamples = 4000;
  TM_CHECK(!a.empty() && !b.empty(), "the ratio of nothing");
  const Philox random(seed, 11);
  uint64_t draws = 0;
  std::vector<double> sample, ratios;
  const auto resampled = [&](std::span<const double> of) {
    sample.clear();
    for (size_t i = 0; i < of.size(); ++i) sample.push_back(of[random.words(draws++)[0] % of.size()]);
    return middle(sample);
  };
  for (int i = 0; i < kResamples; ++i) {
    const double numerator = resampled(a);
    ratios.push_back(numerator / resampled(b));
  }
  std::sort(ratios.begin(), ratios.end());
  const size_t fewest = std::min(a.size(), b.size());
  return {ratios[kResamples * 25 / 1000], ratios[kResamples * 975 / 1000 - 1],
          std::min(0.95, 1 - 2 * binomial_up_to(fewest, 0))};
}

}  // namespace tmamba
