#include "launch/state/checkpoint_tools.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "data/checkpoint/checkpoint_folder.h"
#include "data/checkpoint/element_convert.h"
#include "data/checkpoint/tensor_source.h"
#include "data/io/fs.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/state/run_state.h"
#include "model/schedule.h"

namespace tmamba {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

void print(const json& result, bool as_json, const std::string& text) {
  std::printf("%s\n", as_json ? result.dump(2).c_str() : text.c_str());
}

struct Difference {
  int64_t elements = 0;
  double largest = 0;  // of |a - b|; infinite where one of the two is not finite
};

double number_at(const Tensor& x, int64_t i) {
  double out = 0;
  const char* element = static_cast<const char*>(x.raw()) + i * static_cast<int64_t>(size_of(x.dtype()));
  switch (x.dtype()) {
    case DType::i64:
      return static_cast<double>(*reinterpret_cast<const int64_t*>(element));
    case DType::i32:
      return static_cast<double>(*reinterpret_cast<const int32_t*>(element));
    case DType::u16:
      return static_cast<double>(*reinterpret_cast<const uint16_t*>(element));
    case DType::u8:
      return static_cast<double>(*reinterpret_cast<const uint8_t*>(element));
    default:
      convert_elements(&out, DType::f64, element, x.dtype(), 1);
      return out;
  }
}

// Differences in bits: two NaNs of the same bits are the same.
Difference compare(const TensorSource& a, const TensorSource& b, const StoredTensor& tensor) {
  Difference found;
  const size_t width = size_of(tensor.dtype);
  std::vector<char> other;
  each_block(a, tensor, [&](int64_t row, const Tensor& block) {
    other.resize(static_cast<size_t>(block.bytes()));
    const Tensor twin = block.dims() == 1 ? Tensor(other.data(), {block.size(0)}, block.dtype())
                                          : Tensor(other.data(), {block.size(0), block.size(1)}, block.dtype());
    b.read(tensor.name, row, twin);
    if (std::memcmp(block.raw(), twin.raw(), other.size()) == 0) return;
    for (int64_t i = 0; i < block.numel(); ++i) {
      const size_t at = static_cast<size_t>(i) * width;
      if (std::memcmp(static_cast<const char*>(block.raw()) + at, other.data() + at, width) == 0) continue;
      ++found.elements;
      const double distance = std::abs(number_at(block, i) - number_at(twin, i));
      found.largest = std::max(found.largest, std::isfinite(distance) ? distance : HUGE_VAL);
    }
  });
  return found;
}

json tensor_differences(const TensorSource& a, const TensorSource& b) {
  std::map<std::string, const StoredTensor*> others;
  for (const StoredTensor& tensor : b.tensors) others[tensor.name] = &tensor;
  json list = json::array();
  for (const StoredTensor& tensor : a.tensors) {
    const auto found = others.find(tensor.name);
    if (found == others.end()) {
      list.push_back({{"tensor", tensor.name}, {"problem", "only in the first"}});
      continue;
    }
    const StoredTensor& other = *found->second;
    others.erase(found);
    if (other.dtype != tensor.dtype || other.shape != tensor.shape) {
      list.push_back({{"tensor", tensor.name},
                      {"problem", str(name_of(tensor.dtype), " ", json(tensor.shape).dump(), " and ",
                                      name_of(other.dtype), " ", json(other.shape).dump())}});
      continue;
    }
    const Difference difference = compare(a, b, tensor);
    if (difference.elements == 0) continue;
    int64_t all = 1;
    for (int64_t size : tensor.shape) all *= size;
    list.push_back({{"tensor", tensor.name},
                    {"elements", difference.elements},
                    {"largest", std::isfinite(difference.largest) ? json(difference.largest) : json("infinite")},
                    {"problem", str(difference.elements, " of ", all, " elements differ, by up to ",
                                    scientific(difference.largest))}});
  }
  for (const auto& [name, tensor] : others) list.push_back({{"tensor", name}, {"problem", "only in the second"}});
  return list;
}

// Members of the two states that differ. The program that wrote them is not part of the run's state.
json state_differences(json a, json b) {
  json list = json::array();
  if (!a.is_object() || !b.is_object()) return a == b ? list : json::array({"state"});
  a.erase("build"), b.erase("build");
  for (const auto& [key, value] : a.items()) {
    if (!b.contains(key) || b.at(key) != value) list.push_back(key);
  }
  for (const auto& [key, value] : b.items()) {
    if (!a.contains(key)) list.push_back(key);
  }
  return list;
}

// The model's settings, for a program that loads the exported weights.
json model_config_json(const RunState& state, const fs::path& path) {
  const RunConfig config = parse_config(state.config, path.string() + " (configuration)", {});
  const ModelConfig& m = config.model;
  json schedule = json::array();
  for (int64_t point : transpoints(m.schedule, m.layers, config.data.seq_len)) schedule.push_back(point);
  return {{"model_type", "transmamba"},
          {"architectures", {"TransMamba"}},
          {"torch_dtype", name_of(config.train.dtype)},
          {"vocab_size", m.vocab},
          {"hidden_size", m.dim},
          {"num_attention_heads", m.heads},
          {"num_hidden_layers", m.layers},
          {"intermediate_size", m.ffn},
          {"max_position_embeddings", config.data.seq_len},
          {"transpoints", schedule},
          {"conv_kernel", m.conv},
          {"tie_word_embeddings", m.tied_head},
          {"z_gate", m.z_gate},
          {"converter", name_of(m.converter)},
          {"rms_norm_eps", m.norm_eps},
          {"rope_theta", m.rope_theta}};
}

bool holds(const fs::path& file, const std::string& text) {
  return fs::is_regular_file(file) && fs::file_size(file) == text.size() &&
         read_text(fs::canonical(file), static_cast<int64_t>(text.size())) == text;
}

}  // namespace

