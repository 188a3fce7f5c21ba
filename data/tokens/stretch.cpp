#include "data/tokens/stretch.h"

#include "kernels/base/check.h"

namespace tmamba {

int64_t epoch_tokens(int64_t file_tokens, int64_t block) { return (file_tokens - 1) / block * block; }

namespace {

int64_t block_of(const SourcePlace& start, int64_t seq_len) { return start.offset == 0 ? seq_len : start.block; }

int64_t rest_of_epoch(const SourcePlace& start, int64_t file_tokens, int64_t seq_len) {
  return epoch_tokens(file_tokens, block_of(start, seq_len)) - start.offset;
}

}  // namespace

SourcePlace place_of(const SourcePlace& start, int64_t file_tokens, int64_t seq_len, int64_t i) {
  const int64_t windows = (file_tokens - 1) / seq_len;  // of a whole epoch
  TM_CHECK(i >= 0 && windows > 0, "sequence ", i, " of ", seq_len, " tokens in a file of ", file_tokens);
  const int64_t left = rest_of_epoch(start, file_tokens, seq_len) / seq_len;
  if (i < left) return {start.epoch, block_of(start, seq_len), start.offset + i * seq_len};
  const int64_t later = i - left;
  return {start.epoch + 1 + later / windows, seq_len, later % windows * seq_len};
}

int64_t left_out_tokens(const SourcePlace& start, int64_t file_tokens, int64_t seq_len) {
  return rest_of_epoch(start, file_tokens, seq_len) % seq_len;
}

SourcePlace place_after(const std::vector<Stretch>& stretches, const std::string& identity, int64_t file_tokens) {
  SourcePlace at;
  for (const Stretch& stretch : stretches) {
    for (const StretchSource& source : stretch.sources) {
      if (source.identity != identity) continue;
      at = place_of(at, file_tokens, stretch.seq_len, source.drawn / stretch.seq_len);
    }
  }
  return at;
}

SourcePlace start_of_last(std::vector<Stretch> stretches, int64_t file_tokens) {
  StretchSource& source = stretches.back().sources.front();
  source.drawn = 0;
  return place_after(stretches, source.identity, file_tokens);
}

}  // namespace tmamba
