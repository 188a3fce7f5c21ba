#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/ops/backends.h"

namespace tmamba {

CpuOps::CpuOps() { use_one_blas_thread(); }

std::unique_ptr<Ops> make_cpu_ops() { return std::make_unique<CpuOps>(); }

std::unique_ptr<Ops> make_ops(Device device) { return device == Device::cuda ? make_cuda_ops() : make_cpu_ops(); }

}  // namespace tmamba
