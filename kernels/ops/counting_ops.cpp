#include "kernels/ops/counting_ops.h"

namespace tmamba {

namespace {

class Counter final : public CountingOps {
 public:
  explicit Counter(Device device) : device_(device) {}
  const OpCounts& counts() const override { return counts_; }
  Device device() const override { return device_; }
  void synchronize() override {}

#define TMAMBA_COUNT_OP(method, Args) \
  void method(const Args& args) override { counts_ += args.counts(); }
  TMAMBA_FOR_EACH_OP(TMAMBA_COUNT_OP)
#undef TMAMBA_COUNT_OP

 private:
  Device device_;
  OpCounts counts_;
};

}  // namespace

std::unique_ptr<CountingOps> make_counting_ops(Device device) { return std::make_unique<Counter>(device); }

}  // namespace tmamba
