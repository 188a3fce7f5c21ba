// Attention backward on Hopper: prepares lse and do . o for the two gradient kernels, and launches all three.
#include <limits>

#include "kernels/cuda/attention/attention_wgmma_backward.cuh"

namespace tmamba::cuda {

namespace {

constexpr int kRowLanes = 16, kRowThreads = 256;  // 16 lanes per query and head, heads side by side

__global__ void __launch_bounds__(kRowThreads) row_terms_kernel(BackwardArgs args) {
  const AttentionBackwardViews<bf16_t>& f = args.f;
  const AttentionSizes& s = f.size;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kRowThreads / kRowLanes) + threadIdx.x / kRowLanes;
  if (i >= s.B * args.pitch * s.H) return;  // whole warps: pitch is even
  const DivMod head(i, s.H), token(head.quotient, args.pitch);
  const int64_t b = token.quotient, t = token.remainder, h = head.remainder;
  const int64_t c = threadIdx.x % kRowLanes * 8;
  float sum = 0;
  if (t < s.T && c < s.D) {
    const auto d_o = load(f.d_o.at(b, t, h) + c, 8, s.aligned16), o = load(f.o.at(b, t, h) + c, 8, s.aligned16);
#pragma unroll
    for (int e = 0; e < 8; ++e) sum += d_o[e] * o[e];
  }
  sum = warp_sum<kRowLanes>(sum);
  if (c != 0) return;
  const int64_t place = (b * s.H + h) * args.pitch + t;
  args.delta[place] = sum;
  args.lse[place] = t < s.T ? f.lse.at(b, t)[h] * kLog2e : std::numeric_limits<float>::infinity();
}

int64_t pitch_of(const AttentionSizes& s) { return round_up(s.T, kQueryTile); }

template <int D>
void run(cudaStream_t stream, const AttentionBackwardViews<bf16_t>& f, float* terms) {
  const int64_t pitch = pitch_of(f.size), rows = f.size.B * f.size.H * pitch;
  const BackwardArgs args{f, {}, terms, terms + rows, pitch, {}, {}, {}, {}};
  launch(stream, {ceil_div(rows, kRowThreads / kRowLanes)}, kRowThreads, 0, row_terms_kernel, args);
  wgmma_key_gradient<D>(stream, args);
  wgmma_query_gradient<D>(stream, args);
}

}  // namespace

int64_t attention_backward_terms(const AttentionSizes& s) { return 2 * s.B * s.H * pitch_of(s); }

void attention_backward_wgmma(cudaStream_t stream, const AttentionBackwardViews<bf16_t>& f, float* terms) {
  dispatch_tile_width(f.size.D, [&]<int kD>() { run<kD>(stream, f, terms); });
}

}  // namespace tmamba::cuda
