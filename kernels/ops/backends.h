// The constructors of the backends, one per device. make_ops() alone calls them.
#pragma once

#include <memory>

#include "kernels/ops/ops.h"

namespace tmamba {

std::unique_ptr<Ops> make_cpu_ops();
// In a build without CUDA it throws UserError saying how to build with it; CMake picks the file that defines it.
std::unique_ptr<Ops> make_cuda_ops();

}  // namespace tmamba
