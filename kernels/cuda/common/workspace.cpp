#include "kernels/cuda/common/workspace.h"

namespace tmamba::cuda {

void Workspace::reserve(size_t bytes) {
  if (bytes <= buffer_.bytes()) return;
  TM_CHECK(!fixed_, "the CUDA workspace of ", buffer_.bytes(), " bytes is fixed and an op asks for ", bytes,
           "; run every op of the step once before fixing it");
  constexpr size_t kGrain = size_t{1} << 20;
  stream_.synchronize();  // kernels in flight still use the old memory
  buffer_ = Buffer();
  buffer_ = Buffer((bytes + kGrain - 1) / kGrain * kGrain, Device::cuda);
}

}  // namespace tmamba::cuda
