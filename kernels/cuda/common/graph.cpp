#include "kernels/cuda/common/graph.h"

namespace tmamba::cuda {

namespace {

// A stream capture. The destructor ends it if end() was not reached, since a capturing stream cannot be used otherwise.
class Capture {
 public:
  Capture(const Stream& stream, Workspace& workspace) : stream_(stream), workspace_(workspace) {
    // Thread-local: other threads of this process make CUDA calls meanwhile.
    TM_CUDA(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    workspace_.fix(true);
  }
  ~Capture() {
    workspace_.fix(false);
    cudaGraph_t graph = nullptr;
    if (!ended_ && cudaStreamEndCapture(stream_.get(), &graph) == cudaSuccess) cudaGraphDestroy(graph);
    if (!ended_) cudaGetLastError();
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  cudaGraph_t end() {
    cudaGraph_t graph = nullptr;
    ended_ = true;
    TM_CUDA(cudaStreamEndCapture(stream_.get(), &graph));
    return graph;
  }

 private:
  const Stream& stream_;
  Workspace& workspace_;
  bool ended_ = false;
};

}  // namespace

Graph::Graph(const Stream& stream, Workspace& workspace, const std::function<void()>& issue)
    : stream_(stream), workspace_(workspace), workspace_at_(workspace.data()) {
  Capture capture(stream, workspace);
  take_down(issue);
  const cudaGraph_t captured = capture.end();
  // Each kernel keeps the priority of its stream: communication runs before the work that it overlaps.
  const cudaError_t status = cudaGraphInstantiate(&graph_, captured, cudaGraphInstantiateFlagUseNodePriority);
  cudaGraphDestroy(captured);
  TM_CUDA(status);
  TM_CUDA(cudaGraphUpload(graph_, stream_.get()));
}

Graph::~Graph() {
  if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
}

void Graph::replay() {
  issued_again();
  TM_CUDA(cudaGraphLaunch(graph_, stream_.get()));
}

}  // namespace tmamba::cuda
