#include "kernels/ops/args_optimizer.h"

namespace tmamba {

void Adamw::check_rest() const {
  for (const AdamwTensor& x : tensors) {
    const DType acc = x.master.dtype();
    const int64_t count = x.master.numel();
    for (const ConstTensor& t : {ConstTensor(x.master), ConstTensor(x.m), ConstTensor(x.v), x.grad}) {
      TM_CHECK(t.numel() == count && t.contiguous(),
               "adamw: master, m, v and grad must be contiguous and of one size; master is ", x.master.shape(),
               ", another is ", t.shape());
    }
    TM_CHECK(x.param.numel() == count && x.param.contiguous(), "adamw: param is ", x.param.shape(), ", master is ",
             x.master.shape());
    TM_CHECK(acc == DType::f32 || acc == DType::f64, "adamw: master is ", name_of(acc),
             ", expected float32 or float64");
  }
}

}  // namespace tmamba
