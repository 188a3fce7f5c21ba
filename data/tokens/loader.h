// The loader: a pure function of (seed, sequence number), with no state to save but the step.
#pragma once

#include <cstdint>
#include <span>

#include "data/tokens/token_file.h"
#include "kernels/base/buffer.h"

namespace tmamba {

enum class Order : uint8_t {
  shuffled,    // windows without replacement, a new permutation every epoch
  sequential,  // window i is sequence i
};

// Some sequences on the host: targets are tokens shifted by one. int32 [B, T] each.
struct Batch {
  Tensor tokens_BT;
  Tensor targets_BT;
};

// The file is cut into windows of seq_len + 1 tokens that overlap by one (window w starts at w * seq_len). Sequence i
// of the run is window permutation_epoch(i mod windows) of epoch i / windows, whatever the ranks and the batch size.
class Loader {
 public:
  // Throws UserError where the file holds no whole window.
  Loader(const TokenFile& file, int64_t seq_len, uint64_t seed, Order order = Order::shuffled);

  int64_t windows() const { return windows_; }
  int64_t seq_len() const { return seq_len_; }
  // Window of sequence `i` >= 0.
  int64_t window_of(int64_t i) const;
  // Sequences [first, first + count). The batch's memory is the loader's and lives until the next call.
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
