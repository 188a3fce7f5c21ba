// fill, copy, add, scale of tensors with any strides, and sum_squares over a list of tensors.
#include <algorithm>

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/tensor_list.cuh"
#include "kernels/cuda/cuda_ops.h"

namespace tmamba::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kElements = 8;  // per thread and step

// Views one or two tensors of the same sizes as runs of consecutive elements of equal length: trailing dimensions that
// are contiguous in both form a run, the other dimensions are iterated over.
struct Runs {
  int64_t length = 1, count = 1;
  int dims = 0;
  int64_t size[ConstTensor::kMaxDims], y_stride[ConstTensor::kMaxDims], x_stride[ConstTensor::kMaxDims];
  bool aligned16 = true;

  Runs(const ConstTensor& y, const ConstTensor& x) {
    int dim = y.dims() - 1;
    for (; dim >= 0; --dim) {
      if (y.size(dim) != 1 && (y.stride(dim) != length || x.stride(dim) != length)) break;
      length *= y.size(dim);
    }
    for (int i = 0; i <= dim; ++i) {
      count *= y.size(i);
      size[dims] = y.size(i), y_stride[dims] = y.stride(i), x_stride[dims] = x.stride(i);
      aligned16 = aligned16 && y_stride[dims] % kElements == 0 && x_stride[dims] % kElements == 0;
      ++dims;
    }
    if (y.numel() == 0) count = 0;
    const uint64_t addresses = reinterpret_cast<uint64_t>(y.raw()) | reinterpret_cast<uint64_t>(x.raw());
    aligned16 = aligned16 && addresses % 16 == 0 && (count == 1 || length % kElements == 0);
  }

  __device__ void offsets(int64_t run, int64_t& y, int64_t& x) const {
    y = 0, x = 0;
    for (int i = dims - 1; i >= 0; --i) {
      const DivMod at(run, size[i]);
      y += at.remainder * y_stride[i], x += at.remainder * x_stride[i];
      run = at.quotient;
    }
  }
};

enum class Update { fill, scale, copy, add };

// y = value, y * value, x or y + x, computed in the wider of the two types.
template <class Y, class X, Update kUpdate>
__global__ void __launch_bounds__(kThreads) update_kernel(Y* y, const X* x, Runs runs, double value) {
  using Wide = std::conditional_t<std::is_same_v<Y, double> || std::is_same_v<X, double>, double, float>;
  const int64_t per_run = (runs.length + kElements - 1) / kElements, total = runs.count * per_run;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total; i += step) {
    const DivMod at(i, per_run);
    const int64_t begin = at.remainder * kElements, left = runs.length - begin;
    int64_t y_offset, x_offset;
    runs.offsets(at.quotient, y_offset, x_offset);
    Raw<Y, kElements> out{};
    Raw<X, kElements> in{};
    if constexpr (kUpdate == Update::add || kUpdate == Update::scale) {
      out = load<Y, kElements>(y + y_offset + begin, left, runs.aligned16);
    }
    if constexpr (kUpdate == Update::add || kUpdate == Update::copy) {
      in = load<X, kElements>(x + x_offset + begin, left, runs.aligned16);
    }
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const Wide by = static_cast<Wide>(value);
      if constexpr (kUpdate == Update::fill) out.v[e] = narrow<Y>(by);
      if constexpr (kUpdate == Update::scale) out.v[e] = narrow<Y>(static_cast<Wide>(out[e]) * by);
      if constexpr (kUpdate == Update::copy) out.v[e] = narrow<Y>(static_cast<Wide>(in[e]));
      if constexpr (kUpdate == Update::add) out.v[e] = narrow<Y>(static_cast<Wide>(out[e]) + static_cast<Wide>(in[e]));
    }
    store<Y, kElements>(y + y_offset + begin, out, left, runs.aligned16);
  }
}

template <class Y, class X, Update kUpdate>
void update(cudaStream_t stream, const Tensor& y, const ConstTensor& x, double value) {
  const Runs runs(y, x);
  const int64_t threads = runs.count * ceil_div(runs.length, kElements);
  const Grid grid{std::min<int64_t>(ceil_div(threads, kThreads), 1 << 20)};
  launch(stream, grid, kThreads, 0, update_kernel<Y, X, kUpdate>, y.data<Y>(), x.data<X>(), runs, value);
}

// --- sum_squares ---

constexpr int kSumThreads = 512;
constexpr int64_t kSumBlock = 65536;  // elements per block
constexpr int kSumTensors = 512;      // per launch: the list is a kernel parameter

