#include "kernels/ops/canonical_ops.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace tmamba {

namespace {

// Sums are of multiples of 2^-exponent.
struct Grid {
  int exponent;
  double step() const { return std::ldexp(1.0, -exponent); }
  // Multiples of the step up to this are exact.
  double range() const { return std::ldexp(1.0, 53 - exponent); }
};
constexpr Grid kGradients{46}, kKeyGradients{50}, kLoss{24}, kSquares{36};

// The grid of an op's sums over tokens.
template <class Args>
constexpr Grid kGrid = kGradients;
template <>
constexpr Grid kGrid<AttentionBackward> = kKeyGradients;
template <>
constexpr Grid kGrid<CrossEntropyLoss> = kLoss;

// A part of a dimension of a tensor, or of an absent one.
template <class View>
View part(const View& x, int dim, int64_t begin, int64_t count) {
  return x.dims() == 0 ? x : x.slice(dim, begin, count);
}

// Contiguous tensor of the sizes of `like`.
Tensor same_sizes(double* data, const Tensor& like) {
  const auto n = [&](int dim) { return like.size(dim); };
  switch (like.dims()) {
    case 1:
      return Tensor(data, {n(0)}, DType::f64);
    case 2:
      return Tensor(data, {n(0), n(1)}, DType::f64);
    case 3:
      return Tensor(data, {n(0), n(1), n(2)}, DType::f64);
    default:
      return Tensor(data, {n(0), n(1), n(2), n(3)}, DType::f64);
  }
}

class CanonicalOps final : public Ops {
 public:
  CanonicalOps(std::unique_ptr<Ops> inner, const CanonicalOptions& options)
      : inner_(std::move(inner)), unit_(options.unit), summands_(options.summands) {
    TM_CHECK(inner_->device() == Device::cpu, "canonical ops are for the cpu, not for ", name_of(inner_->device()));
    TM_CHECK(unit_ >= 1 && summands_ >= 1, "canonical ops: unit ", unit_, ", summands ", summands_);
  }

  Device device() const override { return inner_->device(); }
  void synchronize() override { inner_->synchronize(); }

#define TMAMBA_CANONICAL_OP(method, Args)                        \
  void method(const Args& args) override {                       \
    run(args, [this](const Args& one) { inner_->method(one); }); \
  }
  TMAMBA_FOR_EACH_OP(TMAMBA_CANONICAL_OP)
#undef TMAMBA_CANONICAL_OP

 private:
  static constexpr size_t kSums = 2;  // of one call at most

  // --- From one call to calls of parts --------------------------------------------------------------------------
  // An op by its declared split. Overloads follow for ops whose parts are others; `call` runs the inner op.
  template <class Args, class Call>
  void run(const Args& args, const Call& call) {
    if constexpr (Args::kSplit == Split::none) {
      call(args);
    } else if constexpr (Args::kSplit == Split::rows) {
      for_units(size_of_split(args, 0),
                [&](int64_t at, int64_t n) { run_part(args, call, [&](const auto& x) { return part(x, 0, at, n); }); });
    } else {
      for (int64_t b = 0; b < size_of_split(args, 0); ++b) {
        const auto sequence = [b](const auto& x) { return part(x, 0, b, 1); };
        if constexpr (Args::kSplit == Split::sequences) {
          run_part(args, call, sequence);
        } else {
          for_units(size_of_split(args, 1), [&](int64_t at, int64_t n) {
            run_part(args, call, [&](const auto& x) { return part(sequence(x), 1, at, n); });
          });
        }
      }
    }
  }

  // Row by row of the parameters: ranks own whole rows.
  template <class Call>
  void run(const SumSquares& args, const Call& call) {
    inner_->fill({args.out_1, 0});
    for (const ConstTensor& x : args.tensors) {
      for (int64_t row = 0; row < x.size(0); ++row) {
        const ConstTensor squared = x.slice(0, row, 1);
        double sum = 0;
        call({Tensor(&sum, {1}, DType::f64), {&squared, 1}});
        add_run(kSquares, SumSquares::kName, "out_1", args.out_1.data<double>(), &sum, 1);
      }
    }
  }
  template <class Call>
  void run(const Adamw& args, const Call& call) {
    for (const AdamwTensor& x : args.tensors) {
      std::vector<AdamwTensor> rows;
      for (int64_t i = 0; i < x.master.size(0); ++i) {
        rows.push_back({.param = x.param.slice(0, i, 1),
                        .master = x.master.slice(0, i, 1),
                        .m = x.m.slice(0, i, 1),
                        .v = x.v.slice(0, i, 1),
                        .grad = x.grad.slice(0, i, 1),
                        .decay = x.decay});
      }
      call({rows, args.rule, args.step_S});
    }
  }
  // Token by token: a sum of its own for every unit would be as large as the table.
  template <class Call>
  void run(const EmbeddingBackward& args, const Call&) {
    const int32_t* tokens = args.tokens_N.data<int32_t>();
    for (int64_t n = 0; n < args.dy_NC.size(0); ++n) {
      const int64_t row = tokens[n] - args.vocab_begin;
      if (row < 0 || row >= args.dtable_VC.size(0)) continue;
      add_run(kGradients, EmbeddingBackward::kName, "dtable_VC", args.dtable_VC.select(0, row).data<double>(),
              args.dy_NC.select(0, n).data<double>(), args.dy_NC.size(1));
    }
  }
  // Only the keys that the queries see: the sums are as large as these.
  template <class Call>
  void run(const AttentionBackward& args, const Call& call) {
    const int64_t seen = args.q_begin + args.q_BTHD.size(1);
    AttentionBackward one = args;
    one.dk_BSHD = args.dk_BSHD.slice(1, 0, seen), one.dv_BSHD = args.dv_BSHD.slice(1, 0, seen);
    one.k_BSHD = args.k_BSHD.slice(1, 0, seen), one.v_BSHD = args.v_BSHD.slice(1, 0, seen);
    run<AttentionBackward, Call>(one, call);
  }