fs::path checkpoints_folder(const fs::path& run) {
  const fs::path folder = fs::exists(run / "checkpoints") ? run / "checkpoints" : run;
  if (!fs::is_directory(folder)) throw UserError(str(folder.string(), ": no such checkpoint or run directory"));
  return folder;
}

int checkpoint_diff(const fs::path& a, const fs::path& b, bool as_json) {
  const CheckpointReader first(a), second(b);
  const json tensors = tensor_differences(source_of(first), source_of(second)),
             state = state_differences(first.state(), second.state());
  const bool same = tensors.empty() && state.empty() && first.step() == second.step();
  if (as_json) {
    print({{"same", same}, {"steps", {first.step(), second.step()}}, {"state", state}, {"tensors", tensors}}, true, "");
    return same ? kDone : kFailed;
  }
  if (first.step() != second.step()) {
    std::printf("steps %lld and %lld\n", static_cast<long long>(first.step()), static_cast<long long>(second.step()));
  }
  for (const json& key : state) std::printf("state: %s differs\n", key.get<std::string>().c_str());
  for (const json& entry : tensors) {
    std::printf("  %-52s %s\n", entry.at("tensor").get<std::string>().c_str(),
                entry.at("problem").get<std::string>().c_str());
  }
  std::printf("%s\n", same ? "bit-identical" : str(tensors.size(), " tensors differ").c_str());
  return same ? kDone : kFailed;
}

int checkpoint_prune(const fs::path& run, const SaveOptions& keep, bool only_show, bool as_json) {
  const fs::path folder = checkpoints_folder(run);
  const VerifiedRetention found = verified_retention(folder, keep);
  const std::string nonce = random_nonce();
  json removed = json::array(), damaged = json::array();
  for (const auto& [path, problem] : found.damaged) {
    damaged.push_back({{"path", path.string()}, {"problem", problem}});
    if (!as_json) std::printf("DAMAGED, neither counted nor removed: %s: %s\n", path.c_str(), problem.c_str());
  }
  for (const fs::path& path : found.beyond) {
    if (!only_show) remove_checkpoint(path, nonce);
    removed.push_back(path.string());
    if (!as_json) std::printf("%s %s\n", only_show ? "would remove" : "removed", path.c_str());
  }
  const bool none_whole = found.kept == 0 && !found.damaged.empty();
  print({{"removed", removed}, {"damaged", damaged}, {"kept", found.kept}, {"only_shown", only_show}}, as_json,
        none_whole ? str(folder.string(), ": no checkpoint is complete; nothing is removed")
                   : str(found.kept, " checkpoints are kept"));
  return none_whole ? kFailed : kDone;
}

int checkpoint_reshard(const fs::path& from, const fs::path& to, int64_t writers, bool as_json) {
  const CheckpointReader reader(from);
  const fs::path path = write_checkpoint(source_of(reader), to, writers);
  print({{"path", path.string()}, {"bytes", CheckpointReader(path).bytes()}}, as_json, path.string());
  return kDone;
}

int checkpoint_export(const fs::path& from, const fs::path& file, bool weights_only, bool as_json) {
  const CheckpointReader reader(from);
  TensorSource source = source_of(reader);
  if (weights_only) {
    std::erase_if(source.tensors, [](const StoredTensor& tensor) { return !tensor.name.starts_with("model/"); });
  }
  const std::string config = model_config_json(read_state(reader), from).dump(2) + "\n";
  const fs::path beside = fs::absolute(file).parent_path() / "config.json";
  const bool there = fs::exists(fs::symlink_status(beside));
  if (there && !holds(beside, config)) {
    throw UserError(
        str(beside.string(), ": exists and describes another model; remove it or export to another directory"));
  }
  export_tensors(source, file);
  if (!there) replace_text_durably(beside, config, random_nonce());
  const int64_t bytes = static_cast<int64_t>(fs::file_size(file));
  print({{"path", file.string()}, {"config", beside.string()}, {"bytes", bytes}}, as_json,
        str(file.string(), " (", bytes_text(bytes), "), ", beside.string()));
  return kDone;
}

int checkpoint_import(const fs::path& file, const fs::path& to, bool as_json) {
  if (!fs::exists(file)) throw UserError(str(file.string(), ": no such file"));
  const TensorSource source = open_export(file);
  const bool checked = !source.crc.empty();
  if (!checked) {
    std::fprintf(stderr, "%s: has no checksums; its tensors are imported unverified\n", file.c_str());
  }
  const fs::path path = write_checkpoint(source, to, 0);
  read_state(CheckpointReader(path));
  print({{"path", path.string()}, {"bytes", CheckpointReader(path).bytes()}, {"checked", checked}}, as_json,
        path.string());
  return kDone;
}

}  // namespace tmamba
