// The order in which a run reads its data, across changes of sequence length and files: a list of stretches. Which
// tokens a sequence has is a pure function of (seed, list, index of the sequence in the last stretch), so the list is
// the only state of the data that a checkpoint needs. A change of batch or ranks continues a stretch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tmamba {

// A source as a stretch reads it.
struct StretchSource {
  std::string name;      // in the configuration: "train" for data.train
  std::string identity;  // identity_of() its token file
  double weight = 1;     // relative share of the sequences
  int64_t drawn = 0;     // tokens drawn from it in this stretch, with those left out after a roll-back
};

struct Stretch {
  int64_t first_token = 0;  // tokens that the run had consumed when the stretch began
  int64_t seq_len = 0;
  std::vector<StretchSource> sources;
};

// A place in a token file. An epoch is the file in blocks, permuted and laid end to end. Its blocks have the sequence
// length that the run had when the epoch began, so a sequence is a block, unless the sequence length changes inside
// an epoch: then sequences are cut from what is left of the epoch, and may join parts of two or more blocks.
struct SourcePlace {
  int64_t epoch = 0;
  int64_t block = 0;   // tokens of a block of this epoch
  int64_t offset = 0;  // tokens of the epoch before this place; 0: the epoch has not begun, `block` has no meaning yet
};

// Of a file of `file_tokens` tokens: the tokens of an epoch with these blocks. Each has a target, the token after it.
int64_t epoch_tokens(int64_t file_tokens, int64_t block);

// Where sequence i >= 0 of seq_len tokens begins, counted from `start`. Tokens at the end of an epoch that fill no
// sequence are left out.
SourcePlace place_of(const SourcePlace& start, int64_t file_tokens, int64_t seq_len, int64_t i);

// Tokens at the end of the epoch of `start` that fill no sequence of seq_len tokens.
int64_t left_out_tokens(const SourcePlace& start, int64_t file_tokens, int64_t seq_len);

// The place in the file with this identity at the end of the list; its own start where no stretch has read it.
SourcePlace place_after(const std::vector<Stretch>& stretches, const std::string& identity, int64_t file_tokens);

// Where the last stretch begins in its source, a file of `file_tokens` tokens.
SourcePlace start_of_last(std::vector<Stretch> stretches, int64_t file_tokens);

}  // namespace tmamba
