// The model on a GPU agrees with every array of every golden file.
#include "tests/model/golden_compare.h"

namespace tmamba {
namespace {

class CudaGolden : public testing::TestWithParam<std::filesystem::path> {};

void compare(const std::filesystem::path& path, DType dtype, int fold, double tolerance, double one_array = 1) {
  compare_with_golden(GoldenFile(path), {.dtype = dtype, .fold = fold, .device = Device::cuda}, tolerance, one_array);
}

TEST_P(CudaGolden, Float32) { compare(GetParam(), DType::f32, 1, 1e-4); }
TEST_P(CudaGolden, Float32InTwoSegments) { compare(GetParam(), DType::f32, 2, 1e-4); }
// bfloat16 has eight bits of mantissa; errors add up over the layers, forward and backward.
TEST_P(CudaGolden, Bfloat16) { compare(GetParam(), DType::bf16, 1, 5e-2, 8); }

INSTANTIATE_TEST_SUITE_P(Files, CudaGolden, testing::ValuesIn(golden_files()), golden_name);

}  // namespace
}  // namespace tmamba
