// reduce_in_order (dist/comm/reduce.h) for device memory.
#pragma once

#include <cuda_runtime_api.h>

#include "dist/comm/communicator.h"

namespace tmamba {

// out[i] = ((terms[i] op terms[stride + i]) op terms[2 stride + i]) ... over `count` terms, for i < n, on `stream`.
// Gives the same bits as reduce_in_order. `out` may be one of the terms. Returns the status of the launch.
cudaError_t reduce_on_device(ReduceOp op, DType dtype, void* out, const void* terms, int64_t stride, int count,
                             int64_t n, cudaStream_t stream);

// *seen = ++*count on `stream`. `count` is in device memory; `seen` is the device address of mapped host memory.
cudaError_t count_on_device(int64_t* count, int64_t* seen, cudaStream_t stream);

}  // namespace tmamba
