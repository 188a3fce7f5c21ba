// Stream: owns a CUDA stream.
#pragma once

#include <utility>

#include "kernels/cuda/common/check.h"

namespace tmamba::cuda {

class Stream {
 public:
  // Synchronises with the default stream, so that blocking copies and new Buffers (kernels/base) are ordered with ops.
  Stream() { TM_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamDefault)); }
  ~Stream() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }
  void synchronize() const { TM_CUDA(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace tmamba::cuda
