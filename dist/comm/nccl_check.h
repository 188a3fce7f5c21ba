// Checks of NCCL calls and of CUDA runtime calls in this folder.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <string>

namespace tmamba {

// NCCL's description of an error and advice for the user. `comm` may be null.
std::string nccl_error_text(ncclResult_t code, ncclComm_t comm);

// Throw Error "WHERE: CALL failed: TEXT" unless the call succeeded.
void check_nccl(ncclResult_t code, const char* call, const std::string& where, ncclComm_t comm = nullptr);
void check_cuda(cudaError_t status, const char* call, const std::string& where);

}  // namespace tmamba
