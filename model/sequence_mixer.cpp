#include "model/sequence_mixer.h"

#include <cmath>
#include <utility>

namespace tmamba {

SequenceMixer::SequenceMixer(const ModelConfig& config, const LayerLayout& layer, Transport transport,
                             SequenceExchange& sequence, int64_t batch, int64_t heads, DType dtype, Tensor o_BPHD,
                             Tensor y_BSHD, Arena& saved)
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
      o_BPHD_(o_BPHD),
      y_BSHD_(y_BSHD) {
  const auto segments = sequence.segments();
  for (size_t i = 0; i < segments.size(); ++i) {
    const TokenRange attention = layer.attention_part(segments[i]), ssm = layer.ssm_part(segments[i]);
    if (!attention.empty())
      attention_.push_back({i, attention.begin, segments[i].row(attention.begin), attention.size()});
    if (!ssm.empty()) ssm_.push_back({i, ssm.begin, segments[i].row(ssm.begin), ssm.size()});
    prefix_ += attention.size(), suffix_ += ssm.size();
  }
  keys_ = layer.keys_needed(sequence.rank()).end;

  const int64_t B = batch, n = tokens_, s = static_cast<int64_t>(segments.size()), H = heads_, D = head_dim_;
  pre_BnX_ = saved.take({B, n, 3 * H * D}, dtype);
  qkv_BnX_ = saved.take({B, n, 3 * H * D}, dtype);
  if (!alone()) halo_sBWX_ = saved.take({s, B, config.conv - 1, 3 * H * D}, dtype);
  k_rot_BPHD_ = saved.take({B, prefix_, H, D}, dtype);
  lse_BPH_ = saved.take({B, prefix_, H}, acc_);
  if (!has_ssm()) return;
  raw_BnH_ = saved.take({B, n, H}, dtype);
  dt_BnH_ = saved.take({B, n, H}, acc_);
  log_a_BnH_ = saved.take({B, n, H}, acc_);
  if (!alone()) {
    decays_KBH_ = saved.take({static_cast<int64_t>(sequence.layout().segments().size()), B, H}, acc_);
    inflow_sBHDD_ = saved.take({s, B, H, D, D}, acc_);
  }
  if (suffix_ == 0) return;
  if (ssm_.front().position == layer.transpoint()) state_BHDD_ = saved.take({B, H, D, D}, acc_);
  if (ssm_.back().position + ssm_.back().count == sequence.layout().tokens())
    final_state_BHDD_ = saved.take({B, H, D, D}, acc_);
}

Tensor SequenceMixer::part(const Tensor& qkv_BnX, int64_t which, int64_t begin, int64_t count) const {
  const int64_t width = heads_ * head_dim_;
  return qkv_BnX.slice(1, begin, count).slice(2, which * width, width).split(2, heads_, head_dim_);
}

// Room for the keys, or values, that the queries of this rank see; none without queries.
Tensor SequenceMixer::all_keys(Arena& scratch) const {
  return keys_ > 0 ? scratch.take({batch_, keys_, heads_, head_dim_}, dtype_) : Tensor();
}

Tensor SequenceMixer::flat_states(const Tensor& states_sBHDD) const {
  return states_sBHDD.view({states_sBHDD.size(0), batch_, heads_, head_dim_ * head_dim_});
}

Tensor SequenceMixer::of_segment(const Tensor& x_sBHDD, size_t segment) const {
  return alone() ? Tensor() : x_sBHDD.select(0, static_cast<int64_t>(segment));
}

Pending SequenceMixer::begin_forward(Arena& scratch) {
  return alone() ? Pending() : sequence_.conv_halo(scratch, halo_sBWX_, pre_BnX_);
}

void SequenceMixer::forward(Ops& ops, Arena& scratch, const SequenceMixerParams& w, Pending halo) {
  const int64_t N = batch_ * tokens_, H = heads_;
  const size_t mark = scratch.used();
  if (has_ssm()) {
    ops.dt_forward(dt_BnH_.view({N, H}), log_a_BnH_.view({N, H}), raw_BnH_.view({N, H}), w.dt_bias_H, w.A_log_H);
  }
  halo.finish();
  convolve(ops, w);
  for (const Part& p : attention_) {
    ops.rope_forward(k_rot_BPHD_.slice(1, p.row, p.count), part(qkv_BnX_, 1, p.row, p.count), p.position,
                     config_.rope_theta);
  }
  Keys keys = gather_keys(scratch);
  Pending inflow;
  if (has_ssm()) inflow = summarize_segments(ops, scratch);
  for (const Part& p : attention_) {
    const Tensor q = part(qkv_BnX_, 0, p.row, p.count);
    ops.rope_forward(q, q, p.position, config_.rope_theta);
  }
  keys.arrival.finish();
  inflow.issue_last();
  attention_forward(ops, keys);
  inflow.finish();
  ssm_forward(ops, w);
  scratch.rewind(mark);
}

void SequenceMixer::convolve(Ops& ops, const SequenceMixerParams& w) {
  int64_t i = 0;
  for (const Segment& s : sequence_.segments()) {
    const Tensor halo = alone() ? Tensor() : halo_sBWX_.select(0, i++);
    ops.conv_silu_forward(qkv_BnX_.slice(1, s.local_begin, s.size()), pre_BnX_.slice(1, s.local_begin, s.size()), halo,
                          w.conv_XW, w.conv_bias_X);
  }
}

SequenceMixer::Keys SequenceMixer::gather_keys(Arena& scratch) {
  Keys keys{.k_BSHD = k_rot_BPHD_, .v_BSHD = part(qkv_BnX_, 2, 0, prefix_), .arrival = {}};
  if (!layer_.exchanges_keys()) return keys;
  const Tensor local_v = keys.v_BSHD;
  keys.k_BSHD = all_keys(scratch), keys.v_BSHD = all_keys(scratch);
  keys.arrival =
      sequence_.gather_keys(scratch, layer_, transport_.keys, keys.k_BSHD, keys.v_BSHD, k_rot_BPHD_, local_v);
  return keys;
}

void SequenceMixer::attention_forward(Ops& ops, const Keys& keys) {
  for (const Part& p : attention_) {
    ops.attention_forward({.o_BTHD = o_BPHD_.slice(1, p.row, p.count),
                           .lse_BTH = lse_BPH_.slice(1, p.row, p.count),
                           .q_BTHD = part(qkv_BnX_, 0, p.row, p.count),
                           .k_BSHD = keys.k_BSHD.slice(1, 0, p.position + p.count),
                           .v_BSHD = keys.v_BSHD.slice(1, 0, p.position + p.count),
                           .q_begin = p.position,
                           .scale = 1.0 / std::sqrt(static_cast<double>(head_dim_))});
  }
}

// What each segment adds to the state with nothing before it, and by how much it decays what is; then the scan over all
// segments of all ranks gives the state before each. Prefix segments take part as the Memory Converter.
Pending SequenceMixer::summarize_segments(Ops& ops, Arena& scratch) {
  if (alone()) return {};
  const auto segments = sequence_.segments();
  const int64_t s = static_cast<int64_t>(segments.size());
  const Tensor state_sBHDD = scratch.take({s, batch_, heads_, head_dim_, head_dim_}, acc_);
  const Tensor decay_sBH = scratch.take({s, batch_, heads_}, acc_);
  for (int64_t i = 0; i < s; ++i) {
    const Segment& segment = segments[static_cast<size_t>(i)];
    const TokenRange tokens = exact() ? segment.range() : layer_.ssm_part(segment);
    if (tokens.empty()) {
      ops.fill(state_sBHDD.select(0, i), 0), ops.fill(decay_sBH.select(0, i), 0);
      continue;
    }
    const int64_t row = segment.row(tokens.begin);
    ops.ssd_forward({.final_state_BHKD = state_sBHDD.select(0, i),
                     .log_decay_BH = decay_sBH.select(0, i),
                     .k_BTHD = part(qkv_BnX_, 1, row, tokens.size()),
                     .v_BTHD = part(qkv_BnX_, 2, row, tokens.size()),
                     .dt_BTH = dt_BnH_.slice(1, row, tokens.size()),
                     .log_a_BTH = log_a_BnH_.slice(1, row, tokens.size()),
                     .chunk = config_.chunk});
  }
  return sequence_.scan_states(scratch, layer_, transport_.state, flat_states(inflow_sBHDD_), decays_KBH_,
                               flat_states(state_sBHDD), decay_sBH);
}

// The Memory Converter within one segment: the scan over the prefix's own k and v, outputs discarded (paper eq. 9).
void SequenceMixer::converter_forward(Ops& ops, const Part& prefix) {
  ops.ssd_forward({.final_state_BHKD = state_BHDD_,
                   .k_BTHD = part(qkv_BnX_, 1, prefix.row, prefix.count),
                   .v_BTHD = part(qkv_BnX_, 2, prefix.row, prefix.count),
                   .dt_BTH = dt_BnH_.slice(1, prefix.row, prefix.count),
                   .log_a_BTH = log_a_BnH_.slice(1, prefix.row, prefix.count),
                   .initial_state_BHKD = of_segment(inflow_sBHDD_, prefix.segment),
                   .chunk = config_.chunk});
}

void SequenceMixer::ssm_forward(Ops& ops, const SequenceMixerParams& w) {
  for (const Part& p : ssm_) {
    const bool at_transpoint = p.position == layer_.transpoint();
    const bool splits = !attention_.empty() && attention_.back().segment == p.segment;
    if (at_transpoint) {
      if (splits && exact()) {
        converter_forward(ops, attention_.back());
      } else if (!alone() && exact()) {
        ops.copy(state_BHDD_, of_segment(inflow_sBHDD_, p.segment));
      } else {
        ops.fill(state_BHDD_, 0);
      }
    }
    const bool last = p.position + p.count == sequence_.layout().tokens();
    ops.ssd_forward({.y_BTHD = y_BSHD_.slice(1, p.row - prefix_, p.count),
                     .final_state_BHKD = last ? final_state_BHDD_ : Tensor(),
                     .q_BTHD = part(qkv_BnX_, 0, p.row, p.count),
                     .k_BTHD = part(qkv_BnX_, 1, p.row, p.count),
                     .v_BTHD = part(qkv_BnX_, 2, p.row, p.count),
                     .dt_BTH = dt_BnH_.slice(1, p.row, p.count),
                     .log_a_BTH = log_a_BnH_.slice(1, p.row, p.count),
                     .D_H = w.D_H,
                     .initial_state_BHKD = at_transpoint ? state_BHDD_ : of_segment(inflow_sBHDD_, p.segment),
                     .chunk = config_.chunk});
  }
}

}  // namespace tmamba
