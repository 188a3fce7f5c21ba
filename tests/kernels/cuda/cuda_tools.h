// What the tests of the CUDA ops share. A body calls ops on named inputs; it is run on the CPU in float64, and on the
// GPU in bfloat16, float32 and float64, contiguous and padded. All inputs are numbers that every type holds exactly.
#pragma once

#include <functional>

#include "tests/kernels/op_tools.h"

namespace tmamba::test {

// Random inputs. Those of an activation's type are bfloat16 numbers, those of the accumulate type float32 numbers.
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

  // Keeps the tensor's content, when the body is done, as a result of this name.
  void result(const std::string& name, const Tensor& x) { results_.emplace_back(name, x); }

  struct Result {
    Array array;
    DType dtype;
  };
  // Waits for the ops, and fails where memory between the elements of a tensor was written.
  std::map<std::string, Result> results();

 private:
  std::vector<std::pair<std::string, Tensor>> results_;
};

using Body = std::function<void(Tensors&)>;

struct Check {
  std::string name;
  // A plain evaluation in bfloat16: results by name. Where it has none, the float64 result rounded once stands for it.
  std::function<Arrays()> plain = {};
  double f32_units = 64;  // float32 results: rounding units of the array's norm
  double f64_error = 1e-12;
  double acc_error = 2e-5;  // results in float32 beside bfloat16 activations, where plain has none
  bool padded_same = true;  // padding changes no bit
  std::vector<DType> types = {DType::bf16, DType::f32, DType::f64};
};

// The GPU agrees with the CPU in float64: bfloat16 has at most twice the error of `plain`; a second run and padded
// tensors give the same bits.
void check_body(const Check& check, const Body& body);

// Whether a case that works on so many pairs of tokens is to be left out: under a tool that takes seconds for each
// launch of many threads (TMAMBA_TEST_SMALL).
bool too_large(int64_t pairs);

// The ops of the GPU; throws where there is none, and so fails every test.
Ops& gpu();
Ops& cpu();

}  // namespace tmamba::test
