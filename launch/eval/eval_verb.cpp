#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "dist/comm/collective_guard.h"
#include "dist/world/device_world.h"
#include "kernels/base/device.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/eval/evaluator.h"
#include "launch/eval/loaded_model.h"
#include "launch/eval/sampler.h"
#include "launch/verbs.h"
#include "model/measure.h"

namespace tmamba {

namespace {

// Options that eval and generate share, as assignments of keys.
std::vector<std::string> overrides_of(const Command& command) {
  std::vector<std::string> overrides = command.list("set");
  for (const auto& [option, key] : {std::pair("schedule", "model.schedule"), std::pair("device", "run.device")}) {
    if (command.has(option)) overrides.push_back(str(key, "=", command.get<std::string>(option)));
  }
  return overrides;
}

// The validation sets to evaluate on: --data, or those of the run.
std::vector<ValidationSet> sets_of(const Command& command, const RunConfig& config) {
  if (command.has("data")) return {{.name = "valid", .path = command.get<std::string>("data")}};
  std::vector<ValidationSet> sets = validation_sets(config.data);
  if (sets.empty()) throw UserError("--data is missing: the run has no validation set, give a token file");
  return sets;
}

// Throws UserError if a batch needs more memory than this rank may take.
void require_free(size_t needed, Device device, const World& world, int64_t batch) {
  const size_t free = device_memory(device).free / static_cast<size_t>(device == Device::cpu ? world.local_size() : 1);
  if (needed <= free) return;
  const auto text = [](size_t bytes) { return bytes_text(static_cast<int64_t>(std::min<size_t>(bytes, INT64_MAX))); };
  throw UserError(
      str("--batch ", batch, " needs ", text(needed), " of memory, ", text(free), " are free: set a smaller --batch"));
}

std::vector<TokenFile> open_files(const std::vector<ValidationSet>& sets, const SavedModel& saved, RankFacts& facts) {
  std::vector<TokenFile> files;
  for (const ValidationSet& set : sets) {
    files.emplace_back(set.path);
    facts.add("validation set " + set.name, files.back().info());
    if (files.back().info().tokenizer_hash == saved.state.tokenizer_hash) continue;
    throw UserError(
        str(set.path, " was made with another tokenizer than the training data of ", saved.path().string()));
  }
  return files;
}

std::vector<EvalResult> results_of(const Command& command, const LoadedModel& loaded,
                                   const std::vector<TokenFile>& files, World& world) {
  Ops& ops = *loaded.ops;
  const ModelConfig& model_config = loaded.config.model;
  const std::vector<int64_t> points =
      transpoints(model_config.schedule, model_config.layers, loaded.config.data.seq_len);
  Mesh mesh(*make_device_communicator(world, ops.device(), ops.native_stream()), mesh_shape(1, 1, 0, world.size()));
  const DType dtype = loaded.config.dtype();
  const int64_t B = command.get<int64_t>("batch"), T = loaded.config.data.seq_len;
  if (B > INT32_MAX / T) {
    throw UserError(
        str("--batch ", B, " sequences of ", T, " tokens are over 2^31 tokens at a time: set a smaller --batch"));
  }
  ModelRanks ranks({.tokens = T,
                    .chunk = model_config.chunk,
                    .conv_width = static_cast<int>(model_config.conv),
                    .transpoints = points},
                   B, ops, mesh.sp(), mesh.tp());
  // There is no backward pass to save activations for.
  const Recompute level = Recompute::all;
  const ModelMeasure memory =
      measure_model(model_config, *loaded.table, ranks, dtype, ops.device(), level, Pass::forward);
  require_free(memory.saved_bytes + memory.scratch_bytes, ops.device(), world, B);
  Arena saved(memory.saved_bytes, ops.device()), scratch(memory.scratch_bytes, ops.device());
  TransMamba model(model_config, *loaded.table, ranks, dtype, saved, level);
  const EvalContext context{.ops = ops,
                            .scratch = scratch,
                            .model = model,
                            .ranks = ranks,
                            .params = loaded.params,
                            .mesh = mesh,
                            .world = world.comm(),
                            .stop = {}};
  std::vector<EvalResult> results;
  for (size_t i = 0; i < files.size(); ++i) {
    results.push_back(evaluate(context, files[i], command.get<int64_t>("sequences")).value());
    if (results.back().finite()) continue;
    throw Error(str("the loss of ", loaded.path.string(), " on ", files[i].info().path.string(), " is not finite (",
                    results.back().loss(), "): its weights are damaged, or too large for ",
                    name_of(loaded.config.dtype())));
  }
  return results;
}

int eval_on(World& world, Command& command, const Arguments& arguments) {
  SavedModel saved;
  std::vector<ValidationSet> sets;
  std::vector<TokenFile> files;
  const bool runs = parse_together(world, "eval", command, arguments, [&](RankFacts& facts) {
    std::vector<std::string> overrides = overrides_of(command);
    if (command.has("seq-len")) overrides.push_back(str("data.seq_len=", command.get<int64_t>("seq-len")));
    saved = open_model(command.get<std::string>("checkpoint"), overrides, facts);
    sets = sets_of(command, saved.config);
    files = open_files(sets, saved, facts);
  });
  if (!runs) return kDone;
  const LoadedModel loaded = load_model(std::move(saved), world);
  const std::vector<EvalResult> results = results_of(command, loaded, files, world);
  if (world.rank() != 0) return kDone;
  nlohmann::json json = {{"checkpoint", loaded.path.string()},
                         {"step", loaded.state.step},
                         {"data", sets.front().path},
                         {"tokens", results.front().tokens},
                         {"bytes", results.front().bytes}};
  for (size_t i = 0; i < sets.size(); ++i) {
    json.update(valid_metrics(results[i], sets[i].name, i == 0));
    if (command.json()) continue;
    std::printf("%s on %s: loss %.4f, %.4f bits/byte over %s tokens, %s bytes\n", loaded.path.c_str(),
                sets[i].path.c_str(), results[i].loss(), results[i].bits_per_byte(),
                count_text(static_cast<double>(results[i].tokens)).c_str(),
                count_text(static_cast<double>(results[i].bytes)).c_str());
  }
  if (command.json()) std::printf("%s\n", json.dump(2).c_str());
  return kDone;
}

}  // namespace

int eval_verb(const Arguments& arguments) {
  return run_main([&](World& world) {
    Command command("eval");
    return eval_on(world, command, arguments);
  });
}

namespace {

std::unique_ptr<Tokenizer> tokenizer_for(const Command& command, const SavedModel& saved) {
  const DataConfig& data = saved.config.data;
  std::unique_ptr<Tokenizer> tokenizer = command.has("tokenizer")
                                             ? load_tokenizer(command.get<std::string>("tokenizer"))
                                             : load_tokenizer_of(TokenFile(data.train), data.tokenizer);
  if (tokenizer->hash() == saved.state.tokenizer_hash) return tokenizer;
  throw UserError("the model was trained with another tokenizer; give its file by --tokenizer");
}

// Texts are assigned to ranks in turn; each rank has the whole model.
int generate_on(World& world, Command& command, const Arguments& arguments) {
  SavedModel saved;
  std::unique_ptr<Tokenizer> tokenizer;
  const bool runs = parse_together(world, "generate", command, arguments, [&](RankFacts& facts) {
    saved = open_model(command.get<std::string>("checkpoint"), overrides_of(command), facts);
    tokenizer = tokenizer_for(command, saved);
  });
  if (!runs) return kDone;
  const LoadedModel loaded = load_model(std::move(saved), world);
  const std::vector<int64_t> points =
      transpoints(loaded.config.model.schedule, loaded.config.model.layers, loaded.config.data.seq_len);
  const SampleContext context{.ops = *loaded.ops,
                              .config = loaded.config.model,
                              .table = *loaded.table,
                              .params = loaded.params,
                              .transpoints = points,
                              .tokenizer = *tokenizer};
  const std::string prompt = command.get<std::string>("prompt");
  const auto text_of = [&](int64_t i) {
    const SampleOptions options{.max_tokens = command.get<int64_t>("tokens"),
                                .temperature = command.get<double>("temperature"),
                                .top_k = command.get<int64_t>("top-k"),
                                .seed = static_cast<uint64_t>(command.get<int64_t>("seed")) + static_cast<uint64_t>(i)};
    return prompt + tokenizer->decode(sample(context, prompt, options));
  };
  CollectiveGuard guard(world.comm());
  const int64_t count = command.get<int64_t>("count");
  nlohmann::json texts = nlohmann::json::array();
  for (int64_t first = 0; first < count; first += world.size()) {
    std::string own;
    guard.on_all([&] {
      if (first + world.rank() < count) own = text_of(first + world.rank());
    });
    const std::vector<std::string> round = guard.gather(own);
    for (int64_t i = first; world.rank() == 0 && i < std::min<int64_t>(count, first + world.size()); ++i) {
      const std::string& text = round[static_cast<size_t>(i - first)];
      if (command.json()) {
        texts.push_back(text);
      } else {
        std::printf("%s%s\n", i > 0 ? "---\n" : "", text.c_str());
      }
    }
  }
  if (world.rank() == 0 && command.json()) {
    std::printf("%s\n", texts.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  }
  return kDone;
}

}  // namespace

int generate_verb(const Arguments& arguments) {
  return run_main([&](World& world) {
    Command command("generate");
    return generate_on(world, command, arguments);
  });
}

}  // namespace tmamba
