// Denormal numbers: decays over many tokens, and moments of parameters without gradient, shrink through them, and each
// one costs the CPU a hundred times an ordinary number. Ops take them for zero.
#pragma once

namespace tmamba {

// Denormal operands and results of this thread are zero while it lives. CMake picks the file for the processor; where
// the project knows no way, it does nothing and denormals are merely slow.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned saved_ = 0;
};

}  // namespace tmamba
