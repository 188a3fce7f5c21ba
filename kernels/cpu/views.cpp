#include "kernels/cpu/views.h"

#include "kernels/checks.h"

namespace tmamba {

void expect(const ConstTensor& x, const char* name, DType dtype, std::initializer_list<int64_t> sizes) {
  expect_on(Device::cpu, x, name, dtype, sizes);
}

void expect_optional(const ConstTensor& x, const char* name, DType dtype, std::initializer_list<int64_t> sizes) {
  if (!x.empty()) expect(x, name, dtype, sizes);
}

}  // namespace tmamba
