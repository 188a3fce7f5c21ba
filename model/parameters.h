// The table of the model's parameters (model/SPEC.md section 8): names, shapes, tensor-parallel shards, buckets,
// initial values, weight decay and storage. Model, optimizer, gradient reduction and checkpoints read it; nothing else
// lists parameters.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"
#include "model/config.h"

namespace tmamba {

// How a tensor-parallel rank holds a parameter.
enum class Shard : uint8_t {
  none,     // every rank holds the whole; its gradient is summed over the tensor-parallel ranks
  rows,     // a range of the rows of every stored block (heads, MLP channels, vocabulary)
  columns,  // a range of the columns
};

enum class Init : uint8_t {
  normal,         // N(0, init_std)
  scaled_normal,  // N(0, init_std / sqrt(2 layers)): projections to the residual stream
  conv,           // uniform in +-1 / sqrt(W)
  zeros,
  ones,
  a_log,    // log of a uniform number in [1, 16]
  dt_bias,  // inverse softplus of a log-uniform number in [1e-3, 1e-1]
};

struct Parameter {
  std::string name;
  std::vector<std::string> stored;  // its logical matrices on disk, equal blocks of rows: {q, k, v} of qkv, else {name}
  int dims;                         // 1: [rows], 2: [rows, cols]
  int64_t rows, cols;               // of the whole model; cols = 1 where dims = 1
  Shard shard;
  Init init;
  bool decay = false;                      // weight decay applies
  int bucket = 0;                          // 0: embedding; 1 + i: layer i; 1 + layers: final norm and head
  int64_t local_rows = 0, local_cols = 0;  // of this tensor-parallel rank
  int64_t offset = 0;                      // first element in this rank's flat buffer

  int64_t local_size() const { return local_rows * local_cols; }
};

// A rectangle of a stored matrix and the rows of the local parameter that hold it.
struct StoredRange {
  std::string name;
  std::vector<int64_t> shape;   // of the stored matrix
  std::vector<int64_t> offset;  // of the rectangle in it
  int64_t local_row;            // first row of the local parameter
  int64_t rows;                 // rows of the rectangle; it is local_cols wide
};

class ParameterTable {
 public:
  // Throws UserError where `tp_size` does not divide heads or ffn. The vocabulary is split as evenly as possible.
  ParameterTable(const ModelConfig& config, int tp_rank = 0, int tp_size = 1);

  const std::vector<Parameter>& all() const { return parameters_; }
  // Names on disk of SSM tensors of layers without an SSM part. Earlier versions stored them, so readers pass over
  // them.
  const std::vector<std::string>& unused() const { return unused_; }
  const Parameter& find(const std::string& name) const;
  // Null where the model has no such parameter.
  const Parameter* find_if_present(const std::string& name) const;
  // The view of a parameter in a flat buffer: [local_rows] or [local_rows, local_cols].
  Tensor view(const Tensor& flat, const Parameter& parameter) const;
  Tensor view(const Tensor& flat, const std::string& name) const { return view(flat, find(name)); }
  // Empty where the model has no such parameter.
  Tensor view_if_present(const Tensor& flat, const std::string& name) const {
    const Parameter* parameter = find_if_present(name);
    return parameter ? view(flat, *parameter) : Tensor();
  }
  // Elements of the local flat buffer, padding included; parameters start at multiples of 64 elements.
  int64_t flat_size() const { return flat_size_; }
  int buckets() const { return bucket_ + 1; }
  // Elements of the whole model, on all ranks together.
  int64_t global_size() const;
  // The ranges on disk of rows [begin, begin + rows) of the local parameter.
  std::vector<StoredRange> stored_ranges(const Parameter& parameter, int64_t begin, int64_t rows) const;
  // Writes the initial values of this rank's shards to a flat host buffer of float32 or float64. They are a pure
  // function of (seed, stored name, element), so the same for every layout.
  void initialize(const Tensor& flat, uint64_t seed) const;

 private:
  void add_layer(int64_t layer);
  void add_ssm(const std::string& prefix);
  void add(Parameter parameter);
  void add_vector(const std::string& name, int64_t rows, Shard shard, Init init);
  void add_matrix(const std::string& name, int64_t rows, int64_t cols, Shard shard, Init init, bool decay = true);
  // Stores blocks of rows of the last parameter as matrices: "qkv" of "layers.0.mixer.qkv.weight" becomes q, k, v.
  void store_apart(const std::string& prefix, const std::string& kind, const std::vector<std::string>& names);

  ModelConfig config_;
  int tp_rank_, tp_size_;
  std::vector<Parameter> parameters_;
  std::vector<std::string> unused_;
  int64_t flat_size_ = 0;
  int bucket_ = 0;  // of the parameters that are added now
};

}  // namespace tmamba
