#include "launch/eval/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/base/rng.h"
#include "model/decoder.h"

namespace tmamba {

namespace {

int32_t draw(const std::vector<double>& logits, const SampleOptions& options, int64_t position) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  auto likelier = [&](int32_t a, int32_t b) {
    const double x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  const int32_t best = *std::min_element(order.begin(), order.end(), likelier);
  if (options.temperature == 0) return best;
  if (options.top_k > 0 && options.top_k < static_cast<int64_t>(order.size())) {
    std::partial_sort(order.begin(), order.begin() + options.top_k, order.end(), likelier);
    order.resize(static_cast<size_t>(options.top_k));
  }
  std::vector<double> cumulative;
  double total = 0;
  for (int32_t token : order) {
    total += std::exp((logits[static_cast<size_t>(token)] - logits[static_cast<size_t>(best)]) / options.temperature);
    cumulative.push_back(total);
  }
  const double u = total * Philox(options.seed, stream_id("sample")).uniform(static_cast<uint64_t>(position));
  const size_t index =
      static_cast<size_t>(std::upper_bound(cumulative.begin(), cumulative.end(), u) - cumulative.begin());
  return order[std::min(index, order.size() - 1)];
}

}  // namespace

std::vector<int32_t> sample(const SampleContext& context, const std::string& prompt, const SampleOptions& options,
                            const std::function<bool()>& stop) {
  const auto& [ops, config, table, params, transpoints, tokenizer] = context;
  std::vector<int32_t> input = tokenizer.encode(prompt);
  if (input.empty()) input = {tokenizer.document_end()};
  const int64_t prompt_tokens = static_cast<int64_t>(input.size());
  Decoder decoder(config, table, transpoints, 1, prompt_tokens + options.max_tokens, params.dtype(), ops.device());
  Buffer device_tokens({prompt_tokens}, DType::i32, ops.device());
  const DType acc = accumulate_type(params.dtype());
  const Buffer wide_logits({1, config.vocab}, acc, ops.device()), host_logits({1, config.vocab}, acc);
  const Tensor wide = wide_logits.tensor({1, config.vocab}, acc), host = host_logits.tensor({1, config.vocab}, acc);
  std::vector<int32_t> output;
  // A model's vocabulary may be rounded up beyond the tokenizer's; the tokens in between stand for no text.
  const int64_t drawn = std::min<int64_t>(config.vocab, tokenizer.vocab_size());
  std::vector<double> logits(static_cast<size_t>(drawn));
  for (int64_t i = 0; i < options.max_tokens && !(stop && stop()); ++i) {
    const int64_t n = static_cast<int64_t>(input.size());
    const Tensor tokens = device_tokens.tensor({1, n}, DType::i32);
    copy_blocking(tokens, ConstTensor(input.data(), {1, n}, DType::i32));
    ops.copy({wide, decoder.feed(ops, params, tokens)});
    ops.synchronize();
    copy_blocking(host, wide);
    dispatch_float(acc, [&]<class T>() { std::copy_n(host.data<T>(), drawn, logits.begin()); });
    const int32_t token = draw(logits, options, decoder.position());
    if (token == tokenizer.document_end()) break;
    output.push_back(token);
    input = {token};
  }
  return output;
}

}  // namespace tmamba
