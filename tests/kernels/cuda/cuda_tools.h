// Shared by the tests of the CUDA ops. A body calls ops on named inputs; check_body() runs it on the CPU in float64,
// and on the GPU in bfloat16, float32 and float64, with contiguous and with padded tensors. All types hold the inputs
// exactly.
#pragma once

#include <functional>

#include "tests/kernels/op_tools.h"

namespace tmamba::test {

// Random inputs: bfloat16 values for tensors of the activation type, float32 values for the accumulate type.
class Inputs {
 public:
  explicit Inputs(uint64_t seed) : random_(seed) {}
  Array bf16(std::vector<int64_t> sizes, double low = -1, double high = 1) {
    return round_bf16(random_.uniform(std::move(sizes), low, high));
  }
  Array f32(std::vector<int64_t> sizes, double low = -1, double high = 1) {
    return random_.uniform(std::move(sizes), low, high);
  }
  Array tokens(int64_t count, int64_t begin, int64_t end);

 private:
  Random random_;
};

// The tensors of one run.
class Tensors : public Runner {
 public:
  using Runner::Runner;

  // Registers a tensor as a result; its content is read after the body returns.
  void result(const std::string& name, const Tensor& x) { results_.emplace_back(name, x); }

  struct Result {
    Array array;
    DType dtype;
  };
  // Waits for the ops and reads the results; fails if an op wrote to padding between elements.
  std::map<std::string, Result> results();

 private:
  std::vector<std::pair<std::string, Tensor>> results_;
};

using Body = std::function<void(Tensors&)>;

struct Check {
  std::string name;
  // A plain evaluation in bfloat16: results by name. For a missing result the float64 result is rounded once instead.
  std::function<Arrays()> plain = {};
  double f32_units = 64;  // limit for float32 results, in rounding units of the array's norm
  double f64_error = 1e-12;
  double acc_error = 2e-5;  // limit for float32 results of bfloat16 runs that `plain` does not have
  bool padded_same = true;  // padding must not change a bit
  std::vector<DType> types = {DType::bf16, DType::f32, DType::f64};
};

// Checks the GPU against the CPU in float64: the error of bfloat16 is at most twice that of `plain`; a second run and
// padded tensors give the same bits.
void check_body(const Check& check, const Body& body);

// Whether to skip a case with so many pairs of tokens: under tools that need seconds per large launch
// (TMAMBA_TEST_SMALL).
bool too_large(int64_t pairs);

// The ops of the GPU; throws without a GPU, so that every test fails.
Ops& gpu();
Ops& cpu();

}  // namespace tmamba::test
