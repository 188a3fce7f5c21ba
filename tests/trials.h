// How often a randomized test tries: a few times in the suite, as often as TRANSMAMBA_TRIALS says in a long run
// (tests/long).
#pragma once

#include <cstdlib>
#include <random>
#include <string>

namespace tmamba {

inline int trials(int in_the_suite) {
  const char* text = std::getenv("TRANSMAMBA_TRIALS");
  return text == nullptr ? in_the_suite : std::stoi(text);
}

// Long runs may start elsewhere: TRANSMAMBA_SEED.
inline uint64_t trial_seed(uint64_t in_the_suite) {
  const char* text = std::getenv("TRANSMAMBA_SEED");
  return text == nullptr ? in_the_suite : std::stoull(text);
}

}  // namespace tmamba
