#include "kernels/base/trace_range.h"

namespace tmamba {

TraceRange::TraceRange(const char*, int64_t) {}

TraceRange::~TraceRange() = default;

}  // namespace tmamba
