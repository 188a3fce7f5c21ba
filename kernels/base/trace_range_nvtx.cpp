#include <nvtx3/nvToolsExt.h>

#include "kernels/base/trace_range.h"

namespace tmamba {

namespace {

nvtxDomainHandle_t domain() {
  static const nvtxDomainHandle_t handle = nvtxDomainCreateA("transmamba");
  return handle;
}

}  // namespace

TraceRange::TraceRange(const char* name, int64_t index) {
  nvtxEventAttributes_t event{};
  event.version = NVTX_VERSION, event.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  event.messageType = NVTX_MESSAGE_TYPE_ASCII, event.message.ascii = name;
  event.payloadType = NVTX_PAYLOAD_TYPE_INT64, event.payload.llValue = index;
  nvtxDomainRangePushEx(domain(), &event);
}

TraceRange::~TraceRange() { nvtxDomainRangePop(domain()); }

}  // namespace tmamba
