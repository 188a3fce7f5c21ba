// Matrix products through cublasLt: fixed choice of algorithm per problem, hence fixed bits.
#pragma once

#include <cublasLt.h>

#include <cstddef>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/cuda/common/stream.h"

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

  // While on, a problem without a choice is solved by each of the algorithms that cublasLt thinks best, on the operands
  // at hand and into memory set aside for it, and the fastest becomes its choice. Else its first one does.
  void measure(bool on) { measuring_ = on; }
  // One line for the GPU and the library, one per choice; sorted.
  std::string choices() const;
  // Takes the choices of such a text where it is of this GPU and library.
  void use_choices(const std::string& text);

 private:
  struct Plan;

  Plan& plan_of(const GemmProblem& problem);
  // Best first by cublasLt's own estimate.
  std::vector<cublasLtMatmulAlgo_t> candidates(const GemmProblem& problem, int count);
  cublasLtMatmulAlgo_t fastest(const GemmProblem& problem, const void* a, const void* b);
  cublasStatus_t launch(const GemmProblem& problem, const Plan& plan, const cublasLtMatmulAlgo_t& algorithm,
                        const void* a, const void* b, void* out);
  std::string header() const;

  const Stream& stream_;
  cublasLtHandle_t handle_ = nullptr;
  Buffer workspace_;
  bool measuring_ = false;
  std::unordered_map<GemmProblem, std::unique_ptr<Plan>, GemmProblemHash> plans_;
};

}  // namespace tmamba::cuda
