// The host side of the Hopper kernels: tensor maps (tma.cuh), and which GPUs run these kernels (hopper.h).
#include <atomic>

#include "kernels/cuda/common/hopper.h"
#include "kernels/cuda/common/tma.cuh"

namespace tmamba::cuda {

namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver API function, looked up at run time: the program is not linked with libcuda.
EncodeTiled encode_function() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  TM_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
  TM_CHECK(found == cudaDriverEntryPointSuccess && function != nullptr,
           "this GPU's driver has no cuTensorMapEncodeTiled; install a driver for CUDA 12 or later");
  return reinterpret_cast<EncodeTiled>(function);
}

std::atomic<bool> wgmma_allowed = true;

}  // namespace

CUtensorMap make_tensor_map(const Cubes<const bf16_t>& x, int64_t B, int64_t T, int64_t H, int64_t D, int rows) {
  static const EncodeTiled encode = encode_function();
  const auto bytes = [](int64_t size, int64_t stride) {  // the stride of a dimension of size 1 is unused; 16 is valid
    return static_cast<cuuint64_t>(size > 1 ? stride * 2 : 16);
  };
  const cuuint64_t sizes[4] = {static_cast<cuuint64_t>(D), static_cast<cuuint64_t>(H), static_cast<cuuint64_t>(T),
                               static_cast<cuuint64_t>(B)};
  const cuuint64_t strides[3] = {bytes(H, x.h), bytes(T, x.t), bytes(B, x.b)};
  const cuuint32_t box[4] = {kPanelCols, 1, static_cast<cuuint32_t>(rows), 1}, steps[4] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<bf16_t*>(x.data), sizes, strides,
                                 box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_64B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  TM_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed for a tensor [", B, ", ", T, ", ", H, ", ", D,
           "] with strides ", x.b, ", ", x.t, ", ", x.h, " (error ", static_cast<int>(result), ")");
  return map;
}

bool runs_wgmma() {
  if (!wgmma_allowed) return false;
  int device = 0, major = 0, minor = 0;
  TM_CUDA(cudaGetDevice(&device));
  TM_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  TM_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return major == 9 && minor == 0;  // sm_90a code runs on no other compute capability
}

void allow_wgmma(bool allowed) { wgmma_allowed = allowed; }

}  // namespace tmamba::cuda
