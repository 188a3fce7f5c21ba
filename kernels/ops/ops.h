// class Ops: the arithmetic of one op on one device, forward and backward. The one kernel interface of the project:
// the CPU backend is the specification, the CUDA backend is tested against it.
//
// Names carry shapes: B sequences, T tokens, S keys, N rows (tokens of all sequences), C channels (model width),
// H heads, D head width (= key width = value width), K state rows (key), W conv taps, F MLP width, V vocabulary.
//
// Rules for every op
// - Tensors are views. The last dimension is contiguous; the others may be strided unless an op says "contiguous".
//   Sizes are checked and a mismatch throws Error. An empty dimension (T = 0) is allowed and does nothing.
// - Activations and weights have one type A (float32, float64; bfloat16 on CUDA). Tensors marked [acc] have
//   accumulate_type(A): statistics, dt, decays, states and every gradient of a parameter.
// - Gradients of parameters are added to what is there; gradients of activations are written over unless the op says
//   "added". An output never overlaps an input unless the op allows it.
// - Results are deterministic: the same inputs give the same bits, for any number of CPU threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "kernels/base/recording.h"
#include "kernels/base/tensor.h"

namespace tmamba {

// Causal softmax attention of some queries over a prefix of keys (spec.md section 2; paper eq. 2).
// Query i of the T given stands at position q_begin + i and sees keys 0 .. q_begin + i, so S >= q_begin + T.
// Keys from q_begin + T on are not read.
struct AttentionForward {
  Tensor o_BTHD;       // sum_s softmax_s(q . k_s * scale) v_s
  Tensor lse_BTH;      // [acc] log sum_s exp(q . k_s * scale), kept for backward
  ConstTensor q_BTHD;  // rotated
  ConstTensor k_BSHD;  // rotated
  ConstTensor v_BSHD;
  int64_t q_begin = 0;
  double scale = 1.0;
};

struct AttentionBackward {
  Tensor dq_BTHD;  // written over
  Tensor dk_BSHD;  // added, keys 0 .. q_begin + T - 1
  Tensor dv_BSHD;  // added
  ConstTensor do_BTHD;
  ConstTensor o_BTHD;
  ConstTensor lse_BTH;  // [acc]
  ConstTensor q_BTHD;
  ConstTensor k_BSHD;
  ConstTensor v_BSHD;
  int64_t q_begin = 0;
  double scale = 1.0;
};

// The SSM scan over T tokens (spec.md sections 2 and 3; Mamba-2's SSD in chunks of `chunk` tokens):
//   S_t = exp(log_a_t) S_{t-1} + k_t (dt_t v_t)^T        S is K x D, key x value
//   y_t = S_t^T q_t + D v_t
// Without q (empty q_BTHD, D_H and y_BTHD) no outputs are computed: that is the Memory Converter (paper eq. 9), and
// the summary of a segment for the scan across segments.
struct SsdForward {
  Tensor y_BTHD;            // or empty
  Tensor final_state_BHKD;  // [acc] S after the last token; may be empty; may be the same memory as initial_state
  Tensor log_decay_BH;      // [acc] sum_t log_a_t; may be empty
  ConstTensor q_BTHD;       // or empty
  ConstTensor k_BTHD;
  ConstTensor v_BTHD;
  ConstTensor dt_BTH;              // [acc]
  ConstTensor log_a_BTH;           // [acc] <= 0
  ConstTensor D_H;                 // type A; or empty
  ConstTensor initial_state_BHKD;  // [acc] S before the first token; empty means zero
  int64_t chunk = 64;
};

// With G_t = dL/dS_t: G = final_state's gradient plus what the outputs give, carried backward by the decays.
struct SsdBackward {
  Tensor dq_BTHD;                 // written over; empty where q is
  Tensor dk_BTHD;                 // written over
  Tensor dv_BTHD;                 // written over, or added where accumulate_v
  Tensor ddt_BTH;                 // [acc] written over: the part through dt_t v_t alone, not through log_a
  Tensor dlog_a_BTH;              // [acc] written over
  Tensor dD_H;                    // [acc] added; empty where q is
  Tensor dinitial_state_BHKD;     // [acc] written over; may be empty; may be the same memory as dfinal_state
  ConstTensor dy_BTHD;            // or empty
  ConstTensor dfinal_state_BHKD;  // [acc] empty means zero
  ConstTensor q_BTHD;
  ConstTensor k_BTHD;
  ConstTensor v_BTHD;
  ConstTensor dt_BTH;
  ConstTensor log_a_BTH;
  ConstTensor D_H;
  ConstTensor initial_state_BHKD;
  int64_t chunk = 64;
  bool accumulate_v = false;
};

// The convolution of a mixer's q, k and v, C = 3 H D channels in this order, and RoPE on q and k of the first `prefix`
// of the T tokens (spec.md section 2), in one pass. Token t stands at `position + t`.
//   y = conv_silu_forward(x), but of tokens t < prefix q is rotated, and so is k where k_rot_BPHD is empty; else
//   k_rot_BPHD is k rotated, and y has it plain (for the Memory Converter).
struct ConvRopeForward {
  Tensor y_BTC;
  Tensor k_rot_BPHD;  // P = prefix; or empty
  ConstTensor x_BTC;
  ConstTensor halo_BWC;  // as in conv_silu_forward
  ConstTensor w_CW;
  ConstTensor b_C;
  int64_t heads = 1, prefix = 0, position = 0;
  double theta = 10000;
};

// The gradients of y and k_rot are used up: what they hold afterwards is undefined.
struct ConvRopeBackward {
  Tensor dx_BTC;     // written over
  Tensor dhalo_BWC;  // written over; may be empty
  Tensor dw_CW;      // [acc] added
  Tensor db_C;       // [acc] added
  Tensor dy_BTC;
  Tensor dk_rot_BPHD;  // empty where k_rot is
  ConstTensor x_BTC;
  ConstTensor halo_BWC;
  ConstTensor w_CW;
  ConstTensor b_C;
  int64_t heads = 1, prefix = 0, position = 0;
  double theta = 10000;
};

// What AdamW does alike at every step (spec.md section 7).
struct AdamwRule {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
};

// One contiguous piece of the parameters. Where the parameter's type is the master's, `param` and `master` are the
// same memory.
struct AdamwTensor {
  Tensor param;        // type A, written: the master rounded
  Tensor master;       // [acc]
  Tensor m;            // [acc]
  Tensor v;            // [acc]
  ConstTensor grad;    // [acc]
  bool decay = false;  // weight decay applies (decoupled: master -= lr * weight_decay * master)
};

class Ops {
 public:
  virtual ~Ops() = default;
  virtual Device device() const = 0;
  // Waits until everything issued so far is done.
  virtual void synchronize() = 0;