  // Whether a tensor has the dimension that is split, by its name: rows of dx_NC, not of w_C.
  template <class Args>
  static bool is_split(const TensorSpec& spec) {
    const char first = std::strrchr(spec.name, '_')[1];
    return first == (Args::kSplit == Split::rows ? 'N' : 'B');
  }

  // The size of dimension `dim` of the tensors that are split.
  template <class Args>
  static int64_t size_of_split(const Args& args, int dim) {
    int64_t size = 0;
    Args::for_each_tensor(args, [&](const ConstTensor& x, const TensorSpec& spec) {
      if (is_split<Args>(spec) && x.dims() > 0) size = std::max(size, x.size(dim));
    });
    return size;
  }

  // Calls f(first row, rows) for each unit. After a TransPoint inside a unit its last rows come first, alone.
  template <class F>
  void for_units(int64_t rows, const F& f) const {
    for (int64_t at = 0, n; at < rows; at += n) {
      n = at == 0 && rows % unit_ != 0 ? rows % unit_ : unit_;
      f(at, n);
    }
  }

  // One call: `of` takes the part of a tensor. Sums over tokens are computed from zero and then added, rounded.
  template <class Args, class Call, class Of>
  void run_part(const Args& args, const Call& call, const Of& of) {
    struct Sum {
      const char* name;
      Tensor to, part;
    };
    Args one = args;
    std::array<Sum, kSums> sums;
    size_t count = 0;
    Args::for_each_tensor(one, [&](auto& x, const TensorSpec& spec) {
      if (is_split<Args>(spec)) x = of(x);
      if constexpr (std::is_same_v<std::remove_reference_t<decltype(x)>, Tensor>) {
        if ((spec.flags & kTokenSum) == 0 || x.dims() == 0) return;
        TM_CHECK(count < kSums, Args::kName, " has more than ", kSums, " sums over tokens");
        sums_[count].assign(static_cast<size_t>(x.numel()), 0.0);
        sums[count] = {spec.name, x, same_sizes(sums_[count].data(), x)};
        x = sums[count++].part;
      }
    });
    call(one);
    for (size_t i = 0; i < count; ++i) {
      add_tensor(kGrid<Args>, Args::kName, sums[i].name, sums[i].to, sums[i].part);
    }
  }

  void add_tensor(const Grid& grid, const char* op, const char* name, const Tensor& to, const ConstTensor& from) const {
    if (to.contiguous()) return add_run(grid, op, name, to.data<double>(), from.data<double>(), to.numel());
    for (int64_t i = 0; i < to.size(0); ++i) add_tensor(grid, op, name, to.select(0, i), from.select(0, i));
  }

  void add_run(const Grid& grid, const char* op, const char* name, double* to, const double* from,
               int64_t count) const {
    const double step = grid.step(), steps = 1 / step, limit = grid.range() / static_cast<double>(summands_);
    double largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      const bool finite = std::isfinite(to[i]) && std::isfinite(from[i]);
      to[i] += std::nearbyint(from[i] * steps) * step;
      largest = std::max(largest, finite ? std::abs(to[i]) : 0.0);
    }
    if (largest <= limit) return;
    throw Error(str("run.canonical: the sum of ", op, " ", name, " reached ", largest, ", sums of ", summands_,
                    " such are exact ", "up to ", limit, " (multiples of 2^-", grid.exponent,
                    "): numbers this large mostly mean that the run diverges; lower train.lr or raise train.warmup, or "
                    "set run.canonical = 0"));
  }

  std::unique_ptr<Ops> inner_;
  int64_t unit_, summands_;
  std::array<std::vector<double>, kSums> sums_;
};

}  // namespace

std::unique_ptr<Ops> make_canonical_ops(std::unique_ptr<Ops> inner, const CanonicalOptions& options) {
  return std::make_unique<CanonicalOps>(std::move(inner), options);
}

}  // namespace tmamba
