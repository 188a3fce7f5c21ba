// The part of the mixer that treats every token by itself: projections before the mixing of tokens, gate, norm and
// projection after it (model/SPEC.md section 2). Training (model/mixer.h) and decoding (model/decoder.h) both call
// these functions.
//
// B sequences of n tokens, of which the last S are SSM tokens; N = B n rows. C model width, H heads and D head width of
// this tensor-parallel rank, X = 3 H D channels of q, k, v.
#pragma once

#include "kernels/ops/ops.h"
#include "model/config.h"
#include "model/parameters.h"
#include "model/sequence_mixer.h"

namespace tmamba {

// Views of one layer's mixer parameters, or of their gradients, in a flat buffer.
struct MixerParams {
  Tensor qkv_XC, conv_XW, conv_bias_X;
  Tensor out_CC;
  // Of the SSM tokens: empty in a layer without an SSM part.
  Tensor dt_HC, dt_bias_H, A_log_H, D_H, out_norm_HD;
  Tensor z_CC;  // empty without a z gate too

  static MixerParams of(const ParameterTable& table, const Tensor& flat, const ModelConfig& config, int64_t layer);
  // Those that the mixing of tokens uses.
  SequenceMixerParams sequence() const { return {conv_XW, conv_bias_X, dt_bias_H, A_log_H, D_H}; }
};

// q, k and v before the convolution.
void project_qkv(Ops& ops, const MixerParams& w, const Tensor& pre_BnX, ConstTensor u_NC);
// Step sizes before softplus.
void project_dt(Ops& ops, const MixerParams& w, const Tensor& raw_BnH, ConstTensor u_NC);
// The gate of the SSM tokens. Does nothing where z is empty.
void project_z(Ops& ops, const MixerParams& w, const Tensor& z_BSC, ConstTensor u_NC);
// mixed = norm(y * SiLU(z)) per head, of the SSM tokens; rstd is saved for backward. z is empty without a z gate.
void gate_and_norm(Ops& ops, const MixerParams& w, const Tensor& mixed_BSC, const Tensor& rstd_BSH,
                   const Tensor& y_BSHD, const Tensor& z_BSC, double eps);
void project_out(Ops& ops, const MixerParams& w, const Tensor& out_NC, const Tensor& mixed_BnC);

}  // namespace tmamba
