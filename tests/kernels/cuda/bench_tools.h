// Shared by the benchmarks of single ops: random tensors and GPU timing.
#pragma once

#include <algorithm>
#include <bit>
#include <functional>
#include <vector>

#include "kernels/cuda/common/check.h"
#include "kernels/cuda/cuda_ops.h"

namespace tmamba {

class OpBench {
 public:
  explicit OpBench(int repeats) : repeats_(repeats) {}

  cuda::CudaOps& ops() { return ops_; }
  void clear() { buffers_.clear(); }

  Tensor tensor(std::initializer_list<int64_t> sizes, DType dtype) {
    int64_t count = 1;
    for (int64_t size : sizes) count *= size;
    buffers_.emplace_back(static_cast<size_t>(count) * size_of(dtype), Device::cuda);
    return Tensor(buffers_.back().data(), sizes, dtype, Device::cuda);
  }

  // Uniform random values, generated on the host: a sequence of kDistinct values, repeated. kDistinct is prime, so rows
  // differ.
  Tensor uniform(std::initializer_list<int64_t> sizes, DType dtype, float low, float high) {
    constexpr int64_t kDistinct = 1'000'003;
    const Tensor out = tensor(sizes, dtype);
    Buffer host(static_cast<size_t>(out.numel()) * size_of(dtype), Device::cpu);
    char* const bytes = static_cast<char*>(host.data());
    uint64_t state = 0x9E3779B97F4A7C15ull + buffers_.size();
    const int64_t distinct = std::min(kDistinct, out.numel());
    for (int64_t i = 0; i < distinct; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      const float x = low + (high - low) * static_cast<float>(state >> 40) * 0x1p-24f;
      if (dtype == DType::bf16) {
        reinterpret_cast<uint16_t*>(bytes)[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16);
      } else {
        reinterpret_cast<float*>(bytes)[i] = x;
      }
    }
    const size_t period = static_cast<size_t>(distinct) * size_of(dtype), all = host.bytes();
    for (size_t at = period; at < all; at += period) std::copy_n(bytes, std::min(period, all - at), bytes + at);
    copy_blocking(out, Tensor(host.data(), sizes, dtype, Device::cpu));
    return out;
  }

  // The median over the repeats, in milliseconds per call; each repeat makes `calls` calls. Two warm-up repeats are not
  // counted.
  double time(const std::function<void()>& body, int calls = 1) {
    cudaEvent_t begin, end;
    TM_CUDA(cudaEventCreate(&begin));
    TM_CUDA(cudaEventCreate(&end));
    std::vector<float> times;
    for (int i = -2; i < repeats_; ++i) {
      TM_CUDA(cudaEventRecord(begin, ops_.stream()));
      for (int call = 0; call < calls; ++call) body();
      TM_CUDA(cudaEventRecord(end, ops_.stream()));
      TM_CUDA(cudaEventSynchronize(end));
      float ms = 0;
      TM_CUDA(cudaEventElapsedTime(&ms, begin, end));
      if (i >= 0) times.push_back(ms / static_cast<float>(calls));
    }
    TM_CUDA(cudaEventDestroy(begin));
    TM_CUDA(cudaEventDestroy(end));
    std::nth_element(times.begin(), times.begin() + repeats_ / 2, times.end());
    return static_cast<double>(times[static_cast<size_t>(repeats_ / 2)]);
  }

 private:
  cuda::CudaOps ops_;
  int repeats_;
  std::vector<Buffer> buffers_;
};

}  // namespace tmamba
