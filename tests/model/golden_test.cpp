// Every array of every golden file: to 1e-9 in float64, to 1e-4 in float32 (spec.md section 9).
#include <gtest/gtest.h>

#include "tests/model/golden_file.h"
#include "tests/model/model_runner.h"

namespace tmamba {
namespace {

class Golden : public testing::TestWithParam<std::filesystem::path> {};

// fold: segments that the one rank cuts each sequence into, with everything that goes between segments.
void compare_all(const GoldenFile& golden, DType dtype, double tolerance, int fold = 1) {
  ModelRunner runner(golden.config(), golden.transpoints(),
                     {.batch = golden.batch(), .tokens = golden.seq_len(), .dtype = dtype, .fold = fold});
  golden.fill_params(runner.table(), runner.params());
  const double loss = runner.run(golden.tokens(), true);
  EXPECT_NEAR(loss / golden.loss(), 1, tolerance) << "loss";

  int compared = 0;
  auto compare = [&](const GoldenArray& expected, const std::vector<double>& actual) {
    EXPECT_LE(relative_error(actual, expected.values), tolerance) << expected.name;
    ++compared;
  };
  for (const GoldenArray* grad : golden.arrays("grads/")) {
    compare(*grad, values_of(runner.table().view(runner.grads(), grad->name.substr(6))));
  }
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

TEST_P(Golden, Float64) { compare_all(GoldenFile(GetParam()), DType::f64, 1e-9); }
TEST_P(Golden, Float64InTwoSegments) { compare_all(GoldenFile(GetParam()), DType::f64, 1e-9, 2); }
TEST_P(Golden, Float32) { compare_all(GoldenFile(GetParam()), DType::f32, 1e-4); }

INSTANTIATE_TEST_SUITE_P(Files, Golden, testing::ValuesIn(golden_files()), [](const auto& file) {
  std::string name = file.param.stem().string() + "_" + std::to_string(file.index);
  for (char& c : name) c = isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
});

}  // namespace
}  // namespace tmamba
