// Graph: a Recording as a CUDA graph, captured from a stream and launched on it.
#pragma once

#include <functional>

#include "kernels/base/recording.h"
#include "kernels/cuda/common/workspace.h"

namespace tmamba::cuda {

class Graph final : public Recording, private Recorder {
 public:
  // Captures the work that `issue` issues to the stream and to streams forked from it. The workspace must already be
  // large enough. Stream and workspace must outlive the graph.
  Graph(const Stream& stream, Workspace& workspace, const std::function<void()>& issue);
  ~Graph() override;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void replay() override;
  bool valid() const override { return workspace_.data() == workspace_at_; }

 private:
  const Stream& stream_;
  const Workspace& workspace_;
  const void* workspace_at_;
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace tmamba::cuda
