// Loads training sequences. Which tokens sequence i has is a pure function of (seed, place at which the loader begins,
// i).
#pragma once

#include <cstdint>
#include <span>

#include "data/tokens/stretch.h"
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
// Sequence i is window permutation_epoch(i mod windows), where epoch = i / windows. This does not depend on the number
// of ranks or the batch size. A loader that begins at another place counts its sequences from there (stretch.h).
class Loader {
 public:
  // `file` must outlive the loader. Throws UserError if the file has fewer tokens than one window.
  Loader(const TokenFile& file, int64_t seq_len, uint64_t seed, Order order = Order::shuffled);

  // Sequences count from this place on.
  void begin_at(const SourcePlace& place) { start_ = place; }

  int64_t windows() const { return windows_; }
  int64_t seq_len() const { return seq_len_; }
  // The window of sequence i >= 0; of a loader that begins in the middle of an epoch with other blocks: its first
  // block.
  int64_t window_of(int64_t i) const;
  // Loads sequences [first, first + count). The loader owns the batch's memory, which is valid until the next call.
  Batch load(int64_t first, int64_t count);

 private:
  int64_t block_at(const SourcePlace& place) const;

  const TokenFile& file_;
  int64_t seq_len_;
  uint64_t seed_;
  Order order_;
  int64_t windows_;
  SourcePlace start_;
  Buffer tokens_;
  Buffer targets_;
};

}  // namespace tmamba
