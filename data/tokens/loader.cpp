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

int64_t Loader::window_of(int64_t i) const {
  TM_CHECK(i >= 0, "sequence ", i);
  const int64_t epoch = i / windows_, place = i % windows_;
  if (order_ == Order::sequential) return place;
  return permute(place, windows_, Philox(seed_, stream_id("data/loader") + static_cast<uint64_t>(epoch)));
}

Batch Loader::load(int64_t first, int64_t count) {
  TM_CHECK(first >= 0 && count >= 0, "sequences [", first, ", ", first + count, ")");
  const auto bytes = static_cast<size_t>(count * seq_len_) * sizeof(int32_t);
  if (tokens_.bytes() < bytes) {
    tokens_ = Buffer(bytes, Device::cpu);
    targets_ = Buffer(bytes, Device::cpu);
  }
  const Batch batch{tokens_.tensor({count, seq_len_}, DType::i32), targets_.tensor({count, seq_len_}, DType::i32)};
  std::vector<int32_t> window(static_cast<size_t>(seq_len_) + 1);
  for (int64_t b = 0; b < count; ++b) {
    file_.read(window_of(first + b) * seq_len_, window);
    std::copy(window.begin(), window.end() - 1, batch.tokens_BT.data<int32_t>() + b * seq_len_);
    std::copy(window.begin() + 1, window.end(), batch.targets_BT.data<int32_t>() + b * seq_len_);
  }
  return batch;
}

}  // namespace tmamba
