#include "kernels/cpu/denormals.h"

namespace tmamba {

FlushDenormals::FlushDenormals() = default;
FlushDenormals::~FlushDenormals() = default;

}  // namespace tmamba
