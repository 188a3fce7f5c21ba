// The verbs by which layers reach other ranks. They carry tensors between the ranks of a sequence (SequenceExchange)
// and between the shards of a layer (TensorExchange), know the layout and the order, and hide the transport; with one
// rank they vanish. Nothing else of `dist` but the layout is seen by the model.
//
// B sequences, n local tokens (this rank's segments back to back, ascending: dist/sequence/layout.h), s local segments,
// W taps, X channels before the convolution, H heads of this tensor-parallel rank, D head width, P local prefix tokens
// (those of the attention parts: the first rows of the local tokens), S keys from position 0, C model width, N rows.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <span>
#include <utility>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/comm/shard.h"
#include "dist/sequence/layout.h"
#include "dist/sequence/transport.h"
#include "kernels/base/buffer.h"

namespace tmamba {

// The arithmetic and copies that exchanges need, done by the caller's device. Tensors may be strided.
struct ExchangeOps {
  std::function<void(Tensor y, ConstTensor x)> copy;  // y = x
  std::function<void(Tensor y, ConstTensor x)> add;   // y += x
  std::function<void(Tensor x)> zero;                 // x = 0
  // Scan over K segments: in sequence order out_0 = 0, out_{k+1} = exp(decay_k) out_k + in_k; reversed out_{K-1} = 0,
  // out_{k-1} = exp(decay_k) out_k + in_k. in, out [K, B, H, E] [acc] (E: elements of a state, or of a slice of it),
  // decay [K, B, H]. The last in (reversed: the first) goes nowhere.
  std::function<void(Tensor out_KBHE, ConstTensor in_KBHE, ConstTensor decay_KBH, bool reverse)> scan;
};

// An exchange that has been started: its messages are under way while the caller computes. Until finish() its tensors
// and the staging memory that it took from `scratch` must be left alone; after that the caller rewinds `scratch` when
// it likes. Unfinished ones are waited for, or given up where an exception leaves their scope, by their Work.
class [[nodiscard]] Pending {
 public:
  using Works = std::vector<Work>;
  // One round: what to do when the messages of the round before have arrived, and which it issues.
  using Round = std::function<Works()>;

  Pending() = default;  // done
  // Starts the first round.
  explicit Pending(std::vector<Round> rounds) : rounds_(std::move(rounds)) { advance(); }

  // Issues the messages of the last round, waiting for those of the rounds before: an exchange of one round does
  // nothing, one of two needs it to hide its second. All ranks call it at the same place between other exchanges.
  void issue_last();
  void finish();

 private:
  void advance();

  std::vector<Round> rounds_;
  size_t next_ = 0;
  Works works_;
};

// A tensor cut in one of two ways: tokens_BnC has all columns of this rank's tokens, heads_BSc all tokens of this
// rank's c = C / R columns, the rank-th of R such pieces. `tokens` [S]: those of the sequence that the tensor has: all,
// or those before or from a TransPoint on.
struct HeadTensor {
  TokenRange tokens;
  Tensor heads_BSc;
  Tensor tokens_BnC;
};

class Staging;

// Exchanges along one sequence. Every rank of `sp` calls the same verbs in the same order with the same layers and
// transports; each verb starts an exchange. `scratch` lends staging memory; over a measuring arena a verb counts that
// memory and does nothing else.
class SequenceExchange {
 public:
  SequenceExchange(const SequenceLayout& layout, Communicator& sp, ExchangeOps ops);

  const SequenceLayout& layout() const { return layout_; }
  int rank() const { return sp_.rank(); }
  // This rank's segments, ascending.
  std::span<const Segment> segments() const { return layout_.segments_of(rank()); }
  int64_t local_tokens() const { return layout_.local_tokens(rank()); }

  // halo_sBWX[i] [B, W-1, X] = the rows before local segment i; zeros before the sequence.
  Pending conv_halo(Arena& scratch, Tensor halo_sBWX, ConstTensor pre_BnX);
  // Gradients of the halo rows go back to where the rows came from, and are added there.
  Pending conv_halo_backward(Arena& scratch, Tensor dpre_BnX, ConstTensor dhalo_sBWX);

  // Keys and values that the queries of this rank see in a layer: positions [0, S) of k_BSHD, v_BSHD, with
  // S = layout.layer(...).keys_needed(rank).end. k_BPHD, v_BPHD: those of the local prefix tokens; without any they are
  // views [B, 0, H, D], which tell the other sizes. Where this rank owns all keys it needs, k_BSHD and k_BPHD may be
  // the same memory. Ranks without queries pass empty k_BSHD, v_BSHD.
  Pending gather_keys(Arena& scratch, const LayerLayout& layer, KeyTransport transport, Tensor k_BSHD, Tensor v_BSHD,
                      ConstTensor k_BPHD, ConstTensor v_BPHD);
  // dk_BPHD, dv_BPHD (written over) = the sums over ranks, in rank order, of what they found for these tokens in
  // dk_BSHD, dv_BSHD. The same memory and the same empty views as in gather_keys are allowed.
  Pending return_key_gradients(Arena& scratch, const LayerLayout& layer, KeyTransport transport, Tensor dk_BPHD,
                               Tensor dv_BPHD, ConstTensor dk_BSHD, ConstTensor dv_BSHD);