  // --- Choices -----------------------------------------------------------------------------------------------------
  // Where a device has several kernels for the same op, the bits of a result are those of the one chosen. While
  // measuring, the fastest is found when a problem is met first (which takes longer, and memory); else a rule chooses.
  // choices() as text, for use_choices() of another run to take over: text of another kind of device is ignored,
  // damaged text is a UserError. A device without choices has none to tell.
  virtual void measure_choices(bool /*on*/) {}
  virtual std::string choices() const { return {}; }
  virtual void use_choices(const std::string& /*text*/) {}

  // --- Recordings --------------------------------------------------------------------------------------------------
  // Records what `issue` issues to the device, without running it: to be replayed, on the same memory, by one call.
  // Every op of it must have run before. Null from ops that cannot record; `issue` is then not called.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& /*issue*/) { return nullptr; }
  // What other libraries order their work with: the cudaStream_t that ops run on; null on a host.
  virtual void* native_stream() const { return nullptr; }

  // --- Elementwise -------------------------------------------------------------------------------------------------
  virtual void fill(Tensor x, double value) = 0;
  // y = x, of any two floating types.
  virtual void copy(Tensor y, ConstTensor x) = 0;
  // y += x, of any two floating types.
  virtual void add(Tensor y, ConstTensor x) = 0;
  virtual void scale(Tensor x, double factor) = 0;
  // out_1 [float64] = sum x^2 over each tensor in order. Accumulated in float64.
  virtual void sum_squares(Tensor out_1, std::span<const ConstTensor> tensors) = 0;

  // --- Embedding ---------------------------------------------------------------------------------------------------
  // y_n = table[tokens_n - vocab_begin]; zero where that is not a row of the table (vocabulary-parallel shards).
  // tokens: int32.
  virtual void embedding_forward(Tensor y_NC, ConstTensor table_VC, ConstTensor tokens_N, int64_t vocab_begin) = 0;
  virtual void embedding_backward(Tensor dtable_VC, ConstTensor dy_NC, ConstTensor tokens_N, int64_t vocab_begin) = 0;