struct SumList {
  struct Entry {
    const void* data;
    int64_t count, first_block;
    DType dtype;
    bool aligned16;
  };
  int entries = 0;
  int64_t blocks = 0;
  Entry entry[kSumTensors];
};

template <class T>
__device__ double block_squares(const T* data, int64_t count, bool aligned16) {
  double sum = 0;
  for (int64_t i = threadIdx.x * kVec<T>; i < count; i += kSumThreads * kVec<T>) {
    const Raw<T> x = load(data + i, count - i, aligned16);
#pragma unroll
    for (int e = 0; e < kVec<T>; ++e) sum += static_cast<double>(x[e]) * static_cast<double>(x[e]);
  }
  return sum;
}

__global__ void __launch_bounds__(kSumThreads)
    sum_squares_kernel(double* partial, const __grid_constant__ SumList list) {
  __shared__ double scratch[kSumThreads / kWarp];
  const int64_t block = blockIdx.x;
  const SumList::Entry& entry = list.entry[entry_with_block(list, block)];
  const int64_t begin = (block - entry.first_block) * kSumBlock;
  const int64_t count = entry.count - begin < kSumBlock ? entry.count - begin : kSumBlock;
  double sum;
  if (entry.dtype == DType::f64) {
    sum = block_squares(static_cast<const double*>(entry.data) + begin, count, entry.aligned16);
  } else if (entry.dtype == DType::bf16) {
    sum = block_squares(static_cast<const bf16_t*>(entry.data) + begin, count, entry.aligned16);
  } else {
    sum = block_squares(static_cast<const float*>(entry.data) + begin, count, entry.aligned16);
  }
  sum = block_sum<kSumThreads>(sum, scratch);
  if (threadIdx.x == 0) partial[block] = sum;
}

__global__ void __launch_bounds__(kSumThreads) sum_kernel(double* out, const double* partial, int64_t count) {
  __shared__ double scratch[kSumThreads / kWarp];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) sum += partial[i];
  sum = block_sum<kSumThreads>(sum, scratch);
  if (threadIdx.x == 0) *out = sum;
}

}  // namespace

void CudaOps::fill(const Fill& args) {
  check_args(Device::cuda, args);
  if (args.value == 0 && args.x.contiguous()) {  // zero is all zero bytes in every floating type
    if (args.x.numel() > 0) TM_CUDA(cudaMemsetAsync(args.x.raw(), 0, static_cast<size_t>(args.x.bytes()), stream()));
    return;
  }
  dispatch_activation(args.x.dtype(),
                      [&]<class T>() { update<T, T, Update::fill>(stream(), args.x, args.x, args.value); });
}

void CudaOps::scale(const Scale& args) {
  check_args(Device::cuda, args);
  dispatch_activation(args.x.dtype(),
                      [&]<class T>() { update<T, T, Update::scale>(stream(), args.x, args.x, args.factor); });
}

void CudaOps::copy(const Copy& args) {
  check_args(Device::cuda, args);
  dispatch_activation(args.y.dtype(), [&]<class Y>() {
    dispatch_activation(args.x.dtype(), [&]<class X>() { update<Y, X, Update::copy>(stream(), args.y, args.x, 0); });
  });
}

void CudaOps::add(const Add& args) {
  check_args(Device::cuda, args);
  dispatch_activation(args.y.dtype(), [&]<class Y>() {
    dispatch_activation(args.x.dtype(), [&]<class X>() { update<Y, X, Update::add>(stream(), args.y, args.x, 0); });
  });
}

void CudaOps::sum_squares(const SumSquares& args) {
  check_args(Device::cuda, args);
  int64_t blocks = 0;
  for (const ConstTensor& x : args.tensors) blocks += ceil_div(x.numel(), kSumBlock);
  double* partial = workspace_.take<double>(blocks);
  double* next = partial;
  for (size_t begin = 0; begin < args.tensors.size(); begin += kSumTensors) {
    SumList list;
    for (const ConstTensor& x :
         args.tensors.subspan(begin, std::min<size_t>(kSumTensors, args.tensors.size() - begin))) {
      if (x.numel() == 0) continue;
      const bool aligned16 = reinterpret_cast<uint64_t>(x.raw()) % 16 == 0;
      list.entry[list.entries++] = {x.raw(), x.numel(), list.blocks, x.dtype(), aligned16};
      list.blocks += ceil_div(x.numel(), kSumBlock);
    }
    launch(stream(), {list.blocks}, kSumThreads, 0, sum_squares_kernel, next, list);
    next += list.blocks;
  }
  launch(stream(), {}, kSumThreads, 0, sum_kernel, args.out_1.data<double>(), static_cast<const double*>(partial),
         blocks);
}

}  // namespace tmamba::cuda
