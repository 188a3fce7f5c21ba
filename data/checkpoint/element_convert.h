// Conversion of stored elements between float32, float64 and bfloat16.
#pragma once

#include "kernels/base/dtype.h"

namespace tmamba {

// Whether elements of type `from` can be read as `to`.
bool convertible(DType from, DType to);

// to[i] = from[i] for i < count, to the nearest number (ties to even), bit for bit where the types are equal. Neither
// pointer needs to be aligned. Throws Error unless convertible(from_type, to_type).
void convert_elements(void* to, DType to_type, const void* from, DType from_type, int64_t count);

}  // namespace tmamba
