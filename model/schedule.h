// TransPoint schedules (model/SPEC.md section 4): where each layer switches from attention to the SSM.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tmamba {

// One entry of a schedule: a number of tokens, or a fraction of the sequence length.
struct TransPoint {
  int64_t numerator = 0;
  int64_t denominator = 0;  // 0: `numerator` is in tokens

  static TransPoint of_tokens(int64_t tokens) { return {tokens, 0}; }
  static TransPoint of_fraction(int64_t numerator, int64_t denominator) { return {numerator, denominator}; }
  // "1/1": attention to the end of the sequence, whatever its length.
  bool never() const { return denominator != 0 && numerator == denominator; }
  bool operator==(const TransPoint&) const = default;
};

// "512" or "1/4"; throws UserError for anything else, negative values and fractions over 1.
TransPoint parse_transpoint(const std::string& text);
std::string to_string(const TransPoint& point);

// P of every layer for sequences of `seq_len` tokens: entry i mod size, fractions rounded down to whole tokens.
// Throws UserError where a value is over seq_len.
std::vector<int64_t> transpoints(const std::vector<TransPoint>& schedule, int64_t layers, int64_t seq_len);

}  // namespace tmamba
