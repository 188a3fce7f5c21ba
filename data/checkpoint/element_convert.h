// Conversion of stored elements between float32, float64 and bfloat16.
#pragma once

#include "kernels/base/dtype.h"

namespace tmamba {

// Whether elements of type `from` can be read as `to`.
bool convertible(DType from, DType to);

// to[i] = from[i] for i < count, rounded to nearest even; equal types are copied bit for bit. The pointers need not be
// aligned. Throws Error unless convertible(from_type, to_type).
void convert_elements(void* to, DType to_type, const void* from, DType from_type, int64_t count);

}  // namespace tmamba
