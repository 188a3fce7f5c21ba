#include "dist/comm/nccl_check.h"

#include "kernels/base/check.h"

namespace tmamba {

namespace {

const char* advice(ncclResult_t code) {
  switch (code) {
    case ncclRemoteError:
      return "another rank exited or the network to it failed; check that rank's output first";
    case ncclSystemError:
      return "a system or network call failed; NCCL_DEBUG=WARN shows which one, and NCCL_SOCKET_IFNAME selects the "
             "network interface";
    case ncclUnhandledCudaError:
      return "a CUDA call failed, possibly out of memory or after an earlier error; NCCL_DEBUG=WARN shows which one";
    case ncclInternalError:
    case ncclInvalidArgument:
    case ncclInvalidUsage:
      return "set NCCL_DEBUG=WARN for details";
    default:
      return "";
  }
}

}  // namespace

std::string nccl_error_text(ncclResult_t code, ncclComm_t comm) {
  const char* detail = ncclGetLastError(comm);
  std::string text = ncclGetErrorString(code);
  if (detail != nullptr && *detail != '\0') text += str(" (", detail, ")");
  const std::string what_to_do = advice(code);
  return what_to_do.empty() ? text : text + "; " + what_to_do;
}

void check_nccl(ncclResult_t code, const char* call, const std::string& where, ncclComm_t comm) {
  if (code != ncclSuccess) throw Error(str(where, ": ", call, " failed: ", nccl_error_text(code, comm)));
}

void check_cuda(cudaError_t status, const char* call, const std::string& where) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears a recoverable error, so that it is not reported again
  throw Error(str(where, ": ", call, " failed: ", cudaGetErrorString(status)));
}

}  // namespace tmamba
