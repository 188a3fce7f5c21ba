// Activation checkpointing: how much of a layer's forward pass backward recomputes instead of keeping its results.
// Saves memory and costs time; the same operations run on the same inputs, so results do not depend on it.
#pragma once

#include <array>
#include <cstdint>

namespace tmamba {

// Each level recomputes what the level before it does, and more.
enum class Recompute : uint8_t {
  none,
  cheap,  // norms, the convolution, rotated keys, the gated norm and SwiGLU: passes over memory, no GEMMs
  mlp,    // and the MLP's gate and up, the widest of all activations: one GEMM
  all,    // and everything else except the residual before the layer, the attention outputs with their softmax sums,
          // and the small tensors received from other ranks: the halo and the state before each segment
};
inline constexpr std::array<Recompute, 4> kRecomputeLevels{Recompute::none, Recompute::cheap, Recompute::mlp,
                                                           Recompute::all};

// Whether a level recomputes what `first` is the first level to recompute.
constexpr bool recomputes(Recompute level, Recompute first) {
  return static_cast<int>(level) >= static_cast<int>(first);
}

constexpr const char* name_of(Recompute level) {
  constexpr std::array<const char*, kRecomputeLevels.size()> names{"none", "cheap", "mlp", "all"};
  return names[static_cast<size_t>(level)];
}

// Exchanges of a layer among tensor-parallel ranks that backward repeats: gathers of the rows after a norm, and sums of
// the mixer's outputs.
constexpr int gathers_again(Recompute level) { return level == Recompute::none ? 0 : 2; }
constexpr int sums_again(Recompute level) { return level == Recompute::all ? 1 : 0; }

}  // namespace tmamba
