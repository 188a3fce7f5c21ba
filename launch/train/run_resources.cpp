#include "launch/train/run_resources.h"

#include <omp.h>

#include <algorithm>
#include <thread>

#include "dist/comm/collective_guard.h"
#include "dist/world/device_world.h"
#include "kernels/base/device.h"
#include "launch/eval/loaded_model.h"
#include "launch/plan/memory_check.h"
#include "launch/run/rank_agreement.h"
#include "launch/run/run_directory.h"
#include "launch/state/devices.h"

namespace tmamba {

namespace {

std::vector<ValidationFile> open_valid(const DataConfig& data, const TokenFile& train) {
  std::vector<ValidationFile> files;
  for (const ValidationSet& set : validation_sets(data)) {
    files.push_back({.name = set.name, .file = TokenFile(set.path)});
    const Loader needs_one_window(files.back().file, data.seq_len, 0, Order::sequential);
    if (files.back().file.info().tokenizer_hash == train.info().tokenizer_hash) continue;
    throw UserError(str("validation set ", set.name, ": ", set.path,
                        " was made with another tokenizer than data.train = ", data.train, "; prepare both together"));
  }
  return files;
}

double mean_token_bytes(const TokenFileInfo& info) {
  return static_cast<double>(info.source_bytes) / static_cast<double>(info.tokens);
}

void set_vocab(RunConfig& config, const TokenFileInfo& info) {
  ModelConfig& model = config.model;
  if (model.vocab == 0) model.vocab = info.vocab_size;
  if (model.vocab < info.vocab_size) {
    throw UserError(str("model.vocab = ", model.vocab, ", but ", config.data.train, " has a vocabulary of ",
                        info.vocab_size, "; raise model.vocab, or set it to 0 to take the tokenizer's"));
  }
}

void set_threads(const RunConfig& config, const World& world) {
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  omp_set_num_threads(config.run.threads > 0 ? static_cast<int>(config.run.threads)
                                             : std::max(1, cores / world.local_size()));
}

}  // namespace

RunData::RunData(RunConfig& config)
    : train(config.data.train),
      loader(train, config.data.seq_len, static_cast<uint64_t>(config.data.seed)),
      valid(open_valid(config.data, train)),
      tokenizer(load_tokenizer_of(train, config.data.tokenizer)) {
  set_vocab(config, train.info());
  try {
    tokenizer->encode(config.train.sample_prompt);
  } catch (const std::exception& error) {
    throw UserError(str("train.sample_prompt cannot be encoded: ", error.what()));
  }
}

double RunData::bytes_per_token() const { return mean_token_bytes(train.info()); }

std::vector<UsedFile> RunData::used_files() const {
  const auto used = [](const std::string& key, const TokenFile& file) {
    const TokenFileInfo& info = file.info();
    return UsedFile{.key = key,
                    .path = info.path.string(),
                    .identity = identity_of(info),
                    .bytes_per_token = mean_token_bytes(info)};
  };
  std::vector<UsedFile> files{used("data.train", train)};
  for (const ValidationFile& set : valid) files.push_back(used("validation set " + set.name + ": path", set.file));
  return files;
}

RunResources::RunResources(RunConfig run_config, World& ranks)
    : config(std::move(run_config)),
      world(ranks),
      shape(mesh_shape(config.parallel.tp, config.parallel.sp, config.parallel.dp, world.size())) {
  validate(config);
  set_threads(config, world);
  CollectiveGuard(world.comm()).on_root([&] { RunDirectory::require_usable(config.run.dir); });
  require_agreement(world.comm(), [&](RankFacts& facts) {
    data = std::make_unique<RunData>(config);
    facts.add("data.train", data->train.info());
    for (const ValidationFile& set : data->valid) facts.add("data.validation." + set.name, set.file.info());
  });
  batch = split_batch(config.train, shape.dp);
  schedule = std::make_unique<Schedule>(config);
  plan = agree_plan(config, shape, world.comm());
  ops = training_ops(config, world, batch.micro_batches);
  all = make_device_communicator(world, ops->device(), ops->native_stream());
  mesh = std::make_unique<Mesh>(*all, shape);
  require_memory(config, plan, ops->device(), world);
  if (ops->device() == Device::cuda) free_device_bytes = device_memory(Device::cuda).free;
}

}  // namespace tmamba
