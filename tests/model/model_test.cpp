// Properties of the model on one rank, its parameter table, its optimizer, and its counts of FLOPs.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "kernels/base/rng.h"
#include "model/optimizer.h"
#include "tests/model/golden_file.h"
#include "tests/model/model_runner.h"

namespace tmamba {
namespace {

ModelConfig small_config(std::vector<TransPoint> schedule = {TransPoint::of_tokens(0)}) {
  ModelConfig config;
  config.vocab = 50, config.dim = 24, config.heads = 2, config.layers = 3, config.ffn = 40, config.chunk = 8,
  config.init_std = 0.2;
  config.schedule = std::move(schedule);
  return config;
}

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab, uint64_t seed = 5) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>(Philox(seed, 1).words(i)[0] % static_cast<uint64_t>(vocab));
  return tokens;
}

// With one layer, so that its input does not depend on P.
TEST(Model, SuffixEqualsThePureSsm) {
  ModelConfig config = small_config();
  config.layers = 1;
  const int64_t T = 45;
  const std::vector<int32_t> tokens = random_tokens(2 * (T + 1), config.vocab);
  auto after_mixer = [&](int64_t P) {
    ModelRunner runner(config, {P}, {.batch = 2, .tokens = T, .dtype = DType::f64});
    runner.table().initialize(runner.params(), 3);
    runner.run(tokens, false);
    return values_of(runner.model().residual_after_mixer(0));
  };
  const std::vector<double> pure = after_mixer(0);
  for (int64_t P : {1, 7, 8, 30, 44}) {
    const std::vector<double> mixed = after_mixer(P);
    for (int64_t b = 0; b < 2; ++b) {
      auto suffix = [&](const std::vector<double>& x) {
        return std::vector<double>(x.begin() + (b * T + P) * config.dim, x.begin() + (b + 1) * T * config.dim);
      };
      EXPECT_LT(relative_error(suffix(mixed), suffix(pure)), 1e-12) << "P = " << P;
    }
  }
}

// The gradient of the model equals central differences, for every kind of layer and every option.
TEST(Model, GradientEqualsFiniteDifferences) {
  for (const auto& [gate, converter, tied] : std::vector<std::tuple<bool, Converter, bool>>{
           {true, Converter::exact, false}, {false, Converter::exact, true}, {true, Converter::zero, false}}) {
    ModelConfig config = small_config();
    config.z_gate = gate, config.converter = converter, config.tied_head = tied;
    const int64_t T = 13;
    ModelRunner runner(config, {0, 5, 13}, {.batch = 2, .tokens = T, .dtype = DType::f64});
    runner.table().initialize(runner.params(), 3);
    const std::vector<int32_t> tokens = random_tokens(2 * (T + 1), config.vocab);
    runner.run(tokens, true);
    const std::vector<double> gradient = values_of(runner.grads());
    double* params = runner.params().data<double>();
    for (const Parameter& p : runner.table().all()) {
      for (int64_t i : {int64_t{0}, p.local_size() / 2, p.local_size() - 1}) {
        const int64_t at = p.offset + i;
        const double value = params[at], step = 1e-5 * std::max(1.0, std::abs(value));
        params[at] = value + step;
        const double up = runner.run(tokens, false);
        params[at] = value - step;
        const double down = runner.run(tokens, false);
        params[at] = value;
        EXPECT_NEAR(gradient[static_cast<size_t>(at)], (up - down) / (2 * step), 2e-8) << p.name << "[" << i << "]";
      }
    }
  }
}

TEST(Model, BucketsAreReportedOnceLastLayerFirst) {
  ModelRunner runner(small_config(), {0, 5, 13}, {.batch = 1, .tokens = 13, .dtype = DType::f64});
  runner.run(random_tokens(14, 50), true);
  EXPECT_EQ(runner.buckets(), (std::vector<int>{4, 3, 2, 1, 0}));
}

TEST(Model, SequencesOfABatchDoNotMix) {
  const ModelConfig config = small_config();
  const std::vector<int32_t> both = random_tokens(2 * 20, config.vocab);
  auto loss = [&](int64_t batch, const std::vector<int32_t>& tokens) {
    ModelRunner runner(config, {0, 5, 19}, {.batch = batch, .tokens = 19, .dtype = DType::f64});
    runner.table().initialize(runner.params(), 3);
    return runner.run(tokens, false);
  };
  const double one = loss(1, {both.begin(), both.begin() + 20}), two = loss(1, {both.begin() + 20, both.end()});
  EXPECT_NEAR(loss(2, both), (one + two) / 2, 1e-13);
}

