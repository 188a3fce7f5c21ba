// The communication of layers: between the ranks of a sequence (SequenceExchange) and between the shards of a layer
// (TensorExchange). The exchanges apply the layout and the transport, so that layers do not depend on either; with one
// rank they only copy. Layers use nothing else of `dist` but the layout.
//
// Dimensions: B sequences, n local tokens (this rank's segments, adjacent and ascending: dist/sequence/layout.h), s
// local segments, K segments of the sequence, W convolution taps, X channels before the convolution, H heads of this
// tensor-parallel rank, D head width, P local prefix tokens (of the attention parts: the first rows of the local
// tokens), S keys from position 0, C model width, N rows, E elements of a state.
//
// All functions throw Error if a tensor has the wrong sizes.
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

// The arithmetic and copies that exchanges need, implemented on the caller's device. Tensors may be strided.
struct ExchangeOps {
  std::function<void(Tensor y, ConstTensor x)> copy;  // y = x
  std::function<void(Tensor y, ConstTensor x)> add;   // y += x
  std::function<void(Tensor x)> zero;                 // x = 0
  // Exclusive scan over K segments. In sequence order: out_0 = 0, out_{k+1} = exp(decay_k) out_k + in_k. Reversed:
  // out_{K-1} = 0, out_{k-1} = exp(decay_k) out_k + in_k. in and out are [K, B, H, E] of the accumulation type, with E
  // the elements of a state or of a slice of it; decay is [K, B, H]. The last in (reversed: the first) is not used.
  std::function<void(Tensor out_KBHE, ConstTensor in_KBHE, ConstTensor decay_KBH, bool reverse)> scan;
};

// A started exchange, which overlaps with the caller's computation. Until finish() returns, its tensors and the staging
// memory that it took from `scratch` must not be touched; after that the caller may rewind `scratch`. The destructor
// waits for its messages, or abandons them during stack unwinding (see Work).
class [[nodiscard]] Pending {
 public:
  using Works = std::vector<Work>;
  // Runs when the messages of the previous round have arrived; returns the messages that it issues.
  using Round = std::function<Works()>;

  Pending() = default;  // already finished
  // Starts the first round.
  explicit Pending(std::vector<Round> rounds) : rounds_(std::move(rounds)) { advance(); }

  // Issues the messages of the last round, after waiting for the earlier rounds, so that the last round overlaps with
  // computation too. Does nothing for an exchange of one round. All ranks must call it at the same point in their order
  // of exchanges.
  void issue_last();
  // Waits for the exchange and runs its remaining rounds.
  void finish();

 private:
  void advance();

  std::vector<Round> rounds_;
  size_t next_ = 0;
  Works works_;
};

// A tensor sharded in one of two ways: tokens_BnC has all C columns of this rank's tokens; heads_BSc has all S tokens
// of this rank's c = C / R columns, shard `rank` of R. `tokens` are the S tokens of the sequence that the tensor
// covers: all of them, or those before a TransPoint, or those from it on.
struct HeadTensor {
  TokenRange tokens;
  Tensor heads_BSc;
  Tensor tokens_BnC;
};

class Staging;

// Exchanges along a sequence. Every rank of `sp` calls the same functions in the same order with the same layers and
// transports; each call starts an exchange. `scratch` provides staging memory. With a measuring arena a call only
// counts this memory.
class SequenceExchange {
 public:
  // `layout` and `sp` must outlive this object.
  SequenceExchange(const SequenceLayout& layout, Communicator& sp, ExchangeOps ops);

  const SequenceLayout& layout() const { return layout_; }
  int rank() const { return sp_.rank(); }
  // This rank's segments, ascending.
  std::span<const Segment> segments() const { return layout_.segments_of(rank()); }
  int64_t local_tokens() const { return layout_.local_tokens(rank()); }

  // halo_sBWX[i], [B, W-1, X] = the rows before local segment i; zeros before the start of the sequence.
  Pending conv_halo(Arena& scratch, Tensor halo_sBWX, ConstTensor pre_BnX);
  // Sends the gradients of the halo rows to the owners of the rows, which add them to dpre_BnX.
  Pending conv_halo_backward(Arena& scratch, Tensor dpre_BnX, ConstTensor dhalo_sBWX);

