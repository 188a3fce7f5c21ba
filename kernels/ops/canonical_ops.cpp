#include "kernels/ops/canonical_ops.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

namespace tmamba {

namespace {

// Sums are of multiples of 2^-exponent.
struct Grid {
  int exponent;
  double step() const { return std::ldexp(1.0, -exponent); }
  // Multiples of the step up to this are exact.
  double range() const { return std::ldexp(1.0, 53 - exponent); }
};
constexpr Grid kGradients{46}, kKeyGradients{50}, kLoss{24}, kSquares{36};

// A part of a dimension of a tensor, or of an absent one.
template <class View>
View part(const View& x, int dim, int64_t begin, int64_t count) {
  return x.dims() == 0 ? x : x.slice(dim, begin, count);
}

// Contiguous tensor of the sizes of `like`.
Tensor same_sizes(double* data, const Tensor& like) {
  const auto n = [&](int dim) { return like.size(dim); };
  switch (like.dims()) {
    case 1:
      return Tensor(data, {n(0)}, DType::f64);
    case 2:
      return Tensor(data, {n(0), n(1)}, DType::f64);
    case 3:
      return Tensor(data, {n(0), n(1), n(2)}, DType::f64);
    default:
      return Tensor(data, {n(0), n(1), n(2), n(3)}, DType::f64);
  }
}

class CanonicalOps final : public Ops {
 public:
  CanonicalOps(std::unique_ptr<Ops> inner, const CanonicalOptions& options)
      : inner_(std::move(inner)), unit_(options.unit), summands_(options.summands) {
    TM_CHECK(inner_->device() == Device::cpu, "canonical ops are for the cpu, not for ", name_of(inner_->device()));
    TM_CHECK(unit_ >= 1 && summands_ >= 1, "canonical ops: unit ", unit_, ", summands ", summands_);
  }

  Device device() const override { return inner_->device(); }
  void synchronize() override { inner_->synchronize(); }

  // --- One element at a time already -------------------------------------------------------------------------------
  void fill(Tensor x, double value) override { inner_->fill(x, value); }
  void copy(Tensor y, ConstTensor x) override { inner_->copy(y, x); }
  void add(Tensor y, ConstTensor x) override { inner_->add(y, x); }
  void scale(Tensor x, double factor) override { inner_->scale(x, factor); }
  void cross_entropy_rescale(Tensor sum_exp_N, ConstTensor max_N, ConstTensor global_max_N) override {
    inner_->cross_entropy_rescale(sum_exp_N, max_N, global_max_N);
  }
  // Along segments, the same on all ranks.
  void ssd_decay(Tensor state_BHKD, ConstTensor log_a_BTH) override { inner_->ssd_decay(state_BHKD, log_a_BTH); }
  void segment_scan(Tensor out_KBHE, ConstTensor in_KBHE, ConstTensor decay_KBH, bool reverse) override {
    inner_->segment_scan(out_KBHE, in_KBHE, decay_KBH, reverse);
  }

  // --- Rows of parameters: ranks own whole rows --------------------------------------------------------------------
  void sum_squares(Tensor out_1, std::span<const ConstTensor> tensors) override {
    inner_->fill(out_1, 0);
    for (const ConstTensor& x : tensors) {
      for (int64_t row = 0; row < x.size(0); ++row) {
        const ConstTensor squared = x.slice(0, row, 1);
        add_rounded(kSquares, "squares of the gradient", {out_1}, [&](const auto& sum) {
          inner_->sum_squares(sum[0], {&squared, 1});
        });
      }
    }
  }
  void check_step(Tensor step_S, ConstTensor sums_S, ConstTensor limits_S) override {
    inner_->check_step(step_S, sums_S, limits_S);
  }
  void adamw(std::span<const AdamwTensor> tensors, const AdamwRule& rule, ConstTensor step_S) override {
    for (const AdamwTensor& x : tensors) {
      std::vector<AdamwTensor> rows;
      for (int64_t i = 0; i < x.master.size(0); ++i) {
        rows.push_back({.param = x.param.slice(0, i, 1),
                        .master = x.master.slice(0, i, 1),
                        .m = x.m.slice(0, i, 1),
                        .v = x.v.slice(0, i, 1),
                        .grad = x.grad.slice(0, i, 1),
                        .decay = x.decay});
      }
      inner_->adamw(rows, rule, step_S);
    }
  }

