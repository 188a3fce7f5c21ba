// Reads a golden file (model/SPEC.md section 9): a configuration, parameters, tokens, and what an independent float64
// implementation with automatic differentiation computed from them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/parameters.h"

namespace tmamba {

struct GoldenArray {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<double> values;
};

class GoldenFile {
 public:
  explicit GoldenFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const ModelConfig& config() const { return config_; }
  const std::vector<int64_t>& transpoints() const { return transpoints_; }
  int64_t batch() const { return batch_; }
  int64_t seq_len() const { return seq_len_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }  // [B, T + 1]
  double loss() const { return loss_; }
  // All arrays whose names begin with a prefix: "grads/", "mixer_out/", ...
  std::vector<const GoldenArray*> arrays(const std::string& prefix) const;
  // Writes params/* to the flat buffer of a table that holds whole parameters.
  void fill_params(const ParameterTable& table, const Tensor& flat) const;
  // The same for a table that holds shards.
  void fill_params_sharded(const ParameterTable& table, const Tensor& flat) const;

 private:
  std::filesystem::path path_;
  ModelConfig config_;
  std::vector<int64_t> transpoints_;
  int64_t batch_ = 0, seq_len_ = 0;
  std::vector<int32_t> tokens_;
  std::vector<GoldenArray> arrays_;
  double loss_ = 0;
};

// The golden files of the project, and every *.h5 of the folder named by TMAMBA_GOLDEN. Throws Error where a folder has
// none.
std::vector<std::filesystem::path> golden_files();

// || actual - expected || / || expected ||, with 0 / 0 = 0.
double relative_error(const std::vector<double>& actual, const std::vector<double>& expected);

// The elements of a contiguous tensor on any device, row-major, as doubles.
std::vector<double> values_of(const ConstTensor& tensor);

}  // namespace tmamba
