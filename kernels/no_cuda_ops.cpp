// The CUDA backend of a build without CUDA.
#include "kernels/ops/backends.h"

namespace tmamba {

std::unique_ptr<Ops> make_cuda_ops() {
  throw UserError("this build has no CUDA; build with -DTMAMBA_CUDA=ON, or set run.device = \"cpu\"");
}

}  // namespace tmamba
