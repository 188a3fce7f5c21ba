#include "kernels/cuda/gemm/gemm.h"

#include <algorithm>
#include <array>
#include <limits>
#include <sstream>

#include "kernels/base/enum_names.h"

namespace tmamba::cuda {

namespace {

cudaDataType_t cuda_type(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::f32:
      return CUDA_R_32F;
    case DType::f64:
      return CUDA_R_64F;
    default:
      throw Error(str("matmul of ", name_of(dtype), " is not supported; operands must be bf16, f32 or f64"));
  }
}

// Float32 matmuls run in float32, not TF32.
cublasComputeType_t compute_type(DType in) { return in == DType::f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F; }

class Layout {
 public:
  Layout(DType dtype, int64_t rows, int64_t cols, int64_t pitch) {
    TM_CUBLAS(cublasLtMatrixLayoutCreate(&layout_, cuda_type(dtype), static_cast<uint64_t>(rows),
                                         static_cast<uint64_t>(cols), pitch));
  }
  ~Layout() { cublasLtMatrixLayoutDestroy(layout_); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  cublasLtMatrixLayout_t layout_ = nullptr;
};

class MatmulDesc {
 public:
  explicit MatmulDesc(const GemmProblem& p) {
    TM_CUBLAS(cublasLtMatmulDescCreate(&desc_, compute_type(p.in), cuda_type(accumulate_type(p.in))));
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  }
  ~MatmulDesc() { cublasLtMatmulDescDestroy(desc_); }
  MatmulDesc(const MatmulDesc&) = delete;
  MatmulDesc& operator=(const MatmulDesc&) = delete;
  cublasLtMatmulDesc_t get() const { return desc_; }

 private:
  void set(cublasLtMatmulDescAttributes_t attribute, cublasOperation_t value) {
    TM_CUBLAS(cublasLtMatmulDescSetAttribute(desc_, attribute, &value, sizeof(value)));
  }
  cublasLtMatmulDesc_t desc_ = nullptr;
};

class Preference {
 public:
  explicit Preference(const GemmProblem& p) {
    TM_CUBLAS(cublasLtMatmulPreferenceCreate(&preference_));
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{Gemm::kWorkspaceBytes});
    // Split-K partial sums are reduced in the workspace in the accumulate type: in a fixed order, rounded once.
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, p.align_a);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, p.align_b);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p.align_out);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p.align_out);
  }
  ~Preference() { cublasLtMatmulPreferenceDestroy(preference_); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;
  cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  template <class T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    TM_CUBLAS(cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof(value)));
  }
  cublasLtMatmulPreference_t preference_ = nullptr;
};

}  // namespace

struct Gemm::Plan {
  explicit Plan(const GemmProblem& p)
      : matmul(p),
        a(p.in, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.pitch_a),
        b(p.in, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.pitch_b),
        out(p.out, p.m, p.n, p.pitch_out) {}
  MatmulDesc matmul;
  Layout a, b, out;
  cublasLtMatmulAlgo_t algorithm{};
  bool chosen = false;
};

size_t GemmProblemHash::operator()(const GemmProblem& p) const {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto mix = [&](int64_t value) { hash = (hash ^ static_cast<uint64_t>(value)) * 0x100000001b3u; };
  for (int64_t value : {p.m, p.n, p.k, p.pitch_a, p.pitch_b, p.pitch_out}) mix(value);
  for (bool value : {p.transpose_a, p.transpose_b, p.accumulate}) mix(value ? 1 : 0);
  for (uint32_t value : {p.align_a, p.align_b, p.align_out}) mix(value);
  mix(static_cast<int64_t>(p.in) * 16 + static_cast<int64_t>(p.out));
  return hash;
}

uint32_t alignment_of(const void* data, int64_t pitch, DType dtype) {
  const uint64_t bits = reinterpret_cast<uint64_t>(data) | static_cast<uint64_t>(pitch) * size_of(dtype) | 256;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

Gemm::Gemm(const Stream& stream) : stream_(stream), workspace_(kWorkspaceBytes, Device::cuda) {
  TM_CUBLAS(cublasLtCreate(&handle_));
}

Gemm::~Gemm() {
  plans_.clear();
  cublasLtDestroy(handle_);
}

Gemm::Plan& Gemm::plan_of(const GemmProblem& problem) {
  std::unique_ptr<Plan>& plan = plans_[problem];
  if (plan == nullptr) plan = std::make_unique<Plan>(problem);
  return *plan;
}

std::vector<cublasLtMatmulAlgo_t> Gemm::candidates(const GemmProblem& problem, int count) {
  const Plan& plan = plan_of(problem);
  const Preference preference(problem);
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(count));
  int found = 0;
  TM_CUBLAS(cublasLtMatmulAlgoGetHeuristic(handle_, plan.matmul.get(), plan.a.get(), plan.b.get(), plan.out.get(),
                                           plan.out.get(), preference.get(), count, results.data(), &found));
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; i < found; ++i) {
    const cublasLtMatmulHeuristicResult_t& result = results[static_cast<size_t>(i)];
    if (result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= kWorkspaceBytes) {
      algorithms.push_back(result.algo);
    }
  }
  TM_CHECK(!algorithms.empty(), "cublasLt has no algorithm for a ", name_of(problem.in), " matmul of ", problem.m,
           " x ", problem.n, " x ", problem.k, " into ", name_of(problem.out));
  return algorithms;
}

