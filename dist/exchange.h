// The verbs by which layers reach other ranks. They carry tensors between the ranks of a sequence (SequenceExchange) and
// between the shards of a layer (TensorExchange), know the layout and the order, and hide the transport; with one rank
// they vanish. Nothing else of `dist` but the layout is seen by the model.
//
// B sequences, n local tokens (this rank's segments back to back, ascending: dist/layout.h), s local segments, W taps,
// X channels before the convolution, H heads of this tensor-parallel rank, D head width, P local prefix tokens (those of
// the attention parts: the first rows of the local tokens), S keys from position 0, C model width, N rows.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "dist/communicator.h"
#include "dist/layout.h"
#include "kernels/base/buffer.h"

namespace tmamba {

// The arithmetic and copies that exchanges need, done by the caller's device. Tensors may be strided.
struct ExchangeOps {
  std::function<void(Tensor y, ConstTensor x)> copy;  // y = x
  std::function<void(Tensor y, ConstTensor x)> add;   // y += x
  std::function<void(Tensor x)> zero;                 // x = 0
  // Scan over K segments: in sequence order out_0 = 0, out_{k+1} = exp(decay_k) out_k + in_k; reversed out_{K-1} = 0,
  // out_{k-1} = exp(decay_k) out_k + in_k. in, out [K, B, H, E] [acc] (E: elements of a state, or of a slice of it),
  // decay [K, B, H].
  std::function<void(Tensor out_KBHE, ConstTensor in_KBHE, ConstTensor decay_KBH, bool reverse)> scan;
};

enum class KeyRoute : uint8_t { group_cast, gather };
enum class StateRoute : uint8_t { all_gather, sliced };

// Exchanges along one sequence. Every rank of `sp` calls the same verbs in the same order with the same layers. `scratch`
// lends staging memory until a verb is done; a measuring arena makes every verb count that memory and do nothing else.
class SequenceExchange {
 public:
  SequenceExchange(const SequenceLayout& layout, Communicator& sp, ExchangeOps ops, KeyRoute keys, StateRoute states);

  const SequenceLayout& layout() const { return layout_; }
  int rank() const { return sp_.rank(); }
  // This rank's segments, ascending.
  std::span<const Segment> segments() const { return layout_.segments_of(rank()); }
  int64_t local_tokens() const { return layout_.local_tokens(rank()); }

  // halo_sBWX[i] [B, W-1, X] = the rows before local segment i; zeros before the sequence.
  void conv_halo(Arena& scratch, Tensor halo_sBWX, ConstTensor pre_BnX);
  // Gradients of the halo rows go back to where the rows came from, and are added there.
  void conv_halo_backward(Arena& scratch, Tensor dpre_BnX, ConstTensor dhalo_sBWX);

  // Keys and values that the queries of this rank see in a layer: positions [0, S) of k_BSHD, v_BSHD, with
  // S = layout.layer(...).keys_needed(rank).end. k_BPHD, v_BPHD: those of the local prefix tokens. Where this rank owns all
  // of them the views may be the same memory. Ranks without queries pass empty k_BSHD, v_BSHD.
  void gather_keys(Arena& scratch, const LayerLayout& layer, Tensor k_BSHD, Tensor v_BSHD, ConstTensor k_BPHD, ConstTensor v_BPHD);
  // dk_BPHD, dv_BPHD (written over) = the sums over ranks, in rank order, of what they found for these tokens in
  // dk_BSHD, dv_BSHD.
  void return_key_gradients(Arena& scratch, const LayerLayout& layer, Tensor dk_BPHD, Tensor dv_BPHD, ConstTensor dk_BSHD,
                            ConstTensor dv_BSHD);

  // inflow_sBHE[i] = the state before local segment i, from the summaries of all segments: state_sBHE[i] is what local
  // segment i adds with zero inflow, decay_sBH[i] its log-decay. Segments that need no inflow in this layer get zeros.
  // E = D * D elements of a state, key x value.
  void scan_states(Arena& scratch, const LayerLayout& layer, Tensor inflow_sBHE, ConstTensor state_sBHE, ConstTensor decay_sBH);
  // The same against the sequence: outflow_sBHE[i] = the gradient of the state after local segment i, from
  // adjoint_sBHE[i], the gradient that segment i delivers to the state before it with zero outflow.
  void scan_adjoints(Arena& scratch, const LayerLayout& layer, Tensor outflow_sBHE, ConstTensor adjoint_sBHE, ConstTensor decay_sBH);

 private:
  const SequenceLayout& layout_;
  Communicator& sp_;
  ExchangeOps ops_;
  KeyRoute keys_;
  StateRoute states_;
};

// Exchanges among the tensor-parallel shards of a layer. Between layers each rank holds the rows rows() of the residual
// stream; inside a layer all ranks see all N rows and compute their heads and channels.
class TensorExchange {
 public:
  TensorExchange(Communicator& tp, int64_t rows);

  int rank() const { return tp_.rank(); }
  int size() const { return tp_.size(); }
  // Rows of the residual stream of this rank, [begin, end).
  TokenRange rows() const { return even_slice(total_, size(), rank()); }
  // all = the rows of all ranks back to back; `mine` may be its place in `all`.
  void gather_rows(Tensor all_NC, ConstTensor mine_nC);
  // mine = this rank's rows of the sum over ranks, in rank order, of `partial`.
  void scatter_sum(Tensor mine_nC, ConstTensor partial_NC);
  // x = sum, or max, over ranks.
  void all_sum(Tensor x);
  void all_max(Tensor x);

 private:
  std::vector<int64_t> counts(int64_t width) const;

  Communicator& tp_;
  int64_t total_;
};

}  // namespace tmamba