  // Fills k_BSHD and v_BSHD with the keys and values at positions [0, S) that the queries of this rank attend to, with
  // S = layer.keys_needed(rank).end. k_BPHD and v_BPHD are those of the local prefix tokens; without such tokens they
  // are views [B, 0, H, D], which define the other sizes. If this rank owns all keys it needs, k_BSHD and k_BPHD may be
  // the same memory (and v too). Ranks without queries pass empty k_BSHD and v_BSHD.
  Pending gather_keys(Arena& scratch, const LayerLayout& layer, KeyTransport transport, Tensor k_BSHD, Tensor v_BSHD,
                      ConstTensor k_BPHD, ConstTensor v_BPHD);
  // dk_BPHD and dv_BPHD = the sums over ranks, in rank order, of the gradients of these tokens in dk_BSHD and dv_BSHD.
  // Aliasing and empty views are allowed as in gather_keys.
  Pending return_key_gradients(Arena& scratch, const LayerLayout& layer, KeyTransport transport, Tensor dk_BPHD,
                               Tensor dv_BPHD, ConstTensor dk_BSHD, ConstTensor dv_BSHD);

  // inflow_sBHE[i] = the state before local segment i. state_sBHE[i] is the final state of local segment i for zero
  // inflow and decay_sBH[i] its log-decay. Segments that need no inflow in this layer get zeros. E = D * D (key x
  // value). decays_KBH receives the log-decays of all K segments, which the caller keeps for scan_adjoints. The same K
  // gives the same bits for any number of ranks and either transport. `sliced` has two rounds.
  Pending scan_states(Arena& scratch, const LayerLayout& layer, StateTransport transport, Tensor inflow_sBHE,
                      Tensor decays_KBH, ConstTensor state_sBHE, ConstTensor decay_sBH);
  // The reverse scan: outflow_sBHE[i] = the gradient of the state after local segment i. adjoint_sBHE[i] is the
  // gradient that local segment i contributes to its inflow for zero outflow; it is not read for segments that
  // contribute none. decays_KBH is as scan_states of this layer has filled it.
  Pending scan_adjoints(Arena& scratch, const LayerLayout& layer, StateTransport transport, Tensor outflow_sBHE,
                        ConstTensor adjoint_sBHE, ConstTensor decays_KBH);

  // Head-parallel transport: converts all tensors from token shards to head shards, or back, in one all-to-all. All
  // tensors have the same type.
  Pending to_heads(Arena& scratch, std::span<const HeadTensor> tensors);
  Pending to_tokens(Arena& scratch, std::span<const HeadTensor> tensors);

 private:
  using KeysAndValues = std::array<Tensor, 2>;
  using ConstKeysAndValues = std::array<ConstTensor, 2>;
  struct Scan;
  struct SlicedScan;
  struct HeadCounts {
    std::vector<int64_t> tokens;  // elements of this rank's tokens, by the rank that gets their columns
    std::vector<int64_t> heads;   // elements of this rank's columns, by the rank that owns the tokens
  };

  int64_t local_index(const Segment& segment) const { return layout_.spec().local_index(segment.index); }
  void check_sizes(const char* verb, const char* what, const ConstTensor& x,
                   std::initializer_list<int64_t> sizes) const;
  void check_keys(const char* verb, const LayerLayout& layer, const ConstKeysAndValues& needed,
                  const ConstKeysAndValues& local) const;

  // Number of elements of the keys and values inside [0, P) that each rank owns.
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

  // Checks the tensors and counts the elements that this rank exchanges with each rank.
  HeadCounts count_heads(const char* verb, std::span<const HeadTensor> tensors) const;
  Pending transpose(Arena& scratch, std::span<const HeadTensor> tensors, bool heads_to_tokens);

  const SequenceLayout& layout_;
  Communicator& sp_;
  ExchangeOps ops_;
};

// Exchanges among the tensor-parallel shards of a layer. Between layers each rank owns the rows rows() of the residual
// stream (Megatron's sequence parallelism); inside a layer each rank has all N rows and computes its heads and
// channels. Tensors are contiguous. Views without memory (of a measuring arena) are ignored, which all ranks must do
// together.
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
  // all = the rows of all ranks in rank order (all-gather). `mine` may be its own slice of `all`.
  void gather_rows(Tensor all_NC, ConstTensor mine_nC);
  // mine = this rank's rows of the sum of `partial` over ranks (reduce-scatter). `mine` may be its own slice of
  // `partial`.
  void scatter_sum(Tensor mine_nC, ConstTensor partial_NC);
  // x = sum, or maximum, over ranks (all-reduce).
  void all_sum(Tensor x);
  void all_max(Tensor x);

 private:
  // Number of elements of each rank's rows. Throws Error unless `all` has all rows and `mine` this rank's.
  std::vector<int64_t> counts(const char* verb, const ConstTensor& all_NC, const ConstTensor& mine_nC) const;

  Communicator& tp_;
  int64_t total_;
  ExchangeOps ops_;
};

}  // namespace tmamba
