#include "dist/comm/nccl_check.h"

#include "kernels/base/check.h"

namespace tmamba {

namespace {

const char* advice(ncclResult_t code) {
  switch (code) {
    case ncclRemoteError:
      return "another rank ended, or the network to it broke; what that rank printed comes first";
    case ncclSystemError:
      return "a call of the operating system or the network failed; NCCL_DEBUG=WARN shows which, and "
             "NCCL_SOCKET_IFNAME "
             "chooses the network";
    case ncclUnhandledCudaError:
      return "a call of CUDA failed, perhaps for memory or because of an earlier error; NCCL_DEBUG=WARN shows which";
    case ncclInternalError:
    case ncclInvalidArgument:
    case ncclInvalidUsage:
      return "NCCL_DEBUG=WARN shows more";
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
  cudaGetLastError();  // an error that can be recovered from is not reported twice
  throw Error(str(where, ": ", call, " failed: ", cudaGetErrorString(status)));
}

}  // namespace tmamba
