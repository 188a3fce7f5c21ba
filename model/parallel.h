// The other ranks as seen by the model on one rank: how sequences are split, and the exchanges along the two axes that
// share a layer's work.
#pragma once

#include <memory>
#include <vector>

#include "dist/comm/self_communicator.h"
#include "dist/sequence/exchange.h"
#include "dist/sequence/layout.h"
#include "kernels/ops/ops.h"

namespace tmamba {

// The arithmetic that exchanges need, computed by `ops`.
ExchangeOps exchange_ops(Ops& ops);

class ModelRanks {
 public:
  // Sequences of layout.tokens tokens, `batch` at a time. `transports`: one for each layer, or one for all layers. Ops
  // and communicators must outlive this.
  ModelRanks(const LayoutSpec& layout, int64_t batch, Ops& ops, Communicator& sp, Communicator& tp,
             std::vector<Transport> transports = {Transport{}});
  ModelRanks(const ModelRanks&) = delete;
  ModelRanks& operator=(const ModelRanks&) = delete;

  const SequenceLayout& layout() const { return layout_; }
  // The transport of a layer; the default where one rank holds the sequence.
  Transport transport(int layer) const;
  SequenceExchange& sequence() { return sequence_; }
  // The exchange of a rank that holds the whole sequence, as every rank does inside a head-parallel layer.
  SequenceExchange& whole() { return whole_; }
  TensorExchange& tensor() { return tensor_; }
  int64_t batch() const { return batch_; }
  // Tokens of each sequence on this rank, n.
  int64_t local_tokens() const { return sequence_.local_tokens(); }

  // Copies this rank's tokens of whole sequences: local_Bn from whole_BT, int32 on the host, both contiguous.
  void shard(const Tensor& local_Bn, const ConstTensor& whole_BT) const;

 private:
  SequenceLayout layout_, whole_layout_;
  SelfCommunicator alone_{"alone"};
  SequenceExchange sequence_, whole_;
  std::vector<Transport> transports_;
  int64_t batch_;
  TensorExchange tensor_;
};

}  // namespace tmamba
