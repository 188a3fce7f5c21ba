#include "kernels/ops/timed_ops.h"

#include <chrono>

#include "kernels/base/clock.h"

namespace tmamba {

namespace {

class Timer final : public TimedOps {
 public:
  explicit Timer(Ops& inner) : inner_(inner) {}
  const std::map<std::string, OpTiming>& timings() const override { return timings_; }
  void reset() override { timings_.clear(); }
  Device device() const override { return inner_.device(); }
  void synchronize() override { inner_.synchronize(); }

#define TMAMBA_TIME_OP(method, Args)          \
  void method(const Args& args) override {    \
    time(args, [&] { inner_.method(args); }); \
  }
  TMAMBA_FOR_EACH_OP(TMAMBA_TIME_OP)
#undef TMAMBA_TIME_OP

 private:
  template <class Args, class Call>
  void time(const Args& args, const Call& call) {
    inner_.synchronize();
    const auto begin = std::chrono::steady_clock::now();
    call();
    inner_.synchronize();
    OpTiming& timing = timings_[Args::kName];
    timing.seconds += seconds_since(begin);
    timing.calls += 1;
    timing.flops += args.counts().total();
    timing.bytes += tensor_bytes(args);
  }

  Ops& inner_;
  std::map<std::string, OpTiming> timings_;
};

}  // namespace

std::unique_ptr<TimedOps> make_timed_ops(Ops& inner) { return std::make_unique<Timer>(inner); }

}  // namespace tmamba
