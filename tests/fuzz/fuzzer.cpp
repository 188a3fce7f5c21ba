// A libFuzzer program for the target TMAMBA_FUZZ_TARGET.
#include "tests/fuzz/target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    tmamba::fuzz::TMAMBA_FUZZ_TARGET.bytes(std::string(reinterpret_cast<const char*>(data), size));
  } catch (const tmamba::Error&) {
    // Refused as expected. Any other exception terminates the program, which is a finding.
  }
  return 0;
}
