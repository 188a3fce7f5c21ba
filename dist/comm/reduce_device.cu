#include <cuda_bf16.h>

#include <algorithm>
#include <type_traits>

#include "dist/comm/combine.h"
#include "dist/comm/reduce_device.h"

namespace tmamba {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1024;

__device__ float widen(bf16_t x) { return __uint_as_float(uint32_t{x.bits} << 16); }
template <class T>
__device__ T widen(T x) {
  return x;
}

template <class T, class Wide>
__device__ T narrow(Wide x) {
  if constexpr (std::is_same_v<T, bf16_t>) {
    if (x != x) return {static_cast<uint16_t>((__float_as_uint(x) >> 16) | 0x40u)};  // a NaN keeps its upper bits
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  } else {
    return x;
  }
}

template <ReduceOp op, class T>
__global__ void reduce_kernel(T* out, const T* terms, int64_t stride, int count, int64_t n) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += step) {
    auto sum = widen(terms[i]);
    for (int k = 1; k < count; ++k) sum = combine<op>(sum, widen(terms[k * stride + i]));
    out[i] = narrow<T>(sum);
  }
}

template <ReduceOp op, class T>
void launch(void* out, const void* terms, int64_t stride, int count, int64_t n, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(std::min(kMaxBlocks, (n + kThreads - 1) / kThreads));
  reduce_kernel<op, T>
      <<<blocks, kThreads, 0, stream>>>(static_cast<T*>(out), static_cast<const T*>(terms), stride, count, n);
}

template <ReduceOp op>
void launch_any(DType dtype, void* out, const void* terms, int64_t stride, int count, int64_t n, cudaStream_t stream) {
  switch (dtype) {
    case DType::f32:
      return launch<op, float>(out, terms, stride, count, n, stream);
    case DType::f64:
      return launch<op, double>(out, terms, stride, count, n, stream);
    case DType::bf16:
      return launch<op, bf16_t>(out, terms, stride, count, n, stream);
    case DType::i32:
      return launch<op, int32_t>(out, terms, stride, count, n, stream);
    case DType::i64:
      return launch<op, int64_t>(out, terms, stride, count, n, stream);
    case DType::u16:
      return launch<op, uint16_t>(out, terms, stride, count, n, stream);
    case DType::u8:
      return launch<op, uint8_t>(out, terms, stride, count, n, stream);
  }
}

__global__ void count_kernel(int64_t* count, volatile int64_t* seen) {
  *seen = ++*count;
  __threadfence_system();
}

}  // namespace

cudaError_t count_on_device(int64_t* count, int64_t* seen, cudaStream_t stream) {
  count_kernel<<<1, 1, 0, stream>>>(count, seen);
  return cudaGetLastError();
}

cudaError_t reduce_on_device(ReduceOp op, DType dtype, void* out, const void* terms, int64_t stride, int count,
                             int64_t n, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  switch (op) {
    case ReduceOp::sum:
      launch_any<ReduceOp::sum>(dtype, out, terms, stride, count, n, stream);
      break;
    case ReduceOp::max:
      launch_any<ReduceOp::max>(dtype, out, terms, stride, count, n, stream);
      break;
    case ReduceOp::min:
      launch_any<ReduceOp::min>(dtype, out, terms, stride, count, n, stream);
      break;
  }
  return cudaGetLastError();
}

}  // namespace tmamba
