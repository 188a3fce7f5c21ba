#include "kernels/cuda/cuda_ops.h"
#include "kernels/ops/backends.h"

namespace tmamba {

namespace cuda {

namespace {

// Creates a stream on the current GPU; throws UserError if the GPU cannot run the kernels.
Stream checked_stream() {
  int count = 0, device = 0, major = 0, minor = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    cudaGetLastError();
    throw UserError(str("no NVIDIA GPU can be used on this machine (",
                        status != cudaSuccess ? cudaGetErrorString(status) : "there is none",
                        "); set run.device = \"cpu\" to run without one"));
  }
  TM_CUDA(cudaGetDevice(&device));
  TM_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  TM_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  if (major < 8) {
    throw UserError(
        str("GPU ", device, " has compute capability ", major, ".", minor, "; 8.0 (A100) or later is needed"));
  }
  return Stream();
}

}  // namespace

CudaOps::CudaOps() : stream_(checked_stream()), workspace_(stream_), gemm_(stream_) {}

}  // namespace cuda

std::unique_ptr<Ops> make_cuda_ops() { return std::make_unique<cuda::CudaOps>(); }

}  // namespace tmamba
