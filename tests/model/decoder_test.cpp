// Decoding token by token computes what a full forward pass computes (model/SPEC.md section 6).
#include "model/decoder.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/model/golden_file.h"
#include "tests/model/model_runner.h"

namespace tmamba {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.vocab = 61, config.dim = 32, config.heads = 2, config.layers = 5, config.ffn = 40, config.chunk = 8,
  config.init_std = 0.3;
  config.schedule = {TransPoint::of_tokens(0)};
  return config;
}

// Logits after the last of `tokens`, by a forward pass over all of them.
std::vector<double> full_logits(const ModelConfig& config, std::vector<int64_t> points,
                                const std::vector<int32_t>& tokens) {
  const int64_t T = static_cast<int64_t>(tokens.size());
  for (size_t i = 0; i < points.size(); ++i) {
    points[i] = config.has_ssm(static_cast<int64_t>(i)) ? std::min(points[i], T) : T;
  }
  ModelRunner runner(config, points, {.batch = 1, .tokens = T, .dtype = DType::f64});
  runner.table().initialize(runner.params(), 11);
  std::vector<int32_t> with_target = tokens;
  with_target.push_back(0);
  runner.run(with_target, false);
  Buffer logits({1, config.vocab}, DType::f64);
  const Tensor logits_1V = logits.tensor({1, config.vocab}, DType::f64);
  runner.ops().linear_forward({logits_1V, runner.model().normed_output().slice(0, T - 1, 1),
                               runner.table().view(runner.params(), "head.weight")});
  return values_of(logits_1V);
}

int32_t most_likely(const std::vector<double>& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Greedy decoding of `count` tokens after a prompt, which is fed in chunks of `chunk` tokens.
void decode_and_compare(const ModelConfig& config, const std::vector<int64_t>& points, int64_t prompt, int64_t count,
                        int64_t chunk) {
  const auto ops = make_ops(Device::cpu);
  const ParameterTable table(config);
  Buffer params({table.flat_size()}, DType::f64);
  const Tensor flat = params.tensor({table.flat_size()}, DType::f64);
  table.initialize(flat, 11);
  Decoder decoder(config, table, points, 1, prompt + count, DType::f64, Device::cpu, chunk);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < prompt; ++i) tokens.push_back(static_cast<int32_t>((7 * i + 3) % config.vocab));
  std::vector<int32_t> input = tokens;
  for (int64_t i = 0; i < count; ++i) {
    const ConstTensor fed(input.data(), {1, static_cast<int64_t>(input.size())}, DType::i32);
    const std::vector<double> logits = values_of(decoder.feed(*ops, flat, fed)),
                              expected = full_logits(config, points, tokens);
    EXPECT_LT(relative_error(logits, expected), 1e-10) << "after " << tokens.size() << " tokens";
    ASSERT_EQ(most_likely(logits), most_likely(expected)) << "after " << tokens.size() << " tokens";
    input = {most_likely(logits)};
    tokens.push_back(input[0]);
  }
}

TEST(Decoder, EqualsFullForwardForEveryKindOfTransPoint) {
  // TransPoints inside the prompt, at its end, one token later, among the new tokens, beyond the last token.
  for (int64_t chunk : {1, 5, 64}) decode_and_compare(small_config(), {0, 5, 12, 13, 99}, 12, 14, chunk);
  decode_and_compare(small_config(), {20, 1, 2, 3, 26}, 12, 14, 64);
  decode_and_compare(small_config(), {0, 1, 0, 2, 1}, 1, 9, 64);  // a prompt shorter than the convolution
}

TEST(Decoder, WithoutGateAndWithoutConverter) {
  ModelConfig config = small_config();
  config.z_gate = false;
  decode_and_compare(config, {0, 5, 12, 13, 99}, 12, 6, 5);
  config.z_gate = true, config.converter = Converter::zero;
  decode_and_compare(config, {0, 5, 12, 13, 99}, 12, 6, 5);
}

TEST(Decoder, LayersWithoutSsmAttendPastTheTrainedLength) {
  ModelConfig config = small_config();
  config.schedule = {TransPoint::of_tokens(8), TransPoint::of_fraction(1, 1)};
  for (int64_t chunk : {5, 64}) decode_and_compare(config, {8, 16, 8, 16, 8}, 12, 14, chunk);
}

TEST(Decoder, CacheIsFreedAtTheTransPoint) {
  const ModelConfig config = small_config();
  const auto ops = make_ops(Device::cpu);
  const ParameterTable table(config);
  Buffer params({table.flat_size()}, DType::f32);
  Decoder decoder(config, table, {200, 200, 200, 200, 200}, 1, 300, DType::f32, Device::cpu);
  const std::vector<int32_t> tokens(199, 1);
  decoder.feed(*ops, params.tensor({table.flat_size()}, DType::f32), ConstTensor(tokens.data(), {1, 199}, DType::i32));
  const int64_t before = decoder.cache_bytes();
  decoder.feed(*ops, params.tensor({table.flat_size()}, DType::f32), ConstTensor(tokens.data(), {1, 1}, DType::i32));
  const int64_t after = decoder.cache_bytes();
  EXPECT_LT(after, before / 4);
  decoder.feed(*ops, params.tensor({table.flat_size()}, DType::f32), ConstTensor(tokens.data(), {1, 50}, DType::i32));
  EXPECT_EQ(decoder.cache_bytes(), after);
}

}  // namespace
}  // namespace tmamba
