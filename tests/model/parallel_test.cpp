// Every layout of ranks computes what one rank computes: loss and every gradient of the golden files, and every
// parameter after five AdamW steps, for every tp x sp x dp of the ranks of this run, every fold and every transport.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "dist/world/mesh.h"
#include "dist/zero/grad_reducer.h"
#include "launch/state/sharding.h"
#include "model/optimizer.h"
#include "tests/dist/comm/mpi_main.h"
#include "tests/model/golden_file.h"
#include "tests/model/model_runner.h"

namespace tmamba {
namespace {

constexpr int kSteps = 5;
constexpr const char* kAll = "all parameters";

// Allowed relative errors. Sums in float32 cancel in a few tensors of few elements (the gradient of D), and AdamW
// divides by the size of gradients, however small: one tensor alone may differ more than all together.
struct Tolerance {
  double loss, gradient, params;
  double one_tensor = 1;  // as a multiple
};

struct Layout {
  MeshShape mesh;
  int fold;
  Transport transport;
  int zero;
};

std::string describe(const GoldenFile& golden, const Layout& l) {
  return str(golden.path().stem().string(), " tp ", l.mesh.tp, " sp ", l.mesh.sp, " dp ", l.mesh.dp, " fold ", l.fold,
             " ", name_of(l.transport), " zero ", l.zero);
}

// One rank of a layout, training on the golden file's tokens; the batch is split over dp ranks.
class LayoutRunner {
 public:
  LayoutRunner(const GoldenFile& golden, const Layout& layout, DType dtype, Recompute level = Recompute::none)
      : golden_(golden),
        mesh_(test_world().comm(), layout.mesh),
        config_(golden.config()),
        table_(config_, mesh_.coordinates().tp, layout.mesh.tp),
        dtype_(dtype),
        ops_(make_ops(Device::cpu)),
        ranks_({.tokens = golden.seq_len(),
                .ranks = layout.mesh.sp,
                .fold = layout.fold,
                .chunk = config_.chunk,
                .conv_width = static_cast<int>(config_.conv),
                .transpoints = golden.transpoints()},
               golden.batch() / layout.mesh.dp, *ops_, mesh_.sp(), mesh_.tp(), {layout.transport}) {
    const DType acc = accumulate_type(dtype);
    const int64_t size = table_.flat_size();
    const ModelMeasure measure = measure_model(config_, table_, ranks_, dtype, Device::cpu, level);
    saved_ = Arena(measure.saved_bytes, Device::cpu), scratch_ = Arena(measure.scratch_bytes, Device::cpu);
    params_ = Buffer({size}, dtype), grads_ = Buffer({size}, acc), sums_ = Buffer({2}, DType::f64);
    golden.fill_params_sharded(table_, params());
    model_ = std::make_unique<TransMamba>(config_, table_, ranks_, dtype, saved_, level);
    reducer_ = std::make_unique<GradReducer>(
        mesh_.zero(), mesh_.tp(), reduction_buckets(table_, {}),
        GradReducerOptions{.stage = layout.zero, .dtype = acc, .add = [this](Tensor y, ConstTensor x) {
                             ops_->add({y, x});
                           }});
    optimizer_ = std::make_unique<Optimizer>(owned_rows(table_, {}, reducer_->sharding(), mesh_.zero().rank()), dtype,
                                             Device::cpu);
    gradients_ = owned_gradients(table_, *reducer_, grads_.tensor({size}, acc));
    split_tokens();
  }

  // Returns the loss over the whole batch; gradients() then holds the reduced gradients of owned rows.
  double forward_backward() {
    const Tensor sums = sums_.tensor({2}, DType::f64),
                 grads = grads_.tensor({table_.flat_size()}, accumulate_type(dtype_));
    ops_->fill({sums, 0}), ops_->fill({grads, 0});
    reducer_->begin_step();
    model_->forward_backward(*ops_, scratch_, params(), grads, {tokens_.select(0, 0), tokens_.select(0, 1)},
                             1.0 / static_cast<double>(golden_.batch() * golden_.seq_len()),
                             {sums.slice(0, 0, 1), sums.slice(0, 1, 1), {}}, [&](int bucket) {
                               const Slice range = reducer_->bucket_range(bucket);
                               reducer_->start(bucket, grads.slice(0, range.begin, range.count));
                             });
    reducer_->finish();
    double values[2] = {sums.data<double>()[0], sums.data<double>()[1]};
    if (mesh_.coordinates().tp != 0) values[0] = values[1] = 0;
    test_world().comm().all_reduce(Tensor(values, {2}, DType::f64), ReduceOp::sum).wait();
    return values[0] / values[1];
  }

  void update(int64_t step) {
    StepScalars scalars = optimizer_->step_scalars(step, 1e-3);
    optimizer_->step(*ops_, params(), gradients_, scalars_tensor(scalars));
    reducer_->gather_parameters(params());
  }

