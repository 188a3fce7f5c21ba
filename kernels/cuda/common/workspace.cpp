#include "kernels/cuda/common/workspace.h"

namespace tmamba::cuda {

void Workspace::reserve(size_t bytes) {
  if (bytes <= buffer_.bytes()) return;
  TM_CHECK(!fixed_, "the CUDA workspace is fixed at ", buffer_.bytes(), " bytes, but an op needs ", bytes,
           "; run every op once before recording");
  constexpr size_t kGrain = size_t{1} << 20;
  stream_.synchronize();  // kernels in flight may use the old memory
  buffer_ = Buffer();
  buffer_ = Buffer((bytes + kGrain - 1) / kGrain * kGrain, Device::cuda);
}

}  // namespace tmamba::cuda
