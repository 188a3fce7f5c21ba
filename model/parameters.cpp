#include "model/parameters.h"

#include <algorithm>
#include <cmath>

#include "dist/sequence/exchange.h"
#include "kernels/base/rng.h"

namespace tmamba {

namespace {

constexpr int64_t kAlignment = 64;  // elements; 256 bytes of float32

double initial_value(Init init, const ModelConfig& config, const Philox& random, uint64_t element) {
  switch (init) {
    case Init::normal:
      return config.init_std * random.normal(element);
    case Init::scaled_normal:
      return config.init_std / std::sqrt(2.0 * static_cast<double>(config.layers)) * random.normal(element);
    case Init::conv:
      return (2 * random.uniform(element) - 1) / std::sqrt(static_cast<double>(config.conv));
    case Init::zeros:
      return 0;
    case Init::ones:
      return 1;
    case Init::a_log:
      return std::log(1 + 15 * random.uniform(element));
    case Init::dt_bias: {
      const double dt = 1e-3 * std::pow(100.0, random.uniform(element));
      return dt + std::log(-std::expm1(-dt));  // softplus^-1(dt)
    }
  }
  return 0;
}

}  // namespace

ParameterTable::ParameterTable(const ModelConfig& config, int tp_rank, int tp_size)
    : config_(config), tp_rank_(tp_rank), tp_size_(tp_size) {
  validate(config);
  if (config.heads % tp_size != 0 || config.ffn % tp_size != 0 || config.vocab < tp_size) {
    throw UserError(str("parallel.tp = ", tp_size, " does not divide model.heads = ", config.heads, " and model.ffn = ",
                        config.ffn, ", or is larger than the vocabulary of ", config.vocab, "; change one of them"));
  }
  const int64_t d = config.dim, V = config.vocab;
  add_matrix("embedding.weight", V, d, Shard::rows, Init::normal);
  for (int64_t i = 0; i < config.layers; ++i) add_layer(i);
  ++bucket_;
  add_vector("norm.weight", d, Shard::none, Init::ones);
  if (!config.tied_head) add_matrix("head.weight", V, d, Shard::rows, Init::normal);
}

void ParameterTable::add_layer(int64_t i) {
  const int64_t d = config_.dim, F = config_.ffn;
  ++bucket_;
  const std::string mixer = str("layers.", i, ".mixer."), mlp = str("layers.", i, ".mlp.");
  add_vector(mixer + "norm.weight", d, Shard::none, Init::ones);
  add_matrix(mixer + "qkv.weight", 3 * d, d, Shard::rows, Init::normal);
  store_apart(mixer, ".weight", {"q", "k", "v"});
  add_matrix(mixer + "conv.weight", 3 * d, config_.conv, Shard::rows, Init::conv, false);
  store_apart(mixer, ".weight", {"conv_q", "conv_k", "conv_v"});
  add_vector(mixer + "conv.bias", 3 * d, Shard::rows, Init::zeros);
  store_apart(mixer, ".bias", {"conv_q", "conv_k", "conv_v"});
  if (config_.has_ssm(i)) {
    add_ssm(mixer);
  } else {
    for (const char* name : {"z.weight", "dt.weight", "dt.bias", "A_log", "D", "out_norm.weight"}) {
      unused_.push_back(mixer + name);
    }
  }
  add_matrix(mixer + "out.weight", d, d, Shard::columns, Init::scaled_normal);
  add_vector(mlp + "norm.weight", d, Shard::none, Init::ones);
  add_matrix(mlp + "gate_up.weight", 2 * F, d, Shard::rows, Init::normal);
  store_apart(mlp, ".weight", {"gate", "up"});
  add_matrix(mlp + "down.weight", d, F, Shard::columns, Init::scaled_normal);
}

// What the SSM tokens alone use.
void ParameterTable::add_ssm(const std::string& mixer) {
  const int64_t d = config_.dim, H = config_.heads;
  if (config_.z_gate) add_matrix(mixer + "z.weight", d, d, Shard::rows, Init::normal);
  add_matrix(mixer + "dt.weight", H, d, Shard::rows, Init::normal);
  add_vector(mixer + "dt.bias", H, Shard::rows, Init::dt_bias);
  add_vector(mixer + "A_log", H, Shard::rows, Init::a_log);
  add_vector(mixer + "D", H, Shard::rows, Init::ones);
  add_vector(mixer + "out_norm.weight", d, Shard::rows, Init::ones);
}

void ParameterTable::add_vector(const std::string& name, int64_t rows, Shard shard, Init init) {
  add({.name = name, .stored = {name}, .dims = 1, .rows = rows, .cols = 1, .shard = shard, .init = init});
}

void ParameterTable::add_matrix(const std::string& name, int64_t rows, int64_t cols, Shard shard, Init init,
                                bool decay) {
  add({.name = name,
       .stored = {name},
       .dims = 2,
       .rows = rows,
       .cols = cols,
       .shard = shard,
       .init = init,
       .decay = decay});
}

void ParameterTable::store_apart(const std::string& prefix, const std::string& kind,
                                 const std::vector<std::string>& names) {
  parameters_.back().stored.clear();
  for (const std::string& name : names) parameters_.back().stored.push_back(str(prefix, name, kind));
}

void ParameterTable::add(Parameter p) {
  p.bucket = bucket_;
  p.local_rows = p.shard == Shard::rows ? shard_of(p.rows, tp_rank_, tp_size_).count : p.rows;
  p.local_cols = p.shard == Shard::columns ? exact_div(p.cols, tp_size_) : p.cols;
  p.offset = flat_size_;
  flat_size_ = round_up(flat_size_ + p.local_size(), kAlignment);
  parameters_.push_back(std::move(p));
}

const Parameter* ParameterTable::find_if_present(const std::string& name) const {
  const auto found =
      std::find_if(parameters_.begin(), parameters_.end(), [&](const Parameter& p) { return p.name == name; });
  return found == parameters_.end() ? nullptr : &*found;
}

const Parameter& ParameterTable::find(const std::string& name) const {
  const Parameter* found = find_if_present(name);
  TM_CHECK(found, "no parameter is named ", name);
  return *found;
}

Tensor ParameterTable::view(const Tensor& flat, const Parameter& p) const {
  const Tensor range = flat.slice(0, p.offset, p.local_size());
  return p.dims == 1 ? range : range.split(0, p.local_rows, p.local_cols);
}

int64_t ParameterTable::global_size() const {
  int64_t total = 0;
  for (const Parameter& p : parameters_) total += p.rows * p.cols;
  return total;
}

std::vector<StoredRange> ParameterTable::stored_ranges(const Parameter& p, int64_t begin, int64_t rows) const {
  const int64_t blocks = static_cast<int64_t>(p.stored.size());
  const int64_t block_rows = p.rows / blocks, local_block_rows = p.local_rows / blocks;
  const int64_t first_row = p.shard == Shard::rows ? shard_of(block_rows, tp_rank_, tp_size_).begin : 0;
  const int64_t first_col = p.shard == Shard::columns ? tp_rank_ * p.local_cols : 0;
  std::vector<StoredRange> ranges;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t from = std::max(begin, block * local_block_rows);
    const int64_t to = std::min(begin + rows, (block + 1) * local_block_rows);
    if (from >= to) continue;
    StoredRange range{.name = p.stored[static_cast<size_t>(block)],
                      .shape = {block_rows},
                      .offset = {first_row + from - block * local_block_rows},
                      .local_row = from,
                      .rows = to - from};
    if (p.dims == 2) range.shape.push_back(p.cols), range.offset.push_back(first_col);
    ranges.push_back(std::move(range));
  }
  return ranges;
}

void ParameterTable::initialize(const Tensor& flat, uint64_t seed) const {
  dispatch_float(flat.dtype(), [&]<class T>() {
    for (const Parameter& p : parameters_) {
      T* values = flat.data<T>() + p.offset;
      for (const StoredRange& range : stored_ranges(p, 0, p.local_rows)) {
        const Philox random(seed, stream_id(range.name));
        const int64_t first_col = p.dims == 2 ? range.offset[1] : 0;
#pragma omp parallel for
        for (int64_t r = 0; r < range.rows; ++r) {
          for (int64_t c = 0; c < p.local_cols; ++c) {
            const int64_t element = (range.offset[0] + r) * p.cols + first_col + c;
            values[(range.local_row + r) * p.local_cols + c] =
                static_cast<T>(initial_value(p.init, config_, random, static_cast<uint64_t>(element)));
          }
        }
      }
    }
  });
}

}  // namespace tmamba
