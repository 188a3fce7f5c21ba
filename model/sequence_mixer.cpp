#include "model/sequence_mixer.h"

#include <cmath>
#include <utility>

namespace tmamba {

Tensor qkv_heads(const Tensor& qkv_BnX, QkvChannel channel, int64_t begin, int64_t count, int64_t heads) {
  const int64_t width = exact_div(qkv_BnX.size(2), 3);
  return qkv_BnX.slice(1, begin, count)
      .slice(2, static_cast<int64_t>(channel) * width, width)
      .split(2, heads, exact_div(width, heads));
}

void step_sizes(Ops& ops, const SequenceMixerParams& w, const Tensor& dt_BnH, const Tensor& log_a_BnH,
                const Tensor& raw_BnH) {
  const int64_t N = raw_BnH.size(0) * raw_BnH.size(1), H = raw_BnH.size(2);
  ops.dt_forward({.dt_NH = dt_BnH.view({N, H}),
                  .log_a_NH = log_a_BnH.view({N, H}),
                  .raw_NH = raw_BnH.view({N, H}),
                  .bias_H = w.dt_bias_H,
                  .A_log_H = w.A_log_H});
}

double attention_scale(int64_t head_dim) { return 1.0 / std::sqrt(static_cast<double>(head_dim)); }

SequenceMixer::SequenceMixer(const ModelConfig& config, const LayerLayout& layer, Transport transport,
                             SequenceExchange& sequence, int64_t batch, int64_t heads, DType dtype, Recompute level)
    : config_(config),
      layer_(layer),
      transport_(transport),
      sequence_(sequence),
      batch_(batch),
      tokens_(sequence.local_tokens()),
      heads_(heads),
      head_dim_(config.head_dim()),
      dtype_(dtype),
      acc_(accumulate_type(dtype)),
      level_(level) {
  const auto segments = sequence.segments();
  for (size_t i = 0; i < segments.size(); ++i) {
    const TokenRange attention = layer.attention_part(segments[i]), ssm = layer.ssm_part(segments[i]);
    if (!attention.empty())
      attention_.push_back({i, attention.begin, segments[i].row(attention.begin), attention.size()});
    if (!ssm.empty()) ssm_.push_back({i, ssm.begin, segments[i].row(ssm.begin), ssm.size()});
    prefix_ += attention.size(), suffix_ += ssm.size();
  }
  keys_ = layer.keys_needed(sequence.rank()).end;
}

void SequenceMixer::allocate(const AllocationPlan& plan) {
  const int64_t B = batch_, n = tokens_, s = std::ssize(sequence_.segments()), H = heads_, D = head_dim_;
  plan.save_before(Recompute::all, pre_BnX_, {B, n, 3 * H * D}, dtype_);
  plan.save_before(Recompute::cheap, qkv_BnX_, {B, n, 3 * H * D}, dtype_);
  if (!single_segment()) plan.save(halo_sBWX_, {s, B, config_.conv - 1, 3 * H * D}, dtype_);
  if (separate_rotated_keys()) plan.save_before(Recompute::cheap, k_rot_BPHD_, {B, prefix_, H, D}, dtype_);
  plan.save(lse_BPH_, {B, prefix_, H}, acc_);
  if (!has_ssm()) return;
  plan.save_before(Recompute::all, raw_BnH_, {B, n, H}, dtype_);
  plan.save_before(Recompute::all, dt_BnH_, {B, n, H}, acc_);
  plan.save_before(Recompute::all, log_a_BnH_, {B, n, H}, acc_);
  if (!single_segment()) {
    plan.save(decays_KBH_, {std::ssize(sequence_.layout().segments()), B, H}, acc_);
    plan.save(inflow_sBHDD_, {s, B, H, D, D}, acc_);
  }
  if (suffix_ == 0) return;
  if (at_transpoint(ssm_.front())) plan.save(state_BHDD_, {B, H, D, D}, acc_);
  if (at_sequence_end(ssm_.back())) plan.save(final_state_BHDD_, {B, H, D, D}, acc_);
}

// A buffer for the keys, or values, that the queries of this rank attend to; empty without queries.
Tensor SequenceMixer::all_keys(Arena& scratch) const {
  return keys_ > 0 ? scratch.take({batch_, keys_, heads_, head_dim_}, dtype_) : Tensor();
}

Tensor SequenceMixer::flat_states(const Tensor& states_sBHDD) const {
  return states_sBHDD.view({states_sBHDD.size(0), batch_, heads_, head_dim_ * head_dim_});
}

Tensor SequenceMixer::of_segment(const Tensor& x, size_t segment) const {
  return single_segment() ? Tensor() : x.select(0, static_cast<int64_t>(segment));
}

Pending SequenceMixer::begin_forward(Arena& scratch) {
  return single_segment() ? Pending() : sequence_.conv_halo(scratch, halo_sBWX_, pre_BnX_);
}

void SequenceMixer::forward(Ops& ops, Arena& scratch, const SequenceMixerParams& w, Pending halo) {
  const size_t mark = scratch.used();
  compute_step_sizes(ops, w);
  halo.finish();
  convolve(ops, w);
  Keys keys = gather_keys(scratch);
  Pending inflow;
  if (has_ssm()) inflow = summarize_segments(ops, scratch);
  keys.arrival.finish();
  inflow.issue_last();
  attention_forward(ops, keys);
  inflow.finish();
  enter_ssm(ops);
  ssm_forward(ops, w);
  scratch.rewind(mark);
}

void SequenceMixer::recompute(Ops& ops, const SequenceMixerParams& w) {
  if (level_ == Recompute::none) return;
  const bool all = recomputes(level_, Recompute::all);
  if (all) compute_step_sizes(ops, w);
  convolve(ops, w);
  if (all) ssm_forward(ops, w);
}

void SequenceMixer::compute_step_sizes(Ops& ops, const SequenceMixerParams& w) {
  if (has_ssm()) step_sizes(ops, w, dt_BnH_, log_a_BnH_, raw_BnH_);
}

void SequenceMixer::convolve(Ops& ops, const SequenceMixerParams& w) {
  const auto segments = sequence_.segments();
  for (size_t i = 0; i < segments.size(); ++i) {
    ConvRopeForward args = convolution_args<ConvRopeForward>(w, i);
    args.y_BTC = qkv_BnX_.slice(1, segments[i].local_begin, segments[i].size());
    args.k_rot_BPHD = rotated_keys_of_segment(k_rot_BPHD_, segments[i]);
    ops.conv_silu_rope_forward(args);
  }
}

Tensor SequenceMixer::rotated_keys_of_segment(const Tensor& separate_BPHD, const Segment& segment) const {
  const int64_t count = layer_.attention_part(segment).size();
  return separate_rotated_keys() && count > 0 ? separate_BPHD.slice(1, segment.local_begin, count) : Tensor();
}

SequenceMixer::Keys SequenceMixer::gather_keys(Arena& scratch) {
  const Tensor local_k = rotated_keys(k_rot_BPHD_, qkv_BnX_);
  Keys keys{.k_BSHD = local_k, .v_BSHD = prefix_heads(qkv_BnX_, QkvChannel::v), .arrival = {}};
  if (!layer_.exchanges_keys()) return keys;
  const Tensor local_v = keys.v_BSHD;
  keys.k_BSHD = all_keys(scratch), keys.v_BSHD = all_keys(scratch);
  keys.arrival = sequence_.gather_keys(scratch, layer_, transport_.keys, keys.k_BSHD, keys.v_BSHD, local_k, local_v);
  return keys;
}

void SequenceMixer::attention_forward(Ops& ops, const Keys& keys) {
  for (const SegmentTokens& p : attention_) {
    ops.attention_forward({.o_BTHD = o_BPHD_.slice(1, p.row, p.count),
                           .lse_BTH = lse_BPH_.slice(1, p.row, p.count),
                           .q_BTHD = heads_of(qkv_BnX_, QkvChannel::q, p),
                           .k_BSHD = keys.k_BSHD.slice(1, 0, p.position + p.count),
                           .v_BSHD = keys.v_BSHD.slice(1, 0, p.position + p.count),
                           .q_begin = p.position,
                           .scale = attention_scale(head_dim_)});
  }
}

// Computes the state that each local segment adds, starting from zero, and its log-decay; then starts the scan over all
// segments of all ranks that returns the state before each segment. Prefix segments take part as the Memory Converter.
Pending SequenceMixer::summarize_segments(Ops& ops, Arena& scratch) {
  if (single_segment()) return {};
  const auto segments = sequence_.segments();
  const int64_t s = static_cast<int64_t>(segments.size());
  const Tensor state_sBHDD = scratch.take({s, batch_, heads_, head_dim_, head_dim_}, acc_);
  const Tensor decay_sBH = scratch.take({s, batch_, heads_}, acc_);
  for (int64_t i = 0; i < s; ++i) {
    const Segment& segment = segments[static_cast<size_t>(i)];
    const TokenRange tokens = exact() ? segment.range() : layer_.ssm_part(segment);
    if (tokens.empty()) {
      ops.fill({state_sBHDD.select(0, i), 0}), ops.fill({decay_sBH.select(0, i), 0});
      continue;
    }
    SsdForward args = scan_args<SsdForward>(segment.row(tokens.begin), tokens.size());
    args.final_state_BHKD = state_sBHDD.select(0, i), args.log_decay_BH = decay_sBH.select(0, i);
    ops.ssd_forward(args);
  }
  return sequence_.scan_states(scratch, layer_, transport_.state, flat_states(inflow_sBHDD_), decays_KBH_,
                               flat_states(state_sBHDD), decay_sBH);
}

// The Memory Converter within one segment: the scan over the prefix's own k and v without outputs (paper eq. 9).
void SequenceMixer::converter_forward(Ops& ops, const SegmentTokens& prefix) {
  SsdForward args = scan_args<SsdForward>(prefix.row, prefix.count);
  args.final_state_BHKD = state_BHDD_;
  args.initial_state_BHKD = of_segment(inflow_sBHDD_, prefix.segment);
  ops.ssd_forward(args);
}

// Computes the state that the first SSM tokens of the sequence start from, where this rank holds them.
void SequenceMixer::enter_ssm(Ops& ops) {
  if (ssm_.empty() || !at_transpoint(ssm_.front())) return;
  const SegmentTokens& p = ssm_.front();
  const bool splits = !attention_.empty() && attention_.back().segment == p.segment;
  if (splits && exact()) {
    converter_forward(ops, attention_.back());
  } else if (!single_segment() && exact()) {
    ops.copy({state_BHDD_, of_segment(inflow_sBHDD_, p.segment)});
  } else {
    ops.fill({state_BHDD_, 0});
  }
}

void SequenceMixer::ssm_forward(Ops& ops, const SequenceMixerParams& w) {
  for (const SegmentTokens& p : ssm_) {
    SsdForward args = scan_args<SsdForward>(p.row, p.count);
    args.y_BTHD = y_BSHD_.slice(1, p.row - prefix_, p.count);
    args.q_BTHD = heads_of(qkv_BnX_, QkvChannel::q, p), args.D_H = w.D_H;
    args.initial_state_BHKD = at_transpoint(p) ? state_BHDD_ : of_segment(inflow_sBHDD_, p.segment);
    if (at_sequence_end(p)) args.final_state_BHKD = final_state_BHDD_;
    ops.ssd_forward(args);
  }
}

}  // namespace tmamba