  // --- Rows: unit by unit ------------------------------------------------------------------------------------------
  void embedding_forward(Tensor y_NC, ConstTensor table_VC, ConstTensor tokens_N, int64_t vocab_begin) override {
    for_units(y_NC.size(0), [&](int64_t at, int64_t n) {
      inner_->embedding_forward(y_NC.slice(0, at, n), table_VC, tokens_N.slice(0, at, n), vocab_begin);
    });
  }
  // Token by token: a sum of its own for every unit would be as large as the table.
  void embedding_backward(Tensor dtable_VC, ConstTensor dy_NC, ConstTensor tokens_N, int64_t vocab_begin) override {
    const int32_t* tokens = tokens_N.data<int32_t>();
    for (int64_t n = 0; n < dy_NC.size(0); ++n) {
      const int64_t row = tokens[n] - vocab_begin;
      if (row < 0 || row >= dtable_VC.size(0)) continue;
      add_run(kGradients, "the embedding's gradient", dtable_VC.select(0, row).data<double>(),
              dy_NC.select(0, n).data<double>(), dy_NC.size(1));
    }
  }
  void rmsnorm_forward(Tensor y_NC, Tensor rstd_N, Tensor sum_NC, ConstTensor x_NC, ConstTensor delta_NC,
                       ConstTensor w_C, double eps) override {
    for_units(x_NC.size(0), [&](int64_t at, int64_t n) {
      inner_->rmsnorm_forward(y_NC.slice(0, at, n), rstd_N.slice(0, at, n), part(sum_NC, 0, at, n),
                              x_NC.slice(0, at, n), part(delta_NC, 0, at, n), w_C, eps);
    });
  }
  void rmsnorm_backward(Tensor dx_NC, Tensor dw_C, ConstTensor dy_NC, ConstTensor x_NC, ConstTensor rstd_N,
                        ConstTensor w_C, ConstTensor dresidual_NC) override {
    for_units(x_NC.size(0), [&](int64_t at, int64_t n) {
      add_rounded(kGradients, "a norm weight's gradient", {dw_C}, [&](const auto& sum) {
        inner_->rmsnorm_backward(dx_NC.slice(0, at, n), sum[0], dy_NC.slice(0, at, n), x_NC.slice(0, at, n),
                                 rstd_N.slice(0, at, n), w_C, part(dresidual_NC, 0, at, n));
      });
    });
  }
  void linear_forward(Tensor y_NO, ConstTensor x_NI, ConstTensor w_OI) override {
    for_units(x_NI.size(0),
              [&](int64_t at, int64_t n) { inner_->linear_forward(y_NO.slice(0, at, n), x_NI.slice(0, at, n), w_OI); });
  }
  void linear_backward_input(Tensor dx_NI, ConstTensor dy_NO, ConstTensor w_OI, bool accumulate) override {
    for_units(dy_NO.size(0), [&](int64_t at, int64_t n) {
      inner_->linear_backward_input(dx_NI.slice(0, at, n), dy_NO.slice(0, at, n), w_OI, accumulate);
    });
  }
  void linear_backward_weight(Tensor dw_OI, ConstTensor dy_NO, ConstTensor x_NI) override {
    for_units(dy_NO.size(0), [&](int64_t at, int64_t n) {
      add_rounded(kGradients, "a matrix's gradient", {dw_OI}, [&](const auto& sum) {
        inner_->linear_backward_weight(sum[0], dy_NO.slice(0, at, n), x_NI.slice(0, at, n));
      });
    });
  }
  void dt_forward(Tensor dt_NH, Tensor log_a_NH, ConstTensor raw_NH, ConstTensor bias_H, ConstTensor A_log_H) override {
    for_units(raw_NH.size(0), [&](int64_t at, int64_t n) {
      inner_->dt_forward(dt_NH.slice(0, at, n), log_a_NH.slice(0, at, n), raw_NH.slice(0, at, n), bias_H, A_log_H);
    });
  }
  void dt_backward(Tensor draw_NH, Tensor dbias_H, Tensor dA_log_H, ConstTensor ddt_NH, ConstTensor dlog_a_NH,
                   ConstTensor raw_NH, ConstTensor bias_H, ConstTensor A_log_H) override {
    for_units(raw_NH.size(0), [&](int64_t at, int64_t n) {
      add_rounded(kGradients, "the gradient of dt.bias or A_log", {dbias_H, dA_log_H}, [&](const auto& sum) {
        inner_->dt_backward(draw_NH.slice(0, at, n), sum[0], sum[1], ddt_NH.slice(0, at, n), dlog_a_NH.slice(0, at, n),
                            raw_NH.slice(0, at, n), bias_H, A_log_H);
      });
    });
  }
  void swiglu_forward(Tensor h_NF, ConstTensor gate_up_N2F) override {
    for_units(h_NF.size(0), [&](int64_t at, int64_t n) {
      inner_->swiglu_forward(h_NF.slice(0, at, n), gate_up_N2F.slice(0, at, n));
    });
  }
  void swiglu_backward(Tensor dgate_up_N2F, ConstTensor dh_NF, ConstTensor gate_up_N2F) override {
    for_units(dh_NF.size(0), [&](int64_t at, int64_t n) {
      inner_->swiglu_backward(dgate_up_N2F.slice(0, at, n), dh_NF.slice(0, at, n), gate_up_N2F.slice(0, at, n));
    });
  }
  void cross_entropy_stats(Tensor max_N, Tensor sum_exp_N, Tensor target_N, ConstTensor logits_NV,
                           ConstTensor targets_N, int64_t vocab_begin) override {
    for_units(logits_NV.size(0), [&](int64_t at, int64_t n) {
      inner_->cross_entropy_stats(max_N.slice(0, at, n), sum_exp_N.slice(0, at, n), target_N.slice(0, at, n),
                                  logits_NV.slice(0, at, n), targets_N.slice(0, at, n), vocab_begin);
    });
  }
  void cross_entropy_loss(Tensor loss_sum_1, Tensor count_1, Tensor loss_N, ConstTensor max_N, ConstTensor sum_exp_N,
                          ConstTensor target_N, ConstTensor targets_N) override {
    for_units(max_N.size(0), [&](int64_t at, int64_t n) {
      add_rounded(kLoss, "the loss", {loss_sum_1}, [&](const auto& sum) {
        inner_->cross_entropy_loss(sum[0], count_1, part(loss_N, 0, at, n), max_N.slice(0, at, n),
                                   sum_exp_N.slice(0, at, n), target_N.slice(0, at, n), targets_N.slice(0, at, n));
      });
    });
  }
  void cross_entropy_gradient(Tensor logits_NV, ConstTensor max_N, ConstTensor sum_exp_N, ConstTensor targets_N,
                              int64_t vocab_begin, double scale) override {
    for_units(logits_NV.size(0), [&](int64_t at, int64_t n) {
      inner_->cross_entropy_gradient(logits_NV.slice(0, at, n), max_N.slice(0, at, n), sum_exp_N.slice(0, at, n),
                                     targets_N.slice(0, at, n), vocab_begin, scale);
    });
  }

