#include "kernels/ops/counting_ops.h"

#include <algorithm>

namespace tmamba {

namespace {

double n(const ConstTensor& x) { return static_cast<double>(x.numel()); }

// Query-key pairs of causal attention: sum over queries of the keys each one sees.
double pairs(const ConstTensor& q_BTHD, int64_t q_begin) {
  const double T = static_cast<double>(q_BTHD.size(1)), begin = static_cast<double>(q_begin);
  return static_cast<double>(q_BTHD.size(0) * q_BTHD.size(2)) * (T * begin + T * (T + 1) / 2);
}

// Elements of q and k that are rotated: two thirds of the channels of the prefix.
template <class Args>
double rotated(const Args& a) {
  return static_cast<double>(a.x_BTC.size(0) * a.prefix * (a.x_BTC.size(2) / 3 * 2));
}

// One pass over the chunks: causal pairs within a chunk (where there are outputs) and products with the state.
double ssd_pass(const ConstTensor& k_BTHD, int64_t chunk, double pair_products, double state_products) {
  const int64_t T = k_BTHD.size(1), D = k_BTHD.size(3);
  const int64_t whole = T / chunk, rest = T % chunk;
  const double causal = static_cast<double>(whole * (chunk * (chunk + 1) / 2) + rest * (rest + 1) / 2);
  const double heads = static_cast<double>(k_BTHD.size(0) * k_BTHD.size(2)), width = static_cast<double>(D);
  return heads * 2 * width * (pair_products * causal + state_products * static_cast<double>(T) * width);
}

class Counter final : public CountingOps {
 public:
  explicit Counter(Device device) : device_(device) {}
  const OpCounts& counts() const override { return counts_; }
  Device device() const override { return device_; }
  void synchronize() override {}