  // || x - reference || / || reference || of each parameter, and of all together; each rank adds its owned rows.
  // `local` returns this rank's owned rows i, `reference` the whole parameter of a name.
  template <class Local, class Reference>
  std::map<std::string, double> errors(const Local& local, const Reference& reference) {
    std::map<std::string, double> difference, norm;
    for (const Parameter& p : table_.all()) difference[p.name] = norm[p.name] = 0;
    for (size_t i = 0; i < optimizer_->owned().size(); ++i) {
      const OwnedRows& owned = optimizer_->owned()[i];
      const Parameter& p = *owned.parameter;
      const std::vector<double> mine = values_of(local(i)), whole = reference(p.name);
      for (const StoredRange& range : table_.stored_ranges(p, owned.begin, owned.rows)) {
        const size_t block =
            static_cast<size_t>(std::find(p.stored.begin(), p.stored.end(), range.name) - p.stored.begin());
        const int64_t first =
            static_cast<int64_t>(block) * (p.rows / static_cast<int64_t>(p.stored.size())) + range.offset[0];
        for (int64_t r = 0; r < range.rows; ++r) {
          for (int64_t c = 0; c < p.local_cols; ++c) {
            const double x = mine[static_cast<size_t>((range.local_row - owned.begin + r) * p.local_cols + c)];
            const double y = whole[static_cast<size_t>((first + r) * p.cols + (p.dims == 2 ? range.offset[1] : 0) + c)];
            difference[p.name] += (x - y) * (x - y), norm[p.name] += y * y;
          }
        }
      }
    }
    std::vector<double> sums;
    for (const auto& [name, value] : difference) sums.push_back(value), sums.push_back(norm[name]);
    test_world()
        .comm()
        .all_reduce(Tensor(sums.data(), {static_cast<int64_t>(sums.size())}, DType::f64), ReduceOp::sum)
        .wait();
    size_t at = 0;
    double all = 0, all_norm = 0;
    for (auto& [name, value] : difference) {
      all += sums[at], all_norm += sums[at + 1];
      value = sums[at] == 0 ? 0 : std::sqrt(sums[at] / sums[at + 1]), at += 2;
    }
    difference[kAll] = std::sqrt(all / all_norm);
    return difference;
  }

  Tensor params() const { return params_.tensor({table_.flat_size()}, dtype_); }
  const std::vector<Tensor>& gradients() const { return gradients_; }
  Tensor owned_params(size_t i) const { return Optimizer::rows_of(params(), optimizer_->owned()[i]); }
  int64_t optimizer_bytes() const { return optimizer_->state_bytes(); }

 private:
  void split_tokens() {
    const int64_t B = ranks_.batch(), T = golden_.seq_len(), n = ranks_.local_tokens();
    tokens_buffer_ = Buffer({2, B, n}, DType::i32);
    tokens_ = tokens_buffer_.tensor({2, B, n}, DType::i32);
    std::vector<int32_t> whole(static_cast<size_t>(B * T));
    for (int64_t shift = 0; shift < 2; ++shift) {
      for (int64_t b = 0; b < B; ++b) {
        const int64_t sequence = mesh_.coordinates().dp * B + b;
        std::copy_n(golden_.tokens().begin() + sequence * (T + 1) + shift, T, whole.begin() + b * T);
      }
      ranks_.shard(tokens_.select(0, shift), ConstTensor(whole.data(), {B, T}, DType::i32));
    }
  }