TEST(Parameters, ShardsOfAllRanksCoverTheWhole) {
  const ModelConfig config = small_config();
  const ParameterTable whole(config);
  Buffer whole_buffer({whole.flat_size()}, DType::f64);
  whole.initialize(whole_buffer.tensor({whole.flat_size()}, DType::f64), 9);
  std::map<std::string, int> covered;
  for (int rank = 0; rank < 2; ++rank) {
    const ParameterTable part(config, rank, 2);
    Buffer buffer({part.flat_size()}, DType::f64);
    const Tensor flat = buffer.tensor({part.flat_size()}, DType::f64);
    part.initialize(flat, 9);
    for (const Parameter& p : part.all()) {
      const Parameter& full = whole.find(p.name);
      const Tensor full_view = whole.view(whole_buffer.tensor({whole.flat_size()}, DType::f64), full);
      for (const StoredRange& range : part.stored_ranges(p, 0, p.local_rows)) {
        const int64_t block_rows = full.rows / static_cast<int64_t>(full.stored.size());
        const int64_t block = std::find(full.stored.begin(), full.stored.end(), range.name) - full.stored.begin();
        for (int64_t r = 0; r < range.rows; ++r) {
          for (int64_t c = 0; c < p.local_cols; ++c) {
            const int64_t row = block * block_rows + range.offset[0] + r, col = (p.dims == 2 ? range.offset[1] : 0) + c;
            EXPECT_EQ(part.view(flat, p).data<double>()[(range.local_row + r) * p.local_cols + c],
                      full_view.data<double>()[row * full.cols + col])
                << p.name;
            ++covered[p.name];
          }
        }
      }
    }
  }
  for (const Parameter& p : whole.all())
    EXPECT_EQ(covered[p.name], p.rows * p.cols * (p.shard == Shard::none ? 2 : 1)) << p.name;
}

TEST(Parameters, SizesOfThePaper) {
  ModelConfig config;
  config.dim = 1536, config.heads = 16, config.layers = 12, config.ffn = 4096, config.vocab = 32768;
  config.schedule = {TransPoint::of_tokens(0)};
  EXPECT_NEAR(static_cast<double>(ParameterTable(config).global_size()), 469e6, 1e6);
  config.layers = 32;
  EXPECT_NEAR(static_cast<double>(ParameterTable(config).global_size()) - 2 * 32768.0 * 1536, 983e6, 2e6);
  // Layers that never reach the SSM have no parameters of it.
  config.layers = 12, config.schedule = {TransPoint::of_fraction(1, 1)};
  EXPECT_EQ(ParameterTable(config).global_size(), 440716800);
  config.schedule = {TransPoint::of_tokens(0), TransPoint::of_tokens(0), TransPoint::of_tokens(0),
                     TransPoint::of_fraction(1, 1)};
  EXPECT_EQ(ParameterTable(config).global_size(), 462185904);
}

// Of the SSM's own parameters dt.weight alone is a projection; decay would pull the others towards a fixed recurrence.
TEST(Parameters, WeightDecayIsOfProjectionsAlone) {
  const ParameterTable table(small_config());
  std::set<std::string> free;
  for (const Parameter& p : table.all()) {
    if (p.name.starts_with("layers.1.") && !p.decay) free.insert(p.name.substr(9));
    if (!p.name.starts_with("layers.")) {
      EXPECT_EQ(p.decay, p.name != "norm.weight") << p.name;
    }
  }
  EXPECT_EQ(free, (std::set<std::string>{"mixer.norm.weight", "mixer.conv.weight", "mixer.conv.bias", "mixer.dt.bias",
                                         "mixer.A_log", "mixer.D", "mixer.out_norm.weight", "mlp.norm.weight"}));
}

TEST(Schedule, TokensFractionsAndMistakes) {
  const std::vector<TransPoint> v = {parse_transpoint("0"), parse_transpoint("1/4"), parse_transpoint("1/1"),
                                     parse_transpoint("12")};
  EXPECT_EQ(transpoints(v, 6, 90), (std::vector<int64_t>{0, 22, 90, 12, 0, 22}));
  EXPECT_THROW(transpoints(v, 6, 11), UserError);
  EXPECT_NO_THROW(transpoints(v, 3, 11));  // the fourth entry is never reached
  for (const char* bad : {"", "-1", "1/0", "3/2", "x", "1/2/3", "1.5", " 4"})
    EXPECT_THROW(parse_transpoint(bad), UserError) << bad;
}

