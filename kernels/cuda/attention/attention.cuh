// Shared by the attention kernels. There are three families: Hopper (wgmma; bfloat16, D = 64, 96, 128), portable
// (mma.sync; the same types and widths), and plain kernels without tensor cores (all types, even D). Query i is at
// position q_begin + i and attends to keys 0 .. q_begin + i.
#pragma once

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/tile_width.h"
#include "kernels/ops/ops.h"

namespace tmamba::cuda {

struct AttentionSizes {
  int64_t B, T, H, D, q_begin;
  double scale;
  bool aligned16;  // rows_aligned16() of all tensors

  int64_t keys() const { return q_begin + T; }
};

template <class A>
struct AttentionForwardViews {
  AttentionSizes size;
  Cubes<A> o;
  Planes<Acc<A>> lse;
  Cubes<const A> q, k, v;
};

template <class A>
struct AttentionBackwardViews {
  AttentionSizes size;
  Cubes<A> dq, dk, dv;
  Cubes<const A> d_o, o, q, k, v;
  Planes<const Acc<A>> lse;
  Acc<A>* delta_BHT;  // do . o
};

inline bool has_attention_tiles(DType dtype, int64_t D) { return dtype == DType::bf16 && is_tile_width(D); }

// The Hopper and the portable (tiles) kernels need has_attention_tiles().
void attention_forward_wgmma(cudaStream_t stream, const AttentionForwardViews<bf16_t>& f);
void attention_forward_tiles(cudaStream_t stream, const AttentionForwardViews<bf16_t>& f);
// `terms`: workspace of attention_backward_terms() floats. f.delta_BHT is not used.
int64_t attention_backward_terms(const AttentionSizes& s);
void attention_backward_wgmma(cudaStream_t stream, const AttentionBackwardViews<bf16_t>& f, float* terms);
void attention_backward_tiles(cudaStream_t stream, const AttentionBackwardViews<bf16_t>& f);

template <class A>
void attention_forward_plain(cudaStream_t stream, const AttentionForwardViews<A>& f);
template <class A>
void attention_backward_plain(cudaStream_t stream, const AttentionBackwardViews<A>& f);

}  // namespace tmamba::cuda
