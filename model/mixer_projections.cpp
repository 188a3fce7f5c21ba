#include "model/mixer_projections.h"

namespace tmamba {

namespace {

// All rows of all sequences.
Tensor rows(const Tensor& x_BnC) { return x_BnC.view({x_BnC.size(0) * x_BnC.size(1), x_BnC.size(2)}); }

}  // namespace

MixerParams MixerParams::of(const ParameterTable& table, const Tensor& flat, const ModelConfig& config, int64_t layer) {
  auto view = [&](const char* name) { return table.view(flat, str("layers.", layer, ".mixer.", name)); };
  MixerParams params{.qkv_XC = view("qkv.weight"),
                     .conv_XW = view("conv.weight"),
                     .conv_bias_X = view("conv.bias"),
                     .out_CC = view("out.weight")};
  if (!config.has_ssm(layer)) return params;
  params.dt_HC = view("dt.weight"), params.dt_bias_H = view("dt.bias");
  params.A_log_H = view("A_log"), params.D_H = view("D");
  const Tensor out_norm = view("out_norm.weight");
  params.out_norm_HD = out_norm.split(0, out_norm.size(0) / config.head_dim(), config.head_dim());
  params.z_CC = table.view_if_present(flat, str("layers.", layer, ".mixer.z.weight"));
  return params;
}

void project_qkv(Ops& ops, const MixerParams& w, const Tensor& pre_BnX, ConstTensor u_NC) {
  ops.linear_forward({.y_NO = rows(pre_BnX), .x_NI = u_NC, .w_OI = w.qkv_XC});
}

void project_dt(Ops& ops, const MixerParams& w, const Tensor& raw_BnH, ConstTensor u_NC) {
  ops.linear_forward({.y_NO = rows(raw_BnH), .x_NI = u_NC, .w_OI = w.dt_HC});
}

void project_z(Ops& ops, const MixerParams& w, const Tensor& z_BSC, ConstTensor u_NC) {
  if (z_BSC.dims() == 0) return;
  const int64_t B = z_BSC.size(0), S = z_BSC.size(1), n = u_NC.size(0) / B;
  for (int64_t b = 0; b < B; ++b) {
    ops.linear_forward({.y_NO = z_BSC.select(0, b), .x_NI = u_NC.slice(0, (b + 1) * n - S, S), .w_OI = w.z_CC});
  }
}

void gate_and_norm(Ops& ops, const MixerParams& w, const Tensor& mixed_BSC, const Tensor& rstd_BSH,
                   const Tensor& y_BSHD, const Tensor& z_BSC, double eps) {
  const auto by_head = [&](const Tensor& x) { return x.split(2, y_BSHD.size(2), y_BSHD.size(3)); };
  ops.gated_norm_forward({.out_BTHD = by_head(mixed_BSC),
                          .rstd_BTH = rstd_BSH,
                          .y_BTHD = y_BSHD,
                          .z_BTHD = z_BSC.dims() == 0 ? Tensor() : by_head(z_BSC),
                          .w_HD = w.out_norm_HD,
                          .eps = eps});
}

void project_out(Ops& ops, const MixerParams& w, const Tensor& out_NC, const Tensor& mixed_BnC) {
  ops.linear_forward({.y_NO = out_NC, .x_NI = rows(mixed_BnC), .w_OI = w.out_CC});
}

}  // namespace tmamba
