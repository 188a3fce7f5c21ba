// Matmuls by cublasLt. The algorithm of each problem is selected once, so the same problem always gives the same bits.
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

// out [m, n] = op(a) op(b), or out += op(a) op(b). All matrices are column-major, as in cublasLt; sums are in the
// accumulate type of `in`. align_*: see alignment_of().
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

// The largest power of two up to 256 that divides a matrix's address and its pitch, in bytes.
uint32_t alignment_of(const void* data, int64_t pitch, DType dtype);

class Gemm {
 public:
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;

  explicit Gemm(const Stream& stream);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  void run(const GemmProblem& problem, const void* a, const void* b, void* out);

  // While on, a problem without a selected algorithm is autotuned: the algorithms that cublasLt's heuristic ranks best
  // run on the actual operands, with output into temporary memory, and the fastest is selected. While off, the
  // heuristic's first one is selected.
  void measure(bool on) { measuring_ = on; }
  // The selected algorithms as text: a header line with GPU and library version, then one line per problem, sorted.
  std::string choices() const;
  // Selects the algorithms of such a text; ignores it if it is from another GPU model or library version.
  void use_choices(const std::string& text);

 private:
  struct Plan;

  Plan& plan_of(const GemmProblem& problem);
  // Ordered by cublasLt's heuristic, best first.
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
