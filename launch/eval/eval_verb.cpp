#include <cstdio>
#include <nlohmann/json.hpp>

#include "dist/world/device_world.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/eval/evaluator.h"
#include "launch/eval/loaded_model.h"
#include "launch/eval/sampler.h"
#include "launch/verbs.h"
#include "model/measure.h"

namespace tmamba {

namespace po = boost::program_options;

namespace {

int eval_on(World& world, const Command& command) {
  std::vector<std::string> overrides = command.list("set");
  if (command.has("schedule")) overrides.push_back("model.schedule=" + command.get<std::string>("schedule"));
  if (command.has("seq-len")) overrides.push_back(str("data.seq_len=", command.get<int64_t>("seq-len")));
  if (command.has("device")) overrides.push_back("run.device=" + command.get<std::string>("device"));
  const LoadedModel loaded = load_model(command.required("checkpoint"), overrides, &world);
  Ops& ops = *loaded.ops;
  const std::string data = command.has("data") ? command.get<std::string>("data") : loaded.config.data.valid;
  if (data.empty()) throw UserError("--data is missing: a token file to evaluate on");
  const TokenFile file(data);
  if (file.info().tokenizer_hash != loaded.state.tokenizer_hash) {
    throw UserError(
        str(data, " was made with another tokenizer than the one ", loaded.path.string(), " was trained with"));
  }
  const ModelConfig& model_config = loaded.config.model;
  const std::vector<int64_t> points =
      transpoints(model_config.schedule, model_config.layers, loaded.config.data.seq_len);
  Mesh mesh(*make_device_communicator(world, ops.device(), ops.native_stream()), mesh_shape(1, 1, 0, world.size()));
  const DType dtype = loaded.config.dtype();
  const int64_t B = command.get<int64_t>("batch"), T = loaded.config.data.seq_len;
  ModelRanks ranks({.tokens = T,
                    .chunk = model_config.chunk,
                    .conv_width = static_cast<int>(model_config.conv),
                    .transpoints = points},
                   B, ops, mesh.sp(), mesh.tp());
  // Nothing is kept for a backward pass.
  const Recompute level = Recompute::all;
  const ModelMeasure memory =
      measure_model(model_config, *loaded.table, ranks, dtype, ops.device(), level, Pass::forward);
  Arena saved(memory.saved_bytes, ops.device()), scratch(memory.scratch_bytes, ops.device());
  TransMamba model(model_config, *loaded.table, ranks, dtype, saved, level);
  const EvalResult result = evaluate({.ops = ops,
                                      .scratch = scratch,
                                      .model = model,
                                      .ranks = ranks,
                                      .params = loaded.params,
                                      .mesh = mesh,
                                      .world = world.comm()},
                                     file, command.get<int64_t>("sequences"));
  if (world.rank() != 0) return kDone;
  if (command.json()) {
    std::printf("%s\n", nlohmann::json({{"checkpoint", loaded.path.string()},
                                        {"step", loaded.state.step},
                                        {"data", data},
                                        {"valid_loss", result.loss()},
                                        {"valid_bits_per_byte", result.bits_per_byte()},
                                        {"tokens", result.tokens},
                                        {"bytes", result.bytes}})
                            .dump(2)
                            .c_str());
  } else {
    std::printf("%s on %s: loss %.4f, %.4f bits/byte over %s tokens, %s bytes\n", loaded.path.c_str(), data.c_str(),
                result.loss(), result.bits_per_byte(), count_text(static_cast<double>(result.tokens)).c_str(),
                count_text(static_cast<double>(result.bytes)).c_str());
  }
  return kDone;
}

}  // namespace

int eval_verb(const Arguments& arguments) {
  return run_main([&](World& world) {
    Command command("eval CHECKPOINT [options]",
                    "Loss and bits per byte of a checkpoint (or of the newest one of a run folder) on a token file.");
    command.options()("data", po::value<std::string>(), "token file; default: the run's held-out file")(
        "schedule", po::value<std::string>(), "another TransPoint schedule than in training: [0, \"1/4\"]")(
        "seq-len", po::value<int64_t>(), "another sequence length than in training")(
        "batch", po::value<int64_t>()->default_value(8), "sequences at a time")(
        "sequences", po::value<int64_t>()->default_value(0), "evaluate on this many; 0: all")(
        "device", po::value<std::string>(), "cpu or cuda; default: the run's")(
        "set", po::value<std::vector<std::string>>(),
        "override a configuration key: --set train.dtype=float32 (repeatable)");
    command.positional("checkpoint");
    if (!command.parse(arguments, world.rank() == 0)) return static_cast<int>(kDone);
    return eval_on(world, command);
  });
}

int generate_verb(const Arguments& arguments) {
  Command command("generate CHECKPOINT [options]", "Text from a checkpoint, or from the newest one of a run folder.");
  command.options()("prompt", po::value<std::string>()->default_value("The "), "what the text starts with")(
      "tokens", po::value<int64_t>()->default_value(256), "how many tokens to add")(
      "temperature", po::value<double>()->default_value(0.8), "0: always the most likely token")(
      "top-k", po::value<int64_t>()->default_value(0), "draw from the k most likely tokens; 0: from all")(
      "seed", po::value<uint64_t>()->default_value(0), "seed of the draws")(
      "count", po::value<int64_t>()->default_value(1), "how many texts")(
      "schedule", po::value<std::string>(), "another TransPoint schedule than in training: [0, \"1/4\"]")(
      "tokenizer", po::value<std::string>(), "tokenizer file; default: the one beside the training data")(
      "device", po::value<std::string>(), "cpu or cuda; default: the run's")(
      "set", po::value<std::vector<std::string>>(),
      "override a configuration key: --set train.dtype=float32 (repeatable)");
  command.positional("checkpoint");
  if (!command.parse(arguments)) return kDone;
  std::vector<std::string> overrides = command.list("set");
  if (command.has("schedule")) overrides.push_back("model.schedule=" + command.get<std::string>("schedule"));
  if (command.has("device")) overrides.push_back("run.device=" + command.get<std::string>("device"));
  const LoadedModel loaded = load_model(command.required("checkpoint"), overrides);
  std::unique_ptr<Tokenizer> tokenizer =
      command.has("tokenizer") ? load_tokenizer(command.get<std::string>("tokenizer"))
                               : load_tokenizer_of(TokenFile(loaded.config.data.train), loaded.config.data.tokenizer);
  if (tokenizer->hash() != loaded.state.tokenizer_hash)
    throw UserError("the tokenizer is not the one the model was trained with");
  const std::vector<int64_t> points =
      transpoints(loaded.config.model.schedule, loaded.config.model.layers, loaded.config.data.seq_len);
  const SampleContext context{.ops = *loaded.ops,
                              .config = loaded.config.model,
                              .table = *loaded.table,
                              .params = loaded.params,
                              .transpoints = points,
                              .tokenizer = *tokenizer};
  const std::string prompt = command.get<std::string>("prompt");
  nlohmann::json texts = nlohmann::json::array();
  for (int64_t i = 0; i < command.get<int64_t>("count"); ++i) {
    const SampleOptions options{.max_tokens = command.get<int64_t>("tokens"),
                                .temperature = command.get<double>("temperature"),
                                .top_k = command.get<int64_t>("top-k"),
                                .seed = command.get<uint64_t>("seed") + static_cast<uint64_t>(i)};
    const std::vector<int32_t> tokens = sample(context, prompt, options);
    const std::string text = prompt + tokenizer->decode(tokens);
    if (command.json()) {
      texts.push_back(text);
    } else {
      std::printf("%s%s\n", i > 0 ? "---\n" : "", text.c_str());
    }
  }
  if (command.json()) std::printf("%s\n", texts.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  return kDone;
}

}  // namespace tmamba
