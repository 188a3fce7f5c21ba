#include "kernels/ops/timed_ops.h"

#include <chrono>

#include "kernels/base/clock.h"
#include "kernels/ops/counting_ops.h"

namespace tmamba {

namespace {

template <class... Tensors>
double bytes(const Tensors&... tensors) {
  return static_cast<double>((tensors.bytes() + ... + int64_t{0}));
}

template <class Range, class F>
double sum_of(const Range& range, F&& f) {
  double total = 0;
  for (const auto& element : range) total += f(element);
  return total;
}

class Timer final : public TimedOps {
 public:
  explicit Timer(Ops& inner) : inner_(inner), counter_(make_counting_ops(inner.device())) {}
  const std::map<std::string, OpTiming>& timings() const override { return timings_; }
  void reset() override { timings_.clear(); }
  Device device() const override { return inner_.device(); }
  void synchronize() override { inner_.synchronize(); }

  void fill(Tensor x, double value) override {
    run("fill", bytes(x), [&](Ops& ops) { ops.fill(x, value); });
  }
  void copy(Tensor y, ConstTensor x) override {
    run("copy", bytes(y, x), [&](Ops& ops) { ops.copy(y, x); });
  }
  void add(Tensor y, ConstTensor x) override {
    run("add", bytes(y, x), [&](Ops& ops) { ops.add(y, x); });
  }
  void scale(Tensor x, double factor) override {
    run("scale", bytes(x), [&](Ops& ops) { ops.scale(x, factor); });
  }
  void sum_squares(Tensor out_1, std::span<const ConstTensor> tensors) override {
    run("sum_squares", sum_of(tensors, [](const ConstTensor& x) { return bytes(x); }),
        [&](Ops& ops) { ops.sum_squares(out_1, tensors); });
  }
  void embedding_forward(Tensor y_NC, ConstTensor table_VC, ConstTensor tokens_N, int64_t vocab_begin) override {
    run("embedding_forward", bytes(y_NC, table_VC, tokens_N),
        [&](Ops& ops) { ops.embedding_forward(y_NC, table_VC, tokens_N, vocab_begin); });
  }
  void embedding_backward(Tensor dtable_VC, ConstTensor dy_NC, ConstTensor tokens_N, int64_t vocab_begin) override {
    run("embedding_backward", bytes(dtable_VC, dy_NC, tokens_N),
        [&](Ops& ops) { ops.embedding_backward(dtable_VC, dy_NC, tokens_N, vocab_begin); });
  }
  void rmsnorm_forward(Tensor y_NC, Tensor rstd_N, Tensor sum_NC, ConstTensor x_NC, ConstTensor delta_NC,
                       ConstTensor w_C, double eps) override {
    run("rmsnorm_forward", bytes(y_NC, rstd_N, sum_NC, x_NC, delta_NC, w_C),
        [&](Ops& ops) { ops.rmsnorm_forward(y_NC, rstd_N, sum_NC, x_NC, delta_NC, w_C, eps); });
  }
  void rmsnorm_backward(Tensor dx_NC, Tensor dw_C, ConstTensor dy_NC, ConstTensor x_NC, ConstTensor rstd_N,
                        ConstTensor w_C, ConstTensor dresidual_NC) override {
    run("rmsnorm_backward", bytes(dx_NC, dw_C, dy_NC, x_NC, rstd_N, w_C, dresidual_NC),
        [&](Ops& ops) { ops.rmsnorm_backward(dx_NC, dw_C, dy_NC, x_NC, rstd_N, w_C, dresidual_NC); });
  }
  void linear_forward(Tensor y_NO, ConstTensor x_NI, ConstTensor w_OI) override {
    run("linear_forward", bytes(y_NO, x_NI, w_OI), [&](Ops& ops) { ops.linear_forward(y_NO, x_NI, w_OI); });
  }
  void linear_backward_input(Tensor dx_NI, ConstTensor dy_NO, ConstTensor w_OI, bool accumulate) override {
    run("linear_backward_input", bytes(dx_NI, dy_NO, w_OI),
        [&](Ops& ops) { ops.linear_backward_input(dx_NI, dy_NO, w_OI, accumulate); });
  }
  void linear_backward_weight(Tensor dw_OI, ConstTensor dy_NO, ConstTensor x_NI) override {
    run("linear_backward_weight", bytes(dw_OI, dy_NO, x_NI),
        [&](Ops& ops) { ops.linear_backward_weight(dw_OI, dy_NO, x_NI); });
  }
  void conv_silu_forward(Tensor y_BTC, ConstTensor x_BTC, ConstTensor halo_BWC, ConstTensor w_CW,
                         ConstTensor b_C) override {
    run("conv_silu_forward", bytes(y_BTC, x_BTC, halo_BWC, w_CW, b_C),
        [&](Ops& ops) { ops.conv_silu_forward(y_BTC, x_BTC, halo_BWC, w_CW, b_C); });
  }
  void conv_silu_backward(Tensor dx_BTC, Tensor dhalo_BWC, Tensor dw_CW, Tensor db_C, ConstTensor dy_BTC,
                          ConstTensor x_BTC, ConstTensor halo_BWC, ConstTensor w_CW, ConstTensor b_C) override {
    run("conv_silu_backward", bytes(dx_BTC, dhalo_BWC, dw_CW, db_C, dy_BTC, x_BTC, halo_BWC, w_CW, b_C),
        [&](Ops& ops) { ops.conv_silu_backward(dx_BTC, dhalo_BWC, dw_CW, db_C, dy_BTC, x_BTC, halo_BWC, w_CW, b_C); });
  }
  void conv_silu_rope_forward(const ConvRopeForward& args) override {
    run("conv_silu_rope_forward", bytes(args.y_BTC, args.k_rot_BPHD, args.x_BTC, args.halo_BWC, args.w_CW, args.b_C),
        [&](Ops& ops) { ops.conv_silu_rope_forward(args); });
  }
  void conv_silu_rope_backward(const ConvRopeBackward& args) override {
    run("conv_silu_rope_backward",
        bytes(args.dx_BTC, args.dhalo_BWC, args.dw_CW, args.db_C, args.dy_BTC, args.dk_rot_BPHD, args.x_BTC,
              args.halo_BWC, args.w_CW, args.b_C),
        [&](Ops& ops) { ops.conv_silu_rope_backward(args); });
  }
  void rope_forward(Tensor y_BTHD, ConstTensor x_BTHD, int64_t position, double theta) override {
    run("rope_forward", bytes(y_BTHD, x_BTHD), [&](Ops& ops) { ops.rope_forward(y_BTHD, x_BTHD, position, theta); });
  }
  void rope_backward(Tensor dx_BTHD, ConstTensor dy_BTHD, int64_t position, double theta) override {
    run("rope_backward", bytes(dx_BTHD, dy_BTHD),
        [&](Ops& ops) { ops.rope_backward(dx_BTHD, dy_BTHD, position, theta); });
  }
  void attention_forward(const AttentionForward& args) override {
    run("attention_forward", bytes(args.o_BTHD, args.lse_BTH, args.q_BTHD, args.k_BSHD, args.v_BSHD),
        [&](Ops& ops) { ops.attention_forward(args); });
  }
  void attention_backward(const AttentionBackward& args) override {
    run("attention_backward",
        bytes(args.dq_BTHD, args.dk_BSHD, args.dv_BSHD, args.do_BTHD, args.o_BTHD, args.lse_BTH, args.q_BTHD,
              args.k_BSHD, args.v_BSHD),
        [&](Ops& ops) { ops.attention_backward(args); });
  }
  void dt_forward(Tensor dt_NH, Tensor log_a_NH, ConstTensor raw_NH, ConstTensor bias_H, ConstTensor A_log_H) override {
    run("dt_forward", bytes(dt_NH, log_a_NH, raw_NH, bias_H, A_log_H),
        [&](Ops& ops) { ops.dt_forward(dt_NH, log_a_NH, raw_NH, bias_H, A_log_H); });
  }
  void dt_backward(Tensor draw_NH, Tensor dbias_H, Tensor dA_log_H, ConstTensor ddt_NH, ConstTensor dlog_a_NH,
                   ConstTensor raw_NH, ConstTensor bias_H, ConstTensor A_log_H) override {
    run("dt_backward", bytes(draw_NH, dbias_H, dA_log_H, ddt_NH, dlog_a_NH, raw_NH, bias_H, A_log_H),
        [&](Ops& ops) { ops.dt_backward(draw_NH, dbias_H, dA_log_H, ddt_NH, dlog_a_NH, raw_NH, bias_H, A_log_H); });
  }
  void ssd_forward(const SsdForward& args) override {
    run("ssd_forward",
        bytes(args.y_BTHD, args.final_state_BHKD, args.q_BTHD, args.k_BTHD, args.v_BTHD, args.dt_BTH, args.log_a_BTH,
              args.initial_state_BHKD),
        [&](Ops& ops) { ops.ssd_forward(args); });
  }
  void ssd_backward(const SsdBackward& args) override {
    run("ssd_backward",
        bytes(args.dq_BTHD, args.dk_BTHD, args.dv_BTHD, args.ddt_BTH, args.dlog_a_BTH, args.dy_BTHD, args.q_BTHD,
              args.k_BTHD, args.v_BTHD, args.dt_BTH, args.log_a_BTH, args.initial_state_BHKD),
        [&](Ops& ops) { ops.ssd_backward(args); });
  }
  void ssd_adjoint(Tensor dinitial_BHKD, Tensor log_decay_BH, ConstTensor q_BTHD, ConstTensor dy_BTHD,
                   ConstTensor log_a_BTH, int64_t chunk) override {
    run("ssd_adjoint", bytes(dinitial_BHKD, log_decay_BH, q_BTHD, dy_BTHD, log_a_BTH),
        [&](Ops& ops) { ops.ssd_adjoint(dinitial_BHKD, log_decay_BH, q_BTHD, dy_BTHD, log_a_BTH, chunk); });
  }
  void ssd_decay(Tensor state_BHKD, ConstTensor log_a_BTH) override {
    run("ssd_decay", bytes(state_BHKD, log_a_BTH), [&](Ops& ops) { ops.ssd_decay(state_BHKD, log_a_BTH); });
  }
  void segment_scan(Tensor out_KBHE, ConstTensor in_KBHE, ConstTensor decay_KBH, bool reverse) override {
    run("segment_scan", bytes(out_KBHE, in_KBHE, decay_KBH),
        [&](Ops& ops) { ops.segment_scan(out_KBHE, in_KBHE, decay_KBH, reverse); });
  }
  void gated_norm_forward(Tensor out_BTHD, Tensor rstd_BTH, ConstTensor y_BTHD, ConstTensor z_BTHD, ConstTensor w_HD,
                          double eps) override {
    run("gated_norm_forward", bytes(out_BTHD, rstd_BTH, y_BTHD, z_BTHD, w_HD),
        [&](Ops& ops) { ops.gated_norm_forward(out_BTHD, rstd_BTH, y_BTHD, z_BTHD, w_HD, eps); });
  }
  void gated_norm_backward(Tensor dy_BTHD, Tensor dz_BTHD, Tensor dw_HD, ConstTensor dout_BTHD, ConstTensor y_BTHD,
                           ConstTensor z_BTHD, ConstTensor rstd_BTH, ConstTensor w_HD) override {
    run("gated_norm_backward", bytes(dy_BTHD, dz_BTHD, dw_HD, dout_BTHD, y_BTHD, z_BTHD, rstd_BTH, w_HD),
        [&](Ops& ops) { ops.gated_norm_backward(dy_BTHD, dz_BTHD, dw_HD, dout_BTHD, y_BTHD, z_BTHD, rstd_BTH, w_HD); });
  }
  void swiglu_forward(Tensor h_NF, ConstTensor gate_up_N2F) override {
    run("swiglu_forward", bytes(h_NF, gate_up_N2F), [&](Ops& ops) { ops.swiglu_forward(h_NF, gate_up_N2F); });
  }
  void swiglu_backward(Tensor dgate_up_N2F, ConstTensor dh_NF, ConstTensor gate_up_N2F) override {
    run("swiglu_backward", bytes(dgate_up_N2F, dh_NF, gate_up_N2F),
        [&](Ops& ops) { ops.swiglu_backward(dgate_up_N2F, dh_NF, gate_up_N2F); });
  }
  void cross_entropy_stats(Tensor max_N, Tensor sum_exp_N, Tensor target_N, ConstTensor logits_NV,
                           ConstTensor targets_N, int64_t vocab_begin) override {
    run("cross_entropy_stats", bytes(max_N, sum_exp_N, target_N, logits_NV, targets_N),
        [&](Ops& ops) { ops.cross_entropy_stats(max_N, sum_exp_N, target_N, logits_NV, targets_N, vocab_begin); });
  }
  void cross_entropy_rescale(Tensor sum_exp_N, ConstTensor max_N, ConstTensor global_max_N) override {
    run("cross_entropy_rescale", bytes(sum_exp_N, max_N, global_max_N),
        [&](Ops& ops) { ops.cross_entropy_rescale(sum_exp_N, max_N, global_max_N); });
  }
  void cross_entropy_loss(Tensor loss_sum_1, Tensor count_1, Tensor loss_N, ConstTensor max_N, ConstTensor sum_exp_N,
                          ConstTensor target_N, ConstTensor targets_N) override {
    run("cross_entropy_loss", bytes(loss_sum_1, count_1, loss_N, max_N, sum_exp_N, target_N, targets_N),
        [&](Ops& ops) { ops.cross_entropy_loss(loss_sum_1, count_1, loss_N, max_N, sum_exp_N, target_N, targets_N); });
  }
  void cross_entropy_gradient(Tensor logits_NV, ConstTensor max_N, ConstTensor sum_exp_N, ConstTensor targets_N,
                              int64_t vocab_begin, double scale) override {
    run("cross_entropy_gradient", bytes(logits_NV, max_N, sum_exp_N, targets_N),
        [&](Ops& ops) { ops.cross_entropy_gradient(logits_NV, max_N, sum_exp_N, targets_N, vocab_begin, scale); });
  }
  void check_step(Tensor step_S, ConstTensor sums_S, ConstTensor limits_S) override {
    run("check_step", bytes(step_S, sums_S, limits_S), [&](Ops& ops) { ops.check_step(step_S, sums_S, limits_S); });
  }
  void adamw(std::span<const AdamwTensor> tensors, const AdamwRule& rule, ConstTensor step_S) override {
    run("adamw", sum_of(tensors, [](const AdamwTensor& t) { return bytes(t.param, t.master, t.m, t.v, t.grad); }),
        [&](Ops& ops) { ops.adamw(tensors, rule, step_S); });
  }

 private:
  template <class Call>
  void run(const char* name, double tensor_bytes, Call&& call) {
    const auto flops = [&] { return counter_->counts().matmul() + counter_->counts().elementwise; };
    const double flops_before = flops();
    call(*counter_);
    inner_.synchronize();
    const auto begin = std::chrono::steady_clock::now();
    call(inner_);
    inner_.synchronize();
    OpTiming& timing = timings_[name];
    timing.seconds += seconds_since(begin);
    timing.calls += 1;
    timing.flops += flops() - flops_before;
    timing.bytes += tensor_bytes;
  }

  Ops& inner_;
  std::unique_ptr<CountingOps> counter_;
  std::map<std::string, OpTiming> timings_;
};

}  // namespace

std::unique_ptr<TimedOps> make_timed_ops(Ops& inner) { return std::make_unique<Timer>(inner); }

}  // namespace tmamba
