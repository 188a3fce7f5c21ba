// TraceRange: a named range of host time in a profiler's timeline (NVTX, shown by Nsight Systems). Ranges nest. A
// profiler projects them to the kernels and copies that the thread issues meanwhile; a replayed recording has no ranges
// inside. A build without CUDA has empty functions; without a profiler attached a range costs two indirect calls.
#pragma once

#include <cstdint>

namespace tmamba {

class TraceRange {
 public:
  // `name` must outlive the range; `index` (a step, a layer) is shown beside it.
  explicit TraceRange(const char* name, int64_t index = 0);
  ~TraceRange();
  TraceRange(const TraceRange&) = delete;
  TraceRange& operator=(const TraceRange&) = delete;
};

}  // namespace tmamba