TEST(Optimizer, StateHasTheSlotsOfTheTable) {
  const ParameterTable table(small_config());
  std::vector<StateSlot> slots = optimizer_slots({}, DType::bf16);
  ASSERT_EQ(slots.size(), 3u);
  EXPECT_EQ(optimizer_slots({}, DType::f32).size(), 2u);  // parameters of the accumulate type are their own masters
  slots.push_back({.name = "row_scale", .dtype = DType::f64, .shape = SlotShape::rows});
  const std::vector<OwnedRows> owned{{&table.find("layers.0.mixer.out.weight"), 3, 5},
                                     {&table.find("norm.weight"), 0, 7}};
  const Optimizer optimizer(owned, slots, Device::cpu);
  EXPECT_EQ(optimizer.state(2, 0).shape(), "[5, 24]");
  EXPECT_EQ(optimizer.state(2, 0).dtype(), DType::f32);
  EXPECT_EQ(optimizer.state(0, 1).shape(), "[7]");
  EXPECT_EQ(optimizer.state(3, 0).shape(), "[5]");
  EXPECT_EQ(optimizer.state(3, 0).dtype(), DType::f64);
  EXPECT_EQ(state_bytes(slots, owned[0]), 3 * 4 * 5 * 24 + 8 * 5);
  // Every tensor-parallel rank has whole rows' scalars of a parameter that is sharded by columns.
  EXPECT_TRUE(slots[3].replicated_over_tp(*owned[0].parameter));
  EXPECT_FALSE(slots[2].replicated_over_tp(*owned[0].parameter));
}

TEST(Optimizer, UnitsOfOwnershipAreRowsOrLogicalMatrices) {
  const ParameterTable table(small_config());
  const Parameter& qkv = table.find("layers.1.mixer.qkv.weight");
  EXPECT_EQ(unit_rows(qkv, OwnershipUnit::row), 1);
  EXPECT_EQ(unit_rows(qkv, OwnershipUnit::matrix), qkv.rows / 3);
  EXPECT_EQ(unit_rows(table.find("embedding.weight"), OwnershipUnit::matrix), 50);
}

TEST(Optimizer, LearningRateWarmsUpAndDecays) {
  const LearningRate lr{.peak = 1, .min = 0.1, .warmup = 10, .end = 110};
  EXPECT_DOUBLE_EQ(lr.at(1), 0.1);
  EXPECT_DOUBLE_EQ(lr.at(10), 1);
  EXPECT_DOUBLE_EQ(lr.at(60), 0.55);
  EXPECT_DOUBLE_EQ(lr.at(110), 0.1);
  EXPECT_DOUBLE_EQ(lr.at(500), 0.1);
}

// The dry run counts the FLOPs of the paper's formulas for the mixing of tokens, and 2 per weight and token for the
// rest.
TEST(Counts, DryRunEqualsTheFormulas) {
  const ModelConfig config = small_config();
  const int64_t T = 64, P = 24;
  const auto counting = make_counting_ops(Device::cpu);
  Arena saved(Device::cpu), scratch(Device::cpu);
  const ParameterTable table(config);
  const auto ops = make_ops(Device::cpu);
  SelfCommunicator self("self");
  ModelRanks ranks({.tokens = T, .chunk = config.chunk, .transpoints = {P, P, P}}, 1, *ops, self, self);
  TransMamba model(config, table, ranks, DType::f32, saved);
  const Tensor none(nullptr, {table.flat_size()}, DType::f32), none_BT(nullptr, {1, T}, DType::i32),
      none_1(nullptr, {1}, DType::f64);
  model.forward(*counting, scratch, none, {none_BT, none_BT}, {none_1, none_1, {}});
  const double d = 24, H = 2, F = 40, V = 50, L = 3, t = T, p = P;
  EXPECT_DOUBLE_EQ(counting->counts().linear,
                   2 * (L * (t * (4 * d * d + H * d + 3 * d * F) + (t - p) * d * d) + t * V * d));
  EXPECT_DOUBLE_EQ(counting->counts().attention, L * 4 * d * p * (p + 1) / 2);
}

}  // namespace
}  // namespace tmamba