  // --- RMSNorm with residual ---------------------------------------------------------------------------------------
  // sum = x + delta;  rstd = 1 / sqrt(mean(sum^2) + eps);  y = sum * rstd * w. rstd [acc] is kept for backward.
  // With an empty delta, sum = x and sum_NC is not written (pass it empty).
  virtual void rmsnorm_forward(Tensor y_NC, Tensor rstd_N, Tensor sum_NC, ConstTensor x_NC, ConstTensor delta_NC,
                               ConstTensor w_C, double eps) = 0;
  // dx = dresidual + d(norm)/dx dy, with x the normed sum; dw_C [acc] added. dresidual may be empty (zero) and may be
  // the same memory as dx.
  virtual void rmsnorm_backward(Tensor dx_NC, Tensor dw_C, ConstTensor dy_NC, ConstTensor x_NC, ConstTensor rstd_N,
                                ConstTensor w_C, ConstTensor dresidual_NC) = 0;

  // --- Linear (w is [out, in]) -------------------------------------------------------------------------------------
  virtual void linear_forward(Tensor y_NO, ConstTensor x_NI, ConstTensor w_OI) = 0;
  // dx = dy w, or dx += dy w.
  virtual void linear_backward_input(Tensor dx_NI, ConstTensor dy_NO, ConstTensor w_OI, bool accumulate) = 0;
  // dw [acc] += dy^T x.
  virtual void linear_backward_weight(Tensor dw_OI, ConstTensor dy_NO, ConstTensor x_NI) = 0;

  // --- Depthwise causal convolution and SiLU -----------------------------------------------------------------------
  // y_t = SiLU(b + sum_j w[., j] x_{t - (W-1) + j}); the W-1 rows before x_0 are halo_BWC [B, W-1, C] (empty: zeros).
  virtual void conv_silu_forward(Tensor y_BTC, ConstTensor x_BTC, ConstTensor halo_BWC, ConstTensor w_CW,
                                 ConstTensor b_C) = 0;
  // dx written over, dhalo written over (may be empty), dw and db [acc] added. Recomputes the pre-activation.
  virtual void conv_silu_backward(Tensor dx_BTC, Tensor dhalo_BWC, Tensor dw_CW, Tensor db_C, ConstTensor dy_BTC,
                                  ConstTensor x_BTC, ConstTensor halo_BWC, ConstTensor w_CW, ConstTensor b_C) = 0;

  // The same with RoPE on a part of the outputs.
  virtual void conv_silu_rope_forward(const ConvRopeForward& args) = 0;
  virtual void conv_silu_rope_backward(const ConvRopeBackward& args) = 0;

  // --- Rotary position embedding, pairs (i, i + D/2), angle position * theta^(-2i/D) -------------------------------
  // Token t of the T given stands at `position + t`. y may be the same memory as x.
  virtual void rope_forward(Tensor y_BTHD, ConstTensor x_BTHD, int64_t position, double theta) = 0;
  // The transpose: rotation by the negative angle. dx may be the same memory as dy.
  virtual void rope_backward(Tensor dx_BTHD, ConstTensor dy_BTHD, int64_t position, double theta) = 0;

  // --- Attention over the prefix -----------------------------------------------------------------------------------
  virtual void attention_forward(const AttentionForward& args) = 0;
  virtual void attention_backward(const AttentionBackward& args) = 0;

  // --- Step size and decay of the SSM ------------------------------------------------------------------------------
  // dt = softplus(raw + bias);  log_a = -dt * exp(A_log). raw, bias, A_log of type A; dt, log_a [acc].
  virtual void dt_forward(Tensor dt_NH, Tensor log_a_NH, ConstTensor raw_NH, ConstTensor bias_H,
                          ConstTensor A_log_H) = 0;
  // draw (type A) written over; dbias, dA_log [acc] added. ddt is the gradient with log_a held fixed.
  virtual void dt_backward(Tensor draw_NH, Tensor dbias_H, Tensor dA_log_H, ConstTensor ddt_NH, ConstTensor dlog_a_NH,
                           ConstTensor raw_NH, ConstTensor bias_H, ConstTensor A_log_H) = 0;