  const GoldenFile& golden_;
  Mesh mesh_;
  ModelConfig config_;
  ParameterTable table_;
  DType dtype_;
  std::unique_ptr<Ops> ops_;
  ModelRanks ranks_;
  Arena saved_{Device::cpu}, scratch_{Device::cpu};
  Buffer params_, grads_, sums_, tokens_buffer_;
  Tensor tokens_;
  std::unique_ptr<TransMamba> model_;
  std::unique_ptr<GradReducer> reducer_;
  std::unique_ptr<Optimizer> optimizer_;
  std::vector<Tensor> gradients_;
};

using Values = std::map<std::string, std::vector<double>>;  // of whole parameters, by name

// Loss and gradients of one rank in the first step, and its parameters after the last.
struct Alone {
  double loss;
  Values gradients, params;
};

Alone train_alone(const GoldenFile& golden, DType dtype) {
  ModelRunner runner(golden.config(), golden.transpoints(),
                     {.batch = golden.batch(), .tokens = golden.seq_len(), .dtype = dtype});
  golden.fill_params(runner.table(), runner.params());
  Optimizer optimizer(all_rows(runner.table()), dtype, Device::cpu);
  const auto values = [&](const Tensor& flat) {
    Values of;
    for (const Parameter& p : runner.table().all()) of[p.name] = values_of(runner.table().view(flat, p));
    return of;
  };
  Alone alone;
  for (int64_t step = 1; step <= kSteps; ++step) {
    const double loss = runner.run(golden.tokens(), true);
    if (step == 1) alone.loss = loss, alone.gradients = values(runner.grads());
    std::vector<Tensor> gradients;
    for (const OwnedRows& rows : optimizer.owned()) gradients.push_back(Optimizer::rows_of(runner.grads(), rows));
    StepScalars scalars = optimizer.step_scalars(step, 1e-3);
    optimizer.step(runner.ops(), runner.params(), gradients, scalars_tensor(scalars));
  }
  alone.params = values(runner.params());
  return alone;
}

std::vector<Layout> layouts_of(const GoldenFile& golden, int ranks) {
  std::vector<Layout> layouts;
  int count = 0;
  for (int tp : {1, 2, 4}) {
    for (int dp : {1, 2}) {
      if (ranks % (tp * dp) != 0 || golden.config().heads % tp != 0 || golden.config().ffn % tp != 0 ||
          golden.batch() % dp != 0)
        continue;
      const int sp = ranks / (tp * dp);
      for (int fold : {1, 2, 4}) {
        const LayoutSpec spec{.tokens = golden.seq_len(),
                              .ranks = sp,
                              .fold = fold,
                              .chunk = golden.config().chunk,
                              .transpoints = golden.transpoints()};
        if (!split_problem(spec).empty()) continue;
        for (const Transport& transport : all_transports()) {
          if (transport.head_parallel && golden.config().heads / tp % sp != 0) continue;
          layouts.push_back({{tp, sp, dp}, fold, transport, count++ % 3});
        }
      }
    }
  }
  return layouts;
}

class Parallel : public testing::TestWithParam<std::filesystem::path> {};

void compare_all(const GoldenFile& golden, DType dtype, const Tolerance& tolerance) {
  const Alone alone = train_alone(golden, dtype);
  int tried = 0;
  for (const Layout& layout : layouts_of(golden, test_world().size())) {
    SCOPED_TRACE(describe(golden, layout));
    LayoutRunner runner(golden, layout, dtype);
    const auto expect = [&](const char* what, double all, const auto& local, const auto& reference) {
      for (const auto& [name, error] : runner.errors(local, reference)) {
        EXPECT_LE(error, name == kAll ? all : all * tolerance.one_tensor) << what << " " << name;
      }
    };
    const auto gradient = [&](size_t i) { return runner.gradients()[i]; };
    const double loss = runner.forward_backward();
    EXPECT_NEAR(loss / alone.loss, 1, tolerance.loss);
    expect("gradient, beside one rank's, of", tolerance.gradient, gradient,
           [&](const std::string& name) { return alone.gradients.at(name); });
    if (dtype == DType::f64) {
      EXPECT_NEAR(loss / golden.loss(), 1, tolerance.loss);
      expect("gradient, beside the golden file's, of", tolerance.gradient, gradient,
             [&](const std::string& name) { return golden.arrays("grads/" + name).at(0)->values; });
    }
    runner.update(1);
    for (int64_t step = 2; step <= kSteps; ++step) runner.forward_backward(), runner.update(step);
    expect(
        str("after ", kSteps, " steps, ").c_str(), tolerance.params, [&](size_t i) { return runner.owned_params(i); },
        [&](const std::string& name) { return alone.params.at(name); });
    ++tried;
  }
  if (test_world().rank() == 0)
    std::printf("%s: %d layouts of %d ranks\n", golden.path().stem().c_str(), tried, test_world().size());
}

TEST_P(Parallel, Float64) { compare_all(GoldenFile(GetParam()), DType::f64, {1e-12, 1e-12, 1e-10}); }
TEST_P(Parallel, Float32) { compare_all(GoldenFile(GetParam()), DType::f32, {1e-5, 1e-5, 1e-5, 5}); }

// Recomputation runs the same operations on the same inputs, so loss, gradients and the parameters after a step have
// the same bits.
void compare_levels(const GoldenFile& golden) {
  int count = 0;
  for (const Layout& layout : layouts_of(golden, test_world().size())) {
    const DType dtype = count++ % 2 == 0 ? DType::f32 : DType::f64;
    std::vector<double> losses;
    std::vector<std::vector<double>> expected;  // of level none, owned rows one after the other
    for (Recompute level : kRecomputeLevels) {
      SCOPED_TRACE(str(describe(golden, layout), " ", name_of(dtype), " recompute ", name_of(level)));
      LayoutRunner runner(golden, layout, dtype, level);
      losses.push_back(runner.forward_backward());
      EXPECT_EQ(losses.back(), losses.front());
      std::vector<std::vector<double>> values;
      for (const Tensor& gradient : runner.gradients()) values.push_back(values_of(gradient));
      runner.update(1);
      for (size_t i = 0; i < runner.gradients().size(); ++i) values.push_back(values_of(runner.owned_params(i)));
      if (level == Recompute::none) expected = values;
      ASSERT_EQ(values.size(), expected.size());
      for (size_t i = 0; i < values.size(); ++i) EXPECT_TRUE(values[i] == expected[i]) << "owned tensor " << i;
    }
  }
}

TEST_P(Parallel, EveryLevelOfRecomputationGivesTheSameBits) { compare_levels(GoldenFile(GetParam())); }

INSTANTIATE_TEST_SUITE_P(Files, Parallel, testing::ValuesIn(golden_files()), [](const auto& file) {
  std::string name = file.param.stem().string() + "_" + std::to_string(file.index);
  for (char& c : name) c = isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
});

}  // namespace
}  // namespace tmamba