  // --- Tokens of sequences: sequence by sequence, and unit by unit where rows are meant ----------------------------
  void gated_norm_forward(Tensor out_BTHD, Tensor rstd_BTH, ConstTensor y_BTHD, ConstTensor z_BTHD, ConstTensor w_HD,
                          double eps) override {
    for_sequence_units(y_BTHD, [&](const auto& of) {
      inner_->gated_norm_forward(of(out_BTHD), of(rstd_BTH), of(y_BTHD), of(z_BTHD), w_HD, eps);
    });
  }
  void gated_norm_backward(Tensor dy_BTHD, Tensor dz_BTHD, Tensor dw_HD, ConstTensor dout_BTHD, ConstTensor y_BTHD,
                           ConstTensor z_BTHD, ConstTensor rstd_BTH, ConstTensor w_HD) override {
    for_sequence_units(y_BTHD, [&](const auto& of) {
      add_rounded(kGradients, "an output norm's gradient", {dw_HD}, [&](const auto& sum) {
        inner_->gated_norm_backward(of(dy_BTHD), of(dz_BTHD), sum[0], of(dout_BTHD), of(y_BTHD), of(z_BTHD),
                                    of(rstd_BTH), w_HD);
      });
    });
  }
  void conv_silu_forward(Tensor y_BTC, ConstTensor x_BTC, ConstTensor halo_BWC, ConstTensor w_CW,
                         ConstTensor b_C) override {
    for_sequences(x_BTC,
                  [&](const auto& of) { inner_->conv_silu_forward(of(y_BTC), of(x_BTC), of(halo_BWC), w_CW, b_C); });
  }
  void conv_silu_backward(Tensor dx_BTC, Tensor dhalo_BWC, Tensor dw_CW, Tensor db_C, ConstTensor dy_BTC,
                          ConstTensor x_BTC, ConstTensor halo_BWC, ConstTensor w_CW, ConstTensor b_C) override {
    for_sequences(x_BTC, [&](const auto& of) {
      add_rounded(kGradients, "the convolution's gradient", {dw_CW, db_C}, [&](const auto& sum) {
        inner_->conv_silu_backward(of(dx_BTC), of(dhalo_BWC), sum[0], sum[1], of(dy_BTC), of(x_BTC), of(halo_BWC), w_CW,
                                   b_C);
      });
    });
  }
  void conv_silu_rope_forward(const ConvRopeForward& args) override {
    for_sequences(args.x_BTC, [&](const auto& of) {
      ConvRopeForward one = args;
      one.y_BTC = of(args.y_BTC), one.k_rot_BPHD = of(args.k_rot_BPHD);
      one.x_BTC = of(args.x_BTC), one.halo_BWC = of(args.halo_BWC);
      inner_->conv_silu_rope_forward(one);
    });
  }
  void conv_silu_rope_backward(const ConvRopeBackward& args) override {
    for_sequences(args.x_BTC, [&](const auto& of) {
      ConvRopeBackward one = args;
      one.dx_BTC = of(args.dx_BTC), one.dhalo_BWC = of(args.dhalo_BWC), one.dy_BTC = of(args.dy_BTC);
      one.dk_rot_BPHD = of(args.dk_rot_BPHD), one.x_BTC = of(args.x_BTC), one.halo_BWC = of(args.halo_BWC);
      add_rounded(kGradients, "the convolution's gradient", {args.dw_CW, args.db_C}, [&](const auto& sum) {
        one.dw_CW = sum[0], one.db_C = sum[1];
        inner_->conv_silu_rope_backward(one);
      });
    });
  }
  void rope_forward(Tensor y_BTHD, ConstTensor x_BTHD, int64_t position, double theta) override {
    for_sequences(x_BTHD, [&](const auto& of) { inner_->rope_forward(of(y_BTHD), of(x_BTHD), position, theta); });
  }
  void rope_backward(Tensor dx_BTHD, ConstTensor dy_BTHD, int64_t position, double theta) override {
    for_sequences(dy_BTHD, [&](const auto& of) { inner_->rope_backward(of(dx_BTHD), of(dy_BTHD), position, theta); });
  }
  void attention_forward(const AttentionForward& args) override {
    for_sequences(args.q_BTHD, [&](const auto& of) {
      AttentionForward one = args;
      one.o_BTHD = of(args.o_BTHD), one.lse_BTH = of(args.lse_BTH);
      one.q_BTHD = of(args.q_BTHD), one.k_BSHD = of(args.k_BSHD), one.v_BSHD = of(args.v_BSHD);
      inner_->attention_forward(one);
    });
  }
  void attention_backward(const AttentionBackward& args) override {
    const int64_t seen = args.q_begin + args.q_BTHD.size(1);
    for_sequences(args.q_BTHD, [&](const auto& of) {
      const auto keys = [&](const auto& x_BSHD) { return of(x_BSHD).slice(1, 0, seen); };
      AttentionBackward one = args;
      one.dq_BTHD = of(args.dq_BTHD), one.do_BTHD = of(args.do_BTHD), one.o_BTHD = of(args.o_BTHD);
      one.lse_BTH = of(args.lse_BTH), one.q_BTHD = of(args.q_BTHD);
      one.k_BSHD = keys(args.k_BSHD), one.v_BSHD = keys(args.v_BSHD);
      add_rounded(kKeyGradients, "the gradient of keys or values", {keys(args.dk_BSHD), keys(args.dv_BSHD)},
                  [&](const auto& sum) {
                    one.dk_BSHD = sum[0], one.dv_BSHD = sum[1];
                    inner_->attention_backward(one);
                  });
    });
  }
  void ssd_forward(const SsdForward& args) override {
    for_sequences(args.k_BTHD, [&](const auto& of) {
      inner_->ssd_forward({.y_BTHD = of(args.y_BTHD),
                           .final_state_BHKD = of(args.final_state_BHKD),
                           .log_decay_BH = of(args.log_decay_BH),
                           .q_BTHD = of(args.q_BTHD),
                           .k_BTHD = of(args.k_BTHD),
                           .v_BTHD = of(args.v_BTHD),
                           .dt_BTH = of(args.dt_BTH),
                           .log_a_BTH = of(args.log_a_BTH),
                           .D_H = args.D_H,
                           .initial_state_BHKD = of(args.initial_state_BHKD),
                           .chunk = args.chunk});
    });
  }
  void ssd_backward(const SsdBackward& args) override {
    for_sequences(args.k_BTHD, [&](const auto& of) {
      SsdBackward one = args;
      one.dq_BTHD = of(args.dq_BTHD), one.dk_BTHD = of(args.dk_BTHD), one.dv_BTHD = of(args.dv_BTHD);
      one.ddt_BTH = of(args.ddt_BTH), one.dlog_a_BTH = of(args.dlog_a_BTH);
      one.dinitial_state_BHKD = of(args.dinitial_state_BHKD), one.dfinal_state_BHKD = of(args.dfinal_state_BHKD);
      one.dy_BTHD = of(args.dy_BTHD), one.q_BTHD = of(args.q_BTHD), one.k_BTHD = of(args.k_BTHD);
      one.v_BTHD = of(args.v_BTHD), one.dt_BTH = of(args.dt_BTH), one.log_a_BTH = of(args.log_a_BTH);
      one.initial_state_BHKD = of(args.initial_state_BHKD);
      if (args.dD_H.dims() == 0) return inner_->ssd_backward(one);
      add_rounded(kGradients, "the gradient of D", {args.dD_H}, [&](const auto& sum) {
        one.dD_H = sum[0];
        inner_->ssd_backward(one);
      });
    });
  }
  void ssd_adjoint(Tensor dinitial_BHKD, Tensor log_decay_BH, ConstTensor q_BTHD, ConstTensor dy_BTHD,
                   ConstTensor log_a_BTH, int64_t chunk) override {
    for_sequences(q_BTHD, [&](const auto& of) {
      inner_->ssd_adjoint(of(dinitial_BHKD), of(log_decay_BH), of(q_BTHD), of(dy_BTHD), of(log_a_BTH), chunk);
    });
  }

