// reduce_in_order (dist/comm/reduce.h) for device memory.
#pragma once

#include <cuda_runtime_api.h>

#include "dist/comm/communicator.h"

namespace tmamba {

// out[i] = ((terms[i] op terms[stride + i]) op terms[2 stride + i]) ... over `count` terms of n elements, on a stream:
// the bits of reduce_in_order. `out` may be one of the terms. Returns what launching the kernel gave.
cudaError_t reduce_on_device(ReduceOp op, DType dtype, void* out, const void* terms, int64_t stride, int count,
                             int64_t n, cudaStream_t stream);

// *seen = *count += 1 on a stream. `count` in device memory; `seen` the device's address of host memory.
cudaError_t count_on_device(int64_t* count, int64_t* seen, cudaStream_t stream);

}  // namespace tmamba
