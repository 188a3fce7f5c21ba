// The model agrees with every array of every golden file (model/SPEC.md section 9): to 1e-9 in float64, to 1e-4 in
// float32.
#include "tests/model/golden_compare.h"

namespace tmamba {
namespace {

class Golden : public testing::TestWithParam<std::filesystem::path> {};

TEST_P(Golden, Float64) { compare_with_golden(GoldenFile(GetParam()), {.dtype = DType::f64}, 1e-9); }
TEST_P(Golden, Float64InTwoSegments) {
  compare_with_golden(GoldenFile(GetParam()), {.dtype = DType::f64, .fold = 2}, 1e-9);
}
TEST_P(Golden, Float32) { compare_with_golden(GoldenFile(GetParam()), {.dtype = DType::f32}, 1e-4); }

INSTANTIATE_TEST_SUITE_P(Files, Golden, testing::ValuesIn(golden_files()), golden_name);

}  // namespace
}  // namespace tmamba