  void fill(Tensor, double) override {}
  void copy(Tensor, ConstTensor) override {}
  void add(Tensor y, ConstTensor) override { counts_.elementwise += n(y); }
  void scale(Tensor x, double) override { counts_.elementwise += n(x); }
  void sum_squares(Tensor, std::span<const ConstTensor> tensors) override {
    for (const ConstTensor& x : tensors) counts_.elementwise += 2 * n(x);
  }
  void embedding_forward(Tensor, ConstTensor, ConstTensor, int64_t) override {}
  void embedding_backward(Tensor, ConstTensor dy, ConstTensor, int64_t) override { counts_.elementwise += n(dy); }
  void rmsnorm_forward(Tensor y, Tensor, Tensor, ConstTensor, ConstTensor, ConstTensor, double) override {
    counts_.elementwise += 5 * n(y);
  }
  void rmsnorm_backward(Tensor dx, Tensor, ConstTensor, ConstTensor, ConstTensor, ConstTensor, ConstTensor) override {
    counts_.elementwise += 9 * n(dx);
  }
  void linear_forward(Tensor y, ConstTensor, ConstTensor w) override { counts_.linear += product(y, w, 1); }
  void linear_backward_input(Tensor dx, ConstTensor, ConstTensor w, bool) override {
    counts_.linear += product(dx, w, 0);
  }
  void linear_backward_weight(Tensor dw, ConstTensor dy, ConstTensor) override {
    counts_.linear += 2 * n(dw) * static_cast<double>(dy.size(0));
  }
  void conv_silu_forward(Tensor y, ConstTensor, ConstTensor, ConstTensor w, ConstTensor) override {
    counts_.elementwise += n(y) * static_cast<double>(2 * w.size(1) + 4);
  }
  void conv_silu_backward(Tensor dx, Tensor, Tensor, Tensor, ConstTensor, ConstTensor, ConstTensor, ConstTensor w,
                          ConstTensor) override {
    counts_.elementwise += n(dx) * static_cast<double>(6 * w.size(1) + 8);
  }
  void conv_silu_rope_forward(const ConvRopeForward& a) override {
    conv_silu_forward(a.y_BTC, a.x_BTC, a.halo_BWC, a.w_CW, a.b_C);
    counts_.elementwise += 3 * rotated(a);
  }
  void conv_silu_rope_backward(const ConvRopeBackward& a) override {
    conv_silu_backward(a.dx_BTC, a.dhalo_BWC, a.dw_CW, a.db_C, a.dy_BTC, a.x_BTC, a.halo_BWC, a.w_CW, a.b_C);
    counts_.elementwise += 3 * rotated(a);
  }
  void rope_forward(Tensor y, ConstTensor, int64_t, double) override { counts_.elementwise += 3 * n(y); }
  void rope_backward(Tensor dx, ConstTensor, int64_t, double) override { counts_.elementwise += 3 * n(dx); }
  void attention_forward(const AttentionForward& a) override {
    counts_.attention += 4 * pairs(a.q_BTHD, a.q_begin) * static_cast<double>(a.q_BTHD.size(3));
  }
  void attention_backward(const AttentionBackward& a) override {
    counts_.attention += 10 * pairs(a.q_BTHD, a.q_begin) * static_cast<double>(a.q_BTHD.size(3));
  }
  void dt_forward(Tensor dt, Tensor, ConstTensor, ConstTensor, ConstTensor) override {
    counts_.elementwise += 6 * n(dt);
  }
  void dt_backward(Tensor draw, Tensor, Tensor, ConstTensor, ConstTensor, ConstTensor, ConstTensor,
                   ConstTensor) override {
    counts_.elementwise += 10 * n(draw);
  }
  // Outputs: scores and values within a chunk (2 pair products), the state read (1) and updated (1). Converter: the
  // update alone.
  void ssd_forward(const SsdForward& a) override {
    const bool outputs = a.q_BTHD.dims() > 0;
    counts_.ssd += ssd_pass(a.k_BTHD, a.chunk, outputs ? 2 : 0, outputs ? 2 : 1);
  }
  // Outputs: scores, values' gradients, dq, dk, dv within a chunk (5), state rebuilt (1), dq and G's update (2), dk and
  // dv through G (2). Converter: state rebuilt (1), dk and dv through G (2).
  void ssd_backward(const SsdBackward& a) override {
    const bool outputs = a.q_BTHD.dims() > 0;
    counts_.ssd += ssd_pass(a.k_BTHD, a.chunk, outputs ? 5 : 0, outputs ? 5 : 3);
  }
  void ssd_adjoint(Tensor, Tensor, ConstTensor q, ConstTensor, ConstTensor, int64_t chunk) override {
    counts_.ssd += ssd_pass(q, chunk, 0, 1);
  }
  void ssd_decay(Tensor state, ConstTensor) override { counts_.elementwise += n(state); }
  void segment_scan(Tensor out, ConstTensor, ConstTensor, bool) override { counts_.elementwise += 2 * n(out); }
  void gated_norm_forward(Tensor out, Tensor, ConstTensor, ConstTensor, ConstTensor, double) override {
    counts_.elementwise += 9 * n(out);
  }
  void gated_norm_backward(Tensor dy, Tensor, Tensor, ConstTensor, ConstTensor, ConstTensor, ConstTensor,
                           ConstTensor) override {
    counts_.elementwise += 18 * n(dy);
  }
  void swiglu_forward(Tensor h, ConstTensor) override { counts_.elementwise += 6 * n(h); }
  void swiglu_backward(Tensor dgate_up, ConstTensor, ConstTensor) override { counts_.elementwise += 6 * n(dgate_up); }
  void cross_entropy_stats(Tensor, Tensor, Tensor, ConstTensor logits, ConstTensor, int64_t) override {
    counts_.elementwise += 3 * n(logits);
  }
  void cross_entropy_rescale(Tensor sum_exp, ConstTensor, ConstTensor) override {
    counts_.elementwise += 3 * n(sum_exp);
  }
  void cross_entropy_loss(Tensor, Tensor, Tensor, ConstTensor max, ConstTensor, ConstTensor, ConstTensor) override {
    counts_.elementwise += 4 * n(max);
  }
  void cross_entropy_gradient(Tensor logits, ConstTensor, ConstTensor, ConstTensor, int64_t, double) override {
    counts_.elementwise += 4 * n(logits);
  }
  void check_step(Tensor, ConstTensor, ConstTensor) override {}
  void adamw(std::span<const AdamwTensor> tensors, const AdamwRule&, ConstTensor) override {
    for (const AdamwTensor& t : tensors) counts_.elementwise += 12 * n(t.master);
  }

 private:
  // y [N, O] with w [O, I]: every element of y costs 2 I (contracted = 1); dx [N, I] costs 2 O (contracted = 0).
  static double product(const ConstTensor& y, const ConstTensor& w, int contracted) {
    return 2 * n(y) * static_cast<double>(w.size(contracted));
  }

  Device device_;
  OpCounts counts_;
};

}  // namespace

std::unique_ptr<CountingOps> make_counting_ops(Device device) { return std::make_unique<Counter>(device); }

}  // namespace tmamba