void Gemm::run(const GemmProblem& problem, const void* a, const void* b, void* out) {
  Plan& plan = plan_of(problem);
  if (!plan.chosen) {
    plan.algorithm = measuring_ ? fastest(problem, a, b) : candidates(problem, 1).front();
    plan.chosen = true;
  }
  TM_CUBLAS(launch(problem, plan, plan.algorithm, a, b, out));
}

cublasStatus_t Gemm::launch(const GemmProblem& problem, const Plan& plan, const cublasLtMatmulAlgo_t& algorithm,
                            const void* a, const void* b, void* out) {
  const double one64 = 1, beta64 = problem.accumulate ? 1 : 0;
  const float one32 = 1, beta32 = problem.accumulate ? 1.0f : 0.0f;
  const bool f64 = problem.in == DType::f64;
  const void* one = f64 ? static_cast<const void*>(&one64) : &one32;
  const void* beta = f64 ? static_cast<const void*>(&beta64) : &beta32;
  return cublasLtMatmul(handle_, plan.matmul.get(), one, a, plan.a.get(), b, plan.b.get(), beta, out, plan.out.get(),
                        out, plan.out.get(), &algorithm, workspace_.data(), kWorkspaceBytes, stream_.get());
}

// --- Algorithm selection ---

namespace {

class Timer {
 public:
  Timer() {
    TM_CUDA(cudaEventCreate(&begin_));
    TM_CUDA(cudaEventCreate(&end_));
  }
  ~Timer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  template <class F>
  float milliseconds(cudaStream_t stream, F f) {
    float elapsed = 0;
    TM_CUDA(cudaEventRecord(begin_, stream));
    f();
    TM_CUDA(cudaEventRecord(end_, stream));
    TM_CUDA(cudaEventSynchronize(end_));
    TM_CUDA(cudaEventElapsedTime(&elapsed, begin_, end_));
    return elapsed;
  }

 private:
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

std::string text_of(const GemmProblem& p) {
  return str(name_of(p.in), " ", name_of(p.out), " ", p.transpose_a, " ", p.transpose_b, " ", p.accumulate, " ", p.m,
             " ", p.n, " ", p.k, " ", p.pitch_a, " ", p.pitch_b, " ", p.pitch_out, " ", p.align_a, " ", p.align_b, " ",
             p.align_out);
}

// A name of GemmProblem's types; UserError lists them for any other.
DType type_named(const std::string& name) { return value_named(std::array{DType::bf16, DType::f32, DType::f64}, name); }

}  // namespace

// Takes the median of a few runs of each: the first may include loading the kernel, and a single one may be disturbed.
cublasLtMatmulAlgo_t Gemm::fastest(const GemmProblem& problem, const void* a, const void* b) {
  constexpr int kCandidates = 24, kRuns = 5;
  const Plan& plan = plan_of(problem);
  const Buffer out(static_cast<size_t>((problem.n - 1) * problem.pitch_out + problem.m) * size_of(problem.out),
                   Device::cuda);
  Timer timer;
  cublasLtMatmulAlgo_t best{};
  float best_time = std::numeric_limits<float>::infinity();
  for (const cublasLtMatmulAlgo_t& algorithm : candidates(problem, kCandidates)) {
    if (launch(problem, plan, algorithm, a, b, out.data()) != CUBLAS_STATUS_SUCCESS) continue;
    std::array<float, kRuns> times;
    for (float& time : times) {
      time = timer.milliseconds(stream_.get(), [&] { TM_CUBLAS(launch(problem, plan, algorithm, a, b, out.data())); });
    }
    std::sort(times.begin(), times.end());
    if (times[kRuns / 2] < best_time) best_time = times[kRuns / 2], best = algorithm;
  }
  TM_CHECK(best_time < std::numeric_limits<float>::infinity(), "no cublasLt algorithm runs the matmul ",
           text_of(problem));
  return best;
}

std::string Gemm::header() const {
  int device = 0;
  cudaDeviceProp properties{};
  TM_CUDA(cudaGetDevice(&device));
  TM_CUDA(cudaGetDeviceProperties(&properties, device));
  return str("cublasLt ", cublasLtGetVersion(), " on ", properties.name);
}

std::string Gemm::choices() const {
  std::vector<std::string> lines;
  for (const auto& [problem, plan] : plans_) {
    if (!plan->chosen) continue;
    std::ostringstream line;
    line << text_of(problem) << std::hex;
    for (uint64_t word : plan->algorithm.data) line << " " << word;
    lines.push_back(line.str());
  }
  std::sort(lines.begin(), lines.end());
  std::string text = header() + "\n";
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

void Gemm::use_choices(const std::string& text) {
  std::istringstream in(text);
  std::string line;
  if (!std::getline(in, line) || line != header()) return;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    std::string in_name, out_name;
    GemmProblem p{};
    words >> in_name >> out_name >> p.transpose_a >> p.transpose_b >> p.accumulate >> p.m >> p.n >> p.k >> p.pitch_a >>
        p.pitch_b >> p.pitch_out >> p.align_a >> p.align_b >> p.align_out >> std::hex;
    cublasLtMatmulAlgo_t algorithm{};
    for (uint64_t& word : algorithm.data) words >> word;
    if (!words) throw UserError(str("saved matmul algorithms: malformed line: ", line));
    p.in = type_named(in_name), p.out = type_named(out_name);
    Plan& plan = plan_of(p);
    plan.algorithm = algorithm, plan.chosen = true;
  }
}

}  // namespace tmamba::cuda
