// Matrix products through cublasLt: fixed choice of algorithm per problem, hence fixed bits.
#pragma once

#include <cublasLt.h>

#include <cstddef>
#include <memory>
#include <unordered_map>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/cuda/stream.h"

namespace tmamba::cuda {

// out [m, n] = op(a) op(b), or out += op(a) op(b); everything column-major, as cublasLt has it, accumulated in the
// accumulate type of `in`. `align_*` is the largest power of two up to 256 that divides address and row pitch in bytes.
struct GemmProblem {
  DType in, out;
  bool transpose_a, transpose_b, accumulate;
  int64_t m, n, k;
  int64_t pitch_a, pitch_b, pitch_out;  // elements between columns
  uint32_t align_a, align_b, align_out;

  bool operator==(const GemmProblem&) const = default;
};

struct GemmProblemHash {
  size_t operator()(const GemmProblem& p) const;
};

// The largest power of two up to 256 that divides a matrix's address and the distance of its columns.
uint32_t alignment_of(const void* data, int64_t pitch, DType dtype);

class Gemm {
 public:
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;

  explicit Gemm(const Stream& stream);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  void run(const GemmProblem& problem, const void* a, const void* b, void* out);

  // The algorithms that fit a problem, best first by cublasLt's own estimate. choose() takes the first; an autotuner
  // times them and calls set_choice().
  std::vector<cublasLtMatmulAlgo_t> candidates(const GemmProblem& problem, int count);
  void set_choice(const GemmProblem& problem, const cublasLtMatmulAlgo_t& algorithm);
  size_t problems() const { return plans_.size(); }

 private:
  struct Plan;

  Plan& plan_of(const GemmProblem& problem);

  const Stream& stream_;
  cublasLtHandle_t handle_ = nullptr;
  Buffer workspace_;
  std::unordered_map<GemmProblem, std::unique_ptr<Plan>, GemmProblemHash> plans_;
};

}  // namespace tmamba::cuda
