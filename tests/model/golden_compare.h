#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tests/model/golden_file.h"
#include "tests/model/model_runner.h"

namespace tmamba {

// Compares every array of a golden file with what one rank computes. how.fold: the segments that each sequence is split
// into, with all exchanges between them. One array alone may differ by `one_array` times the tolerance (sums cancel in
// arrays of a few elements), all gradients together by the tolerance.
inline void compare_with_golden(const GoldenFile& golden, const ModelRunner::Shape& how, double tolerance,
                                double one_array = 1) {
  ModelRunner::Shape shape = how;
  shape.batch = golden.batch(), shape.tokens = golden.seq_len();
  ModelRunner runner(golden.config(), golden.transpoints(), shape);
  runner.set_params([&](const Tensor& flat) { golden.fill_params(runner.table(), flat); });
  const double loss = runner.run(golden.tokens(), true);
  EXPECT_NEAR(loss / golden.loss(), 1, tolerance) << "loss";

  int compared = 0;
  auto compare = [&](const GoldenArray& expected, const std::vector<double>& actual) {
    EXPECT_LE(relative_error(actual, expected.values), tolerance * one_array) << expected.name;
    ++compared;
  };
  std::vector<double> gradients, expected_gradients;
  const std::vector<std::string>& unused = runner.table().unused();
  for (const GoldenArray* grad : golden.arrays("grads/")) {
    if (std::ranges::find(unused, grad->name.substr(6)) != unused.end()) {
      EXPECT_TRUE(std::ranges::all_of(grad->values, [](double x) { return x == 0; })) << grad->name;
      continue;
    }
    const std::vector<double> actual = values_of(runner.table().view(runner.grads(), grad->name.substr(6)));
    compare(*grad, actual);
    gradients.insert(gradients.end(), actual.begin(), actual.end());
    expected_gradients.insert(expected_gradients.end(), grad->values.begin(), grad->values.end());
  }
  EXPECT_LE(relative_error(gradients, expected_gradients), tolerance) << "all gradients";
  EXPECT_EQ(compared, static_cast<int>(runner.table().all().size()));
  auto layer_of = [](const GoldenArray& array) { return std::stoll(array.name.substr(array.name.rfind('/') + 1)); };
  for (const GoldenArray* out : golden.arrays("mixer_out/")) {
    std::vector<double> difference = values_of(runner.model().residual_after_mixer(layer_of(*out)));
    const std::vector<double> before = values_of(runner.model().residual(layer_of(*out)));
    for (size_t i = 0; i < difference.size(); ++i) difference[i] -= before[i];
    compare(*out, difference);
  }
  for (const GoldenArray* state : golden.arrays("state_at_transpoint/")) {
    compare(*state, values_of(runner.model().mixer(layer_of(*state)).state_at_transpoint()));
  }
  for (const GoldenArray* state : golden.arrays("state_final/")) {
    compare(*state, values_of(runner.model().mixer(layer_of(*state)).final_state()));
  }
  EXPECT_GT(compared, static_cast<int>(runner.table().all().size())) << "no mixer outputs were compared";
}

inline std::string golden_name(const testing::TestParamInfo<std::filesystem::path>& file) {
  std::string name = file.param.stem().string() + "_" + std::to_string(file.index);
  for (char& c : name) c = isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

}  // namespace tmamba