 private:
  static constexpr size_t kSums = 2;  // of one call at most

  // Calls f(first row, rows) for each unit. Behind a TransPoint inside a unit its last rows come first, alone.
  template <class F>
  void for_units(int64_t rows, const F& f) const {
    for (int64_t at = 0, n; at < rows; at += n) {
      n = at == 0 && rows % unit_ != 0 ? rows % unit_ : unit_;
      f(at, n);
    }
  }

  // Calls f(of) for each sequence of `like`; of(x) is the sequence's part of x [B, ..].
  template <class F>
  static void for_sequences(const ConstTensor& like, const F& f) {
    for (int64_t b = 0; b < like.size(0); ++b) f([b](const auto& x) { return part(x, 0, b, 1); });
  }
  // The same for each unit of each sequence of `like` [B, T, ..].
  template <class F>
  void for_sequence_units(const ConstTensor& like, const F& f) const {
    for_sequences(like, [&](const auto& sequence) {
      for_units(like.size(1),
                [&](int64_t at, int64_t n) { f([&](const auto& x) { return part(sequence(x), 1, at, n); }); });
    });
  }

  // Calls f(sums), which adds to tensors of zeros of the sizes of `to`, and adds these, rounded, to `to`.
  template <size_t n, class F>
  void add_rounded(const Grid& grid, const char* what, const Tensor (&to)[n], const F& f) {
    static_assert(n <= kSums);
    std::array<Tensor, n> sums;
    for (size_t i = 0; i < n; ++i) {
      sums_[i].assign(static_cast<size_t>(to[i].numel()), 0.0);
      sums[i] = same_sizes(sums_[i].data(), to[i]);
    }
    f(sums);
    for (size_t i = 0; i < n; ++i) add_tensor(grid, what, to[i], sums[i]);
  }

