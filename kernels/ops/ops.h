// class Ops: the arithmetic of the model on one device, one method per op, forward and backward. The one kernel
// interface of the project: the CPU backend is the specification, the CUDA backend is tested against it. Each op is
// declared by the struct of its arguments in args_*.h: ops.rmsnorm_forward({.y_NC = y, ...}) takes a RmsnormForward.
//
// Names carry shapes: B sequences, T tokens, S keys, N rows (tokens of all sequences), C channels (model width),
// H heads, D head width (= key width = value width), K state rows (key), W conv taps, F MLP width, V vocabulary, I and
// O input and output channels.
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
#include <string>

#include "kernels/base/recording.h"
#include "kernels/ops/args_conv.h"
#include "kernels/ops/args_elementwise.h"
#include "kernels/ops/args_layers.h"
#include "kernels/ops/args_loss.h"
#include "kernels/ops/args_mixer.h"
#include "kernels/ops/args_optimizer.h"
#include "kernels/ops/args_ssd.h"

namespace tmamba {

// X(method, Args) for every op.
#define TMAMBA_FOR_EACH_OP(X) \
  TMAMBA_ELEMENTWISE_OPS(X)   \
  TMAMBA_LAYER_OPS(X)         \
  TMAMBA_CONV_OPS(X)          \
  TMAMBA_MIXER_OPS(X)         \
  TMAMBA_SSD_OPS(X)           \
  TMAMBA_LOSS_OPS(X)          \
  TMAMBA_OPTIMIZER_OPS(X)

// Declares the methods of a backend: TMAMBA_FOR_EACH_OP(TMAMBA_OVERRIDE_OP).
#define TMAMBA_OVERRIDE_OP(method, Args) void method(const Args& args) override;

class Ops {
 public:
  virtual ~Ops() = default;
  virtual Device device() const = 0;
  // Waits until everything issued so far is done.
  virtual void synchronize() = 0;

  // Some ops have several kernels. measure_choices(true) autotunes each new problem size on first use (slower, needs
  // workspace); otherwise a fixed heuristic selects the kernel. The selection determines the result's bits: choices()
  // returns it as text for use_choices() of another run. Text of another kind of device is ignored, damaged text is a
  // UserError. A device without choices returns none.
  virtual void measure_choices(bool /*on*/) {}
  virtual std::string choices() const { return {}; }
  virtual void use_choices(const std::string& /*text*/) {}

  // Records what `issue` issues to the device, without running it; one call replays it, on the same memory. Every op of
  // it must have run before. Ops that cannot record return null and do not call `issue`.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& /*issue*/) { return nullptr; }
  // The cudaStream_t that ops run on, for libraries that order their work with it; null on the host.
  virtual void* native_stream() const { return nullptr; }

#define TMAMBA_DECLARE_OP(method, Args) virtual void method(const Args& args) = 0;
  TMAMBA_FOR_EACH_OP(TMAMBA_DECLARE_OP)
#undef TMAMBA_DECLARE_OP
};

// The ops of a device. Throws UserError where this build or this machine has no such device.
std::unique_ptr<Ops> make_ops(Device device);

}  // namespace tmamba
