#include "kernels/ops/checks.h"

#include <string>

namespace tmamba {

namespace {

std::string shape_of(std::initializer_list<int64_t> sizes) {
  std::string text = "[";
  for (int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

bool has_sizes(const ConstTensor& x, std::initializer_list<int64_t> sizes) {
  if (x.dims() != static_cast<int>(sizes.size())) return false;
  int dim = 0;
  for (int64_t size : sizes) {
    if (x.size(dim++) != size) return false;
  }
  return true;
}

}  // namespace

void expect_on(Device device, const ConstTensor& x, const char* name, DType dtype,
               std::initializer_list<int64_t> sizes) {
  TM_CHECK(has_sizes(x, sizes) && x.dtype() == dtype, name, " is ", x.shape(), " ", name_of(x.dtype()), ", expected ",
           shape_of(sizes), " ", name_of(dtype));
  TM_CHECK(x.device() == device, name, " is on ", name_of(x.device()), ", this op runs on the ", place_of(device));
  const int last = x.dims() - 1;
  TM_CHECK(x.numel() == 0 || x.size(last) == 1 || x.stride(last) == 1, name, " ", x.shape(),
           " needs a contiguous last dimension, its stride is ", x.stride(last));
  TM_CHECK(x.numel() == 0 || !x.empty(), name, " ", x.shape(), " has no memory");
}

void expect_optional_on(Device device, const ConstTensor& x, const char* name, DType dtype,
                        std::initializer_list<int64_t> sizes) {
  if (!x.empty()) expect_on(device, x, name, dtype, sizes);
}

}  // namespace tmamba
