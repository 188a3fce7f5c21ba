#include "launch/state/run_state.h"

#include <nlohmann/json.hpp>
#include <set>

#include "kernels/base/buffer.h"
#include "launch/cli/version.h"
#include "launch/state/devices.h"

namespace tmamba {

namespace {

constexpr char kModelFolder[] = "model/";

std::string folder_of(const StateSlot& slot) { return "optim/" + slot.name + "/"; }

// Calls f(stored range, its rows of `local`) for the owned rows of a parameter, which are held in `local`. Where
// `local` has one scalar per row, ranges have one dimension.
template <class F>
void each_range(const ParameterTable& table, const OwnedRows& owned, const Tensor& local, F&& f) {
  for (StoredRange& range : table.stored_ranges(*owned.parameter, owned.begin, owned.rows)) {
    if (local.dims() == 1) range.shape.resize(1), range.offset.resize(1);
    f(range, local.slice(0, range.local_row - owned.begin, range.rows));
  }
}

void require_same_shape(const CheckpointReader& reader, const std::string& name, const StoredRange& range) {
  for (const StoredTensor& stored : reader.tensors()) {
    if (stored.name != name) continue;
    if (stored.shape == range.shape) return;
    auto text = [](const std::vector<int64_t>& shape) {
      std::string out;
      for (int64_t size : shape) out += (out.empty() ? "" : " x ") + std::to_string(size);
      return out;
    };
    throw UserError(str(reader.path().string(), ": ", name, " is ", text(stored.shape), ", this configuration's is ",
                        text(range.shape),
                        ": the checkpoint is of another model; use its configuration or another run.dir"));
  }
  throw UserError(str(reader.path().string(), ": ", name, " is missing: the checkpoint is of another model; use its ",
                      "configuration or another run.dir"));
}

// A tensor that nothing would load belongs to another model, and would be missing in the next checkpoint.
void require_no_others(const CheckpointReader& reader, const ParameterTable& table) {
  std::set<std::string> known;
  for (const std::string& name : table.unused()) known.insert(kModelFolder + name);
  for (const Parameter& parameter : table.all()) {
    for (const std::string& name : parameter.stored) known.insert(kModelFolder + name);
  }
  for (const StoredTensor& stored : reader.tensors()) {
    if (!stored.name.starts_with(kModelFolder) || known.contains(stored.name)) continue;
    throw UserError(
        str(reader.path().string(), ": ", stored.name,
            ": unexpected tensor for this model configuration: the checkpoint is of another model; use its ",
            "configuration or another run.dir"));
  }
}

void require_optimizer(const CheckpointReader& reader, const std::string& name) {
  if (reader.has(name)) return;
  throw Error(str(reader.path().string(), ": has no tensor ", name,
                  ": training needs the optimizer's state beside the weights. If the checkpoint is an import, export "
                  "it again without --weights; else remove it to resume from the previous checkpoint, or give another "
                  "run.dir to begin a new run"));
}

}  // namespace

std::vector<TensorSlice> run_slices(const ParameterTable& table, const Tensor& params, const Optimizer& optimizer,
                                    bool writes_owned, bool writes_replicated,
                                    const std::function<Tensor(const Tensor&)>& to_host) {
  std::vector<TensorSlice> slices;
  auto add = [&](const std::string& folder, const OwnedRows& owned, const Tensor& local) {
    each_range(table, owned, to_host(local), [&](const StoredRange& range, const Tensor& rows) {
      slices.push_back({.name = folder + range.name, .shape = range.shape, .offset = range.offset, .data = rows});
    });
  };
  for (size_t i = 0; writes_owned && i < optimizer.owned().size(); ++i) {
    const OwnedRows& owned = optimizer.owned()[i];
    if (owned.rows == 0) continue;
    if (writes_replicated || owned.parameter->shard != Shard::none) {
      add(kModelFolder, owned, Optimizer::rows_of(params, owned));
    }
    for (size_t s = 0; s < optimizer.slots().size(); ++s) {
      const StateSlot& slot = optimizer.slots()[s];
      if (writes_replicated || !slot.replicated_over_tp(*owned.parameter)) {
        add(folder_of(slot), owned, optimizer.state(s, i));
      }
    }
  }
  return slices;
}

nlohmann::json state_json(const RunState& state) {
  return {{"step", state.step},
          {"tokens", state.tokens},
          {"skipped", state.skipped},
          {"seconds", state.seconds},
          {"config", state.config},
          {"tokenizer_hash", state.tokenizer_hash},
          {"bytes_per_token", state.bytes_per_token},
          {"passed_over", state.skipped_sequences},
          {"guard", state.guard},
          {"place", place_json(state.place)},
          {"build", build_json()}};
}

void initialize_run(Ops& ops, const ParameterTable& table, uint64_t seed, const Tensor& params, Optimizer& optimizer) {
  const DType acc = accumulate_type(params.dtype());
  const int64_t size = table.flat_size();
  if (ops.device() == Device::cpu && params.dtype() == acc) return table.initialize(params, seed);
  const Buffer host({size}, acc), exact({size}, acc, ops.device());
  const Tensor host_flat = host.tensor({size}, acc), exact_flat = exact.tensor({size}, acc);
  table.initialize(host_flat, seed);
  copy_blocking(exact_flat, host_flat);
  ops.copy({params, exact_flat});
  optimizer.reset_master(ops, exact_flat);
  ops.synchronize();
}

RunState read_state(const CheckpointReader& reader) {
  try {
    const nlohmann::json& j = reader.state();
    return {.step = j.at("step").get<int64_t>(),
            .tokens = j.at("tokens").get<int64_t>(),
            .skipped = j.at("skipped").get<int64_t>(),
            .seconds = j.at("seconds").get<double>(),
            .config = j.at("config").get<std::string>(),
            .tokenizer_hash = j.at("tokenizer_hash").get<std::string>(),
            .bytes_per_token = j.at("bytes_per_token").get<double>(),
            .skipped_sequences = j.value("passed_over", int64_t{0}),  // absent in older checkpoints
            .guard = j.value("guard", nlohmann::json()),
            .place = j.contains("place") ? place_from_json(j["place"]) : RunPlace{}};
  } catch (const std::exception& error) {
    const std::string text = error.what();  // that of the JSON library begins "[json.exception.NAME.NUMBER] "
    throw UserError(str(reader.path().string(), "/manifest.json: this is not the state of a run: ",
                        text.starts_with('[') ? text.substr(text.find("] ") + 2) : text));
  }
}

void load_params(const CheckpointReader& reader, const ParameterTable& table, const Tensor& params) {
  require_no_others(reader, table);
  for (const OwnedRows& all : all_rows(table)) {
    each_range(table, all, Optimizer::rows_of(params, all), [&](const StoredRange& range, const Tensor& rows) {
      const std::string name = kModelFolder + range.name;
      require_same_shape(reader, name, range);
      fill_from_host(rows, [&](const Tensor& host) { reader.read(name, range.offset, host); });
    });
  }
}

void load_optimizer(const CheckpointReader& reader, const ParameterTable& table, Optimizer& optimizer) {
  for (size_t i = 0; i < optimizer.owned().size(); ++i) {
    const OwnedRows& owned = optimizer.owned()[i];
    if (owned.rows == 0) continue;
    for (size_t s = 0; s < optimizer.slots().size(); ++s) {
      const StateSlot& slot = optimizer.slots()[s];
      const bool stored = reader.has(folder_of(slot) + owned.parameter->stored.front());
      const std::string folder = slot.master && !stored ? kModelFolder : folder_of(slot);
      each_range(table, owned, optimizer.state(s, i), [&](const StoredRange& range, const Tensor& rows) {
        require_optimizer(reader, folder + range.name);
        fill_from_host(rows, [&](const Tensor& host) { reader.read(folder + range.name, range.offset, host); });
      });
    }
  }
}

}  // namespace tmamba
