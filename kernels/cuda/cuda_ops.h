// class CudaOps: every op on one NVIDIA GPU (compute capability 8.0 or later), in bfloat16 and float32; also in float64
// if a kernel's tiles fit in shared memory. All work is issued to one stream, no op waits for the device, and no memory
// is allocated after each op of a step has run once (Workspace). Each folder holds a group of ops.
//
// Ops run on the device that was current when CudaOps was constructed; it must be current in the calling thread.
#pragma once

#include "kernels/cuda/common/graph.h"
#include "kernels/cuda/common/workspace.h"
#include "kernels/cuda/gemm/gemm.h"
#include "kernels/ops/ops.h"

namespace tmamba::cuda {

class CudaOps final : public Ops {
 public:
  // Throws UserError if there is no such GPU.
  CudaOps();
  Device device() const override { return Device::cuda; }
  void synchronize() override { stream_.synchronize(); }

  cudaStream_t stream() const { return stream_.get(); }
  void* native_stream() const override { return stream_.get(); }
  Workspace& workspace() { return workspace_; }

  void measure_choices(bool on) override { gemm_.measure(on); }
  std::string choices() const override { return gemm_.choices(); }
  void use_choices(const std::string& text) override { gemm_.use_choices(text); }

  std::unique_ptr<Recording> record(const std::function<void()>& issue) override {
    return std::make_unique<Graph>(stream_, workspace_, issue);
  }

  // The SSD ops check `chunk`, but their kernels choose the chunks: the numbers are those of the recurrence.
  TMAMBA_FOR_EACH_OP(TMAMBA_OVERRIDE_OP)

 private:
  Stream stream_;
  Workspace workspace_;
  Gemm gemm_;
};

}  // namespace tmamba::cuda
