// Loads training sequences. Which tokens sequence i has is a pure function of (seed, i), so the step is the only state
// that a checkpoint needs.
#pragma once

#include <cstdint>
#include <span>

#include "data/tokens/token_file.h"
#include "kernels/base/buffer.h"

namespace tmamba {

enum class Order : uint8_t {
  shuffled,    // windows without replacement, in a new permutation every epoch
  sequential,  // sequence i is window i mod windows
};

// Sequences in host memory, int32 [B, T] each. targets_BT[b, t] is the token after tokens_BT[b, t].
struct Batch {
  Tensor tokens_BT;
  Tensor targets_BT;
};

// The file is split into windows of seq_len + 1 tokens that overlap by one: window w starts at token w * seq_len.
// Sequence i of the run is window permutation_epoch(i mod windows), where epoch = i / windows. This does not depend on
// the number of ranks or the batch size.
class Loader {
 public:
  // `file` must outlive the loader. Throws UserError if the file has fewer tokens than one window.
  Loader(const TokenFile& file, int64_t seq_len, uint64_t seed, Order order = Order::shuffled);

  int64_t windows() const { return windows_; }
  int64_t seq_len() const { return seq_len_; }
  // The window of sequence i >= 0.
  int64_t window_of(int64_t i) const;
  // Loads sequences [first, first + count). The loader owns the batch's memory, which is valid until the next call.
  Batch load(int64_t first, int64_t count);

 private:
  const TokenFile& file_;
  int64_t seq_len_;
  uint64_t seed_;
  Order order_;
  int64_t windows_;
  Buffer tokens_;
  Buffer targets_;
};

}  // namespace tmamba