  void add_tensor(const Grid& grid, const char* what, const Tensor& to, const ConstTensor& from) const {
    if (to.contiguous()) return add_run(grid, what, to.data<double>(), from.data<double>(), to.numel());
    for (int64_t i = 0; i < to.size(0); ++i) add_tensor(grid, what, to.select(0, i), from.select(0, i));
  }

  void add_run(const Grid& grid, const char* what, double* to, const double* from, int64_t count) const {
    const double step = grid.step(), steps = 1 / step, limit = grid.range() / static_cast<double>(summands_);
    double largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      const bool finite = std::isfinite(to[i]) && std::isfinite(from[i]);
      to[i] += std::nearbyint(from[i] * steps) * step;
      largest = std::max(largest, finite ? std::abs(to[i]) : 0.0);
    }
    if (largest <= limit) return;
    throw Error(str("run.canonical: the sum of ", what, " reached ", largest, ", sums of ", summands_,
                    " such are exact ", "up to ", limit, " (multiples of 2^-", grid.exponent,
                    "): numbers this large mostly mean that the run diverges; lower train.lr or raise train.warmup, or "
                    "set run.canonical = 0"));
  }

  std::unique_ptr<Ops> inner_;
  int64_t unit_, summands_;
  std::array<std::vector<double>, kSums> sums_;
};

}  // namespace

std::unique_ptr<Ops> make_canonical_ops(std::unique_ptr<Ops> inner, const CanonicalOptions& options) {
  return std::make_unique<CanonicalOps>(std::move(inner), options);
}

}  // namespace tmamba