  // --- SSM scan and Memory Converter -------------------------------------------------------------------------------
  virtual void ssd_forward(const SsdForward& args) = 0;
  virtual void ssd_backward(const SsdBackward& args) = 0;
  // dinitial_BHKD [acc] = sum_t exp(log_a_0 + .. + log_a_t) q_t dy_t^T: the gradient that the outputs of a segment
  // deliver to the state before it, when nothing flows back from behind it. log_decay as in SsdForward.
  virtual void ssd_adjoint(Tensor dinitial_BHKD, Tensor log_decay_BH, ConstTensor q_BTHD, ConstTensor dy_BTHD,
                           ConstTensor log_a_BTH, int64_t chunk) = 0;

  // state_BHKD [acc] *= exp(sum_t log_a_t): a state, or the gradient of one, carried over T tokens that add nothing.
  virtual void ssd_decay(Tensor state_BHKD, ConstTensor log_a_BTH) = 0;
  // Exclusive scan over K segments of states (E elements each, or a slice of them): out_0 = 0,
  // out_{k+1} = exp(decay_k) out_k + in_k; reversed out_{K-1} = 0, out_{k-1} = exp(decay_k) out_k + in_k. All [acc].
  virtual void segment_scan(Tensor out_KBHE, ConstTensor in_KBHE, ConstTensor decay_KBH, bool reverse) = 0;

  // --- Gated norm per head: g = y * SiLU(z);  out = g * rstd * w_HD, rstd over D -------------------------------------
  // Without z (z and dz empty) g = y.
  virtual void gated_norm_forward(Tensor out_BTHD, Tensor rstd_BTH, ConstTensor y_BTHD, ConstTensor z_BTHD,
                                  ConstTensor w_HD, double eps) = 0;
  // dy, dz written over (dy may be the same memory as dout); dw_HD [acc] added.
  virtual void gated_norm_backward(Tensor dy_BTHD, Tensor dz_BTHD, Tensor dw_HD, ConstTensor dout_BTHD,
                                   ConstTensor y_BTHD, ConstTensor z_BTHD, ConstTensor rstd_BTH, ConstTensor w_HD) = 0;

  // --- SwiGLU: h = SiLU(gate) * up, gate_up_N2F = gate channels, then up channels ----------------------------------
  virtual void swiglu_forward(Tensor h_NF, ConstTensor gate_up_N2F) = 0;
  virtual void swiglu_backward(Tensor dgate_up_N2F, ConstTensor dh_NF, ConstTensor gate_up_N2F) = 0;

  // --- Cross-entropy over a shard [vocab_begin, vocab_begin + V) of the vocabulary ---------------------------------
  // max_N, sum_exp_N (relative to that max) and target_N (the target's logit, 0 where another shard holds it), all
  // [acc]; ranks combine them. targets: int32, a negative target is not counted.
  virtual void cross_entropy_stats(Tensor max_N, Tensor sum_exp_N, Tensor target_N, ConstTensor logits_NV,
                                   ConstTensor targets_N, int64_t vocab_begin) = 0;
  // sum_exp_N *= exp(max_N - global_max_N): makes sums of shards relative to one maximum before they are added.
  virtual void cross_entropy_rescale(Tensor sum_exp_N, ConstTensor max_N, ConstTensor global_max_N) = 0;
  // loss_sum_1 [float64] += sum of (max + log(sum_exp) - target) over counted tokens; count_1 [float64] += how many;
  // loss_N [acc] gets each token's loss (0 where not counted) and may be empty.
  virtual void cross_entropy_loss(Tensor loss_sum_1, Tensor count_1, Tensor loss_N, ConstTensor max_N,
                                  ConstTensor sum_exp_N, ConstTensor target_N, ConstTensor targets_N) = 0;
  // In place: logits = (softmax(logits) - onehot(target)) * scale; zero rows where the target is not counted.
  virtual void cross_entropy_gradient(Tensor logits_NV, ConstTensor max_N, ConstTensor sum_exp_N, ConstTensor targets_N,
                                      int64_t vocab_begin, double scale) = 0;

  // --- Optimizer ---------------------------------------------------------------------------------------------------
  // Sets grad_scale and applied of a StepScalars from StepSums and StepLimits (step_scalars.h, check_step.h).
  virtual void check_step(Tensor step_S, ConstTensor sums_S, ConstTensor limits_S) = 0;
  // g = grad * grad_scale; m, v, master updated; param = master rounded. Nothing where the step is skipped.
  virtual void adamw(std::span<const AdamwTensor> tensors, const AdamwRule& rule, ConstTensor step_S) = 0;
};

// The ops of a device. Throws UserError where this build or this machine has no such device.
std::unique_ptr<Ops> make_ops(Device device);

}  // namespace tmamba
