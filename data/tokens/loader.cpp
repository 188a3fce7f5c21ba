#include "data/tokens/loader.h"

#include <algorithm>
#include <vector>

#include "data/tokens/permutation.h"

namespace tmamba {

Loader::Loader(const TokenFile& file, int64_t seq_len, uint64_t seed, Order order)
    : file_(file),
      seq_len_(seq_len),
      seed_(seed),
      order_(order),
      windows_(seq_len > 0 ? (file.info().tokens - 1) / seq_len : 0) {
  if (seq_len < 1) throw UserError(str("data.seq_len must be at least 1, got ", seq_len));
  if (windows_ < 1) {
    throw UserError(str(file.info().path.string(), ": has ", file.info().tokens,
                        " tokens, too few for one sequence of ", seq_len,
                        " + 1; use more text or a smaller data.seq_len"));
  }
}

// The block in the file that holds this place.
int64_t Loader::block_at(const SourcePlace& place) const {
  const int64_t index = place.offset / place.block;
  if (order_ == Order::sequential) return index;
  return permute(index, epoch_tokens(file_.info().tokens, place.block) / place.block,
                 Philox(seed_, stream_id("data/loader") + static_cast<uint64_t>(place.epoch)));
}

int64_t Loader::window_of(int64_t i) const { return block_at(place_of(start_, file_.info().tokens, seq_len_, i)); }

Batch Loader::load(int64_t first, int64_t count) {
  TM_CHECK(first >= 0 && count >= 0, "sequences [", first, ", ", first + count, ")");
  const auto bytes = static_cast<size_t>(count * seq_len_) * sizeof(int32_t);
  if (tokens_.bytes() < bytes) {
    tokens_ = Buffer(bytes, Device::cpu);
    targets_ = Buffer(bytes, Device::cpu);
  }
  const Batch batch{tokens_.tensor({count, seq_len_}, DType::i32), targets_.tensor({count, seq_len_}, DType::i32)};
  std::vector<int32_t> part;
  for (int64_t b = 0; b < count; ++b) {
    SourcePlace at = place_of(start_, file_.info().tokens, seq_len_, first + b);
    // One part, unless the sequence length has changed in this epoch.
    for (int64_t done = 0; done < seq_len_; done += std::ssize(part) - 1) {
      const int64_t in_block = at.offset % at.block, size = std::min(at.block - in_block, seq_len_ - done);
      part.resize(static_cast<size_t>(size) + 1);
      file_.read(block_at(at) * at.block + in_block, part);
      std::copy(part.begin(), part.end() - 1, batch.tokens_BT.data<int32_t>() + b * seq_len_ + done);
      std::copy(part.begin() + 1, part.end(), batch.targets_BT.data<int32_t>() + b * seq_len_ + done);
      at.offset += size;
    }
  }
  return batch;
}

}  // namespace tmamba
