#include "dist/planner/cost_memory.h"

#include <algorithm>

namespace tmamba {

namespace {

double number(int64_t n) { return static_cast<double>(n); }

// Sizes that the tensors of a mixer are made of, in bytes, whole micro-batch, all heads.
struct Sizes {
  Sizes(const PlanDims& dims, int64_t transpoint)
      : row(number(dims.batch * dims.inner() * dims.activation_bytes)),
        raw(number(dims.batch * dims.heads * dims.activation_bytes)),
        stat(number(dims.batch * dims.heads * dims.state_bytes)),
        state(stat * number(dims.head_dim * dims.head_dim)),
        gate(dims.z_gate ? 1 : 0),
        segments(number(int64_t{dims.fold} * dims.grain)),
        all_segments(segments * dims.sp),
        halo(segments * number(dims.conv_width - 1) * 3 * row),
        scans(transpoint < dims.tokens),
        alone(all_segments == 1) {}

  // Rotated keys lie beside the plain ones where the converter needs those.
  double keys_apart() const { return scans ? 1 : 0; }

  double row;    // of one token: q, k, v or any other tensor as wide as the heads
  double raw;    // of one token: a number per head
  double stat;   // of one token: the same in the type of sums
  double state;  // the states of all heads
  double gate;
  double segments, all_segments;  // of this rank, of the sequence
  double halo;                    // rows before this rank's segments
  bool scans, alone;
};

// Above every level: what is kept at all of them.
constexpr auto kNever = static_cast<Recompute>(kRecomputeLevels.size());

// What the scan over segments stages, in states: its input, output and messages (dist/sequence/exchange_states.cpp).
double staged_states(const Sizes& z, const Transport& transport) {
  return transport.state == StateTransport::sliced ? 6 * z.segments : 3 * z.all_segments;
}

// Gathered keys and values, their gradients, and the messages of both, in rows (dist/sequence/exchange_keys.cpp).
double key_rows(const PlanDims& dims, const RankWork& work, const RankTraffic& traffic, const Transport& transport,
                int64_t transpoint) {
  const double received = number(traffic.key_tokens_cast), own = number(work.attention_tokens);
  const double seen = own > 0 ? own + received : 0;
  if (transport.keys == KeyTransport::gather) return 4 * seen + 4 * number(transpoint);
  // Of several sequences the tokens of a segment do not lie together: they are packed.
  const bool packs = dims.batch > 1;
  return 4 * seen + (packs ? 4 : 0) * received + (packs ? 2 : 1) * own + 2 * number(traffic.key_grad_tokens_cast);
}

// Gradients of q, k and v, of the rotated keys, of step sizes and of the state, of `tokens` tokens.
double gradient_bytes(const Sizes& z, double tokens, double prefix) {
  return z.row * (3 * tokens + z.keys_apart() * prefix) + (z.scans ? 2 * z.stat * tokens + z.state : 0);
}

}  // namespace

double LayerBytes::shared(Recompute level, int tp) const {
  const double of_mixer = mixer.on(tp), of_mlp = mlp.on(tp);
  return level == Recompute::all ? of_mixer + of_mlp : std::max(of_mixer, of_mlp);
}

LayerBytes layer_bytes(const PlanDims& dims, const RankWork& work, const Transport& transport, int64_t transpoint) {
  const Sizes z(dims, transpoint);
  const bool by_heads = transport.head_parallel && dims.sp > 1;
  const double e = number(dims.activation_bytes), s = number(dims.state_bytes), tokens = number(work.tokens);
  const double rows = tokens * number(dims.batch), d = number(dims.dim) * e, f = number(dims.ffn) * e;
  const double prefix = number(work.attention_tokens), suffix = number(work.ssm_tokens);
  // Of the rows that this rank mixes.
  const double mixed_prefix = by_heads ? number(transpoint) / dims.sp : prefix;
  LayerBytes bytes;
  const auto keep_below = [&](Recompute again, SplitBytes& shared, double divided, double whole = 0) {
    (dims.recompute < again ? bytes.kept : shared) += {divided, whole};
  };
  const auto keep = [&](double divided) { bytes.kept += {divided, 0}; };
  // Residuals and the statistics of their norms; the norms; the MLP's gate, up and product.
  keep(rows * (d + s));
  keep_below(Recompute::all, bytes.mixer, rows * (d + s));
  keep_below(Recompute::cheap, bytes.mixer, 0, rows * d);
  keep_below(Recompute::cheap, bytes.mlp, 0, rows * d);
  keep_below(Recompute::mlp, bytes.mlp, rows * 2 * f);
  keep_below(Recompute::cheap, bytes.mlp, rows * f);
  // q, k, v before and after the convolution, rotated keys, row sums, step sizes and decays.
  keep_below(Recompute::all, bytes.mixer, z.row * 3 * tokens + (z.scans ? tokens * (z.raw + 2 * z.stat) : 0));
  keep_below(Recompute::cheap, bytes.mixer, z.row * (3 * tokens + z.keys_apart() * mixed_prefix));
  keep(z.stat * mixed_prefix);
  // The mixed outputs and what they are made of: attention outputs, apart where there are others; gate and outputs of
  // the scan.
  const Recompute o = by_heads ? Recompute::all : kNever;
  keep_below(suffix > 0 ? Recompute::cheap : o, bytes.mixer, z.row * tokens);
  if (suffix > 0 && dims.recompute > Recompute::none) keep_below(o, bytes.mixer, z.row * prefix);
  keep_below(Recompute::all, bytes.mixer, z.row * suffix * (1 + z.gate));
  keep_below(Recompute::cheap, bytes.mixer, z.stat * suffix);
  if (by_heads) {
    keep(z.row * mixed_prefix);
    keep_below(Recompute::none, bytes.mixer, z.row * (tokens - mixed_prefix));
    if (z.scans) keep(2 * z.state / dims.sp);
    return bytes;
  }
  if (z.scans && suffix > 0) keep(z.state);
  if (!z.alone) keep(z.halo + (z.scans ? z.all_segments * z.stat + z.segments * z.state : 0));
  return bytes;
}

SplitBytes kept_behind_layers(const PlanDims& dims, int64_t tokens) {
  const double rows = number(tokens * dims.batch), d = number(dims.dim * dims.activation_bytes);
  return {.divided = rows * (d + number(dims.state_bytes)), .whole = rows * d};
}

double mixer_scratch_bytes(const PlanDims& dims, const RankWork& work, const RankTraffic& traffic,
                           const Transport& transport, int64_t transpoint) {
  const Sizes z(dims, transpoint);
  const double tokens = number(work.tokens), prefix = number(work.attention_tokens), suffix = number(work.ssm_tokens);
  // Gradients of the projections' outputs and of the mixed outputs.
  double bytes = z.row * (4 * tokens + (1 + z.gate) * suffix) + (z.scans ? z.raw * tokens : 0);
  if (transport.head_parallel && dims.sp > 1) {
    // Outputs and inputs by heads, messages of both; then all tokens of this rank's heads.
    const double share = 1.0 / dims.sp, all = number(dims.tokens) * share;
    bytes += z.row * 4 * all + (z.scans ? z.raw * all : 0) + 2 * z.row * all;
    bytes += 2 * (z.row * 3 + (z.scans ? z.raw : 0)) * all;
    return bytes + z.row * (3 * all + z.keys_apart() * number(transpoint) * share) +
           (z.scans ? 2 * z.stat * all + z.state * share : 0);
  }
  bytes += gradient_bytes(z, tokens, prefix);
  if (z.alone) return bytes;
  bytes += 2 * z.halo;
  if (z.scans) bytes += z.state * (2 * z.segments + (dims.sp > 1 ? staged_states(z, transport) : 0));
  const bool exchanges_keys = dims.sp > 1 && number(traffic.key_tokens_gather) + prefix > 0 && transpoint > 0;
  if (exchanges_keys) bytes += z.row * key_rows(dims, work, traffic, transport, transpoint);
  return bytes;
}

double scratch_bytes(const PlanDims& dims, int64_t tokens, double mixer_scratch) {
  const double e = number(dims.activation_bytes), rows = number(tokens * dims.batch);
  const double mlp = 3 * number(dims.ffn) * rows * e / dims.tp;
  const double head_rows = std::min(rows, std::max(64.0, 8 * number(dims.dim) * rows / number(dims.vocab) + 32));
  const double head = e * head_rows * number(dims.vocab) / dims.tp;  // head_chunk_rows (model/loss.h)
  return 2 * e * rows * number(dims.dim) + std::max({mixer_scratch / dims.tp, mlp, head});
}

}  // namespace tmamba
