#include "kernels/ops/op_args.h"

#include <string_view>

#include "kernels/ops/ops.h"

namespace tmamba {

#define TMAMBA_NAME_IS_METHOD(method, Args) static_assert(std::string_view(Args::kName) == #method);
TMAMBA_FOR_EACH_OP(TMAMBA_NAME_IS_METHOD)
#undef TMAMBA_NAME_IS_METHOD

bool TensorSizes::match(const ConstTensor& x) const {
  if (x.dims() != dims_) return false;
  for (int i = 0; i < dims_; ++i) {
    if (x.size(i) != size_[static_cast<size_t>(i)]) return false;
  }
  return true;
}

std::string TensorSizes::text() const {
  std::string text = "[";
  for (int i = 0; i < dims_; ++i) text += (i > 0 ? ", " : "") + std::to_string(size_[static_cast<size_t>(i)]);
  return text + "]";
}

void check_tensor(Device device, const char* op, const ConstTensor& x, const TensorSpec& spec) {
  if (x.empty() && (spec.flags & kOptional) != 0) return;
  const char* name = spec.name;
  TM_CHECK(spec.sizes.match(x) && x.dtype() == spec.dtype, op, " ", name, " is ", x.shape(), " ", name_of(x.dtype()),
           ", expected ", spec.sizes.text(), " ", name_of(spec.dtype));
  TM_CHECK(x.device() == device, op, " ", name, " is on the ", name_of(x.device()), ", this op runs on the ",
           name_of(device));
  if ((spec.flags & kAnyStrides) != 0) return;
  const int last = x.dims() - 1;
  TM_CHECK(x.numel() == 0 || x.size(last) == 1 || x.stride(last) == 1, op, " ", name, " ", x.shape(),
           " needs a contiguous last dimension, its stride is ", x.stride(last));
  TM_CHECK(x.numel() == 0 || !x.empty(), op, " ", name, " ", x.shape(), " has no memory");
}

}  // namespace tmamba