  // inflow_sBHE[i] = the state before local segment i, from the summaries of all segments: state_sBHE[i] is what local
  // segment i adds with zero inflow, decay_sBH[i] its log-decay. Segments that need no inflow in this layer get zeros.
  // E = D * D elements of a state, key x value. decays_KBH gets the log-decays of all K segments of the sequence, which
  // the caller keeps for scan_adjoints.
  // The same K gives the same bits, for any number of ranks and either transport. Two rounds where sliced.
  Pending scan_states(Arena& scratch, const LayerLayout& layer, StateTransport transport, Tensor inflow_sBHE,
                      Tensor decays_KBH, ConstTensor state_sBHE, ConstTensor decay_sBH);
  // The same against the sequence: outflow_sBHE[i] = the gradient of the state after local segment i, from
  // adjoint_sBHE[i], the gradient that segment i delivers to the state before it with zero outflow (of segments that
  // deliver none it is not read), and from what scan_states of this layer left in decays_KBH.
  Pending scan_adjoints(Arena& scratch, const LayerLayout& layer, StateTransport transport, Tensor outflow_sBHE,
                        ConstTensor adjoint_sBHE, ConstTensor decays_KBH);

  // Head-parallel: every rank gives its tokens and gets its heads, or the other way round, of all tensors in one
  // all-to-all. All of one type.
  Pending to_heads(Arena& scratch, std::span<const HeadTensor> tensors);
  Pending to_tokens(Arena& scratch, std::span<const HeadTensor> tensors);

 private:
  using KeysAndValues = std::array<Tensor, 2>;
  using ConstKeysAndValues = std::array<ConstTensor, 2>;
  struct Scan;

  int64_t local_index(const Segment& segment) const { return layout_.spec().local_index(segment.index); }
  void check_sizes(const char* verb, const char* what, const ConstTensor& x,
                   std::initializer_list<int64_t> sizes) const;
  void check_keys(const char* verb, const LayerLayout& layer, const ConstKeysAndValues& needed,
                  const ConstKeysAndValues& local) const;

  // Elements that each rank holds of the keys and values inside [0, P).
  std::vector<int64_t> prefix_counts(const LayerLayout& layer, const ConstTensor& k_BPHD) const;
  Pending cast_keys(Staging staging, const LayerLayout& layer, const KeysAndValues& needed,
                    const ConstKeysAndValues& local);
  Pending all_gather_keys(Staging staging, const LayerLayout& layer, const KeysAndValues& needed,
                          const ConstKeysAndValues& local);
  Pending cast_key_gradients(Staging staging, const LayerLayout& layer, const KeysAndValues& local,
                             const ConstKeysAndValues& found);
  Pending reduce_key_gradients(Staging staging, const LayerLayout& layer, const KeysAndValues& local,
                               const ConstKeysAndValues& found);

  bool scans(const LayerLayout& layer) const;
  Pending start_scan(Staging staging, const Scan& scan);
  Pending gathered_scan(Staging staging, const Scan& scan);
  Pending sliced_scan(Staging staging, const Scan& scan);

  Pending transpose(Arena& scratch, std::span<const HeadTensor> tensors, bool heads_to_tokens);

  const SequenceLayout& layout_;
  Communicator& sp_;
  ExchangeOps ops_;
};

// Exchanges among the tensor-parallel shards of a layer. Between layers each rank holds the rows rows() of the residual
// stream; inside a layer all ranks see all N rows and compute their heads and channels. Tensors are contiguous. Views
// without memory (of a measuring arena) are left alone, on all ranks at once.
class TensorExchange {
 public:
  TensorExchange(Communicator& tp, int64_t rows, ExchangeOps ops);

  int rank() const { return tp_.rank(); }
  int size() const { return tp_.size(); }
  // Rows of the residual stream of this rank, [begin, end).
  TokenRange rows() const {
    const Slice slice = shard_of(total_, rank(), size());
    return {slice.begin, slice.end()};
  }
  // all = the rows of all ranks back to back; `mine` may be its place in `all`.
  void gather_rows(Tensor all_NC, ConstTensor mine_nC);
  // mine = this rank's rows of the sum over ranks, in rank order, of `partial`; `mine` may be its place in `partial`.
  void scatter_sum(Tensor mine_nC, ConstTensor partial_NC);
  // x = sum, or max, over ranks.
  void all_sum(Tensor x);
  void all_max(Tensor x);

 private:
  // Elements of each rank's rows of a tensor; throws Error unless it has all rows, and `piece` this rank's.
  std::vector<int64_t> counts(const char* verb, const ConstTensor& whole_NC, const ConstTensor& piece_nC) const;

  Communicator& tp_;
  int64_t total_;
  ExchangeOps ops_;
};

}  // namespace tmamba
