#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/checkpoint.h"
#include "launch/command.h"
#include "launch/progress.h"
#include "launch/run_state.h"
#include "launch/trainer.h"
#include "launch/verbs.h"

namespace tmamba {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json summary(const CheckpointReader& reader) {
  int64_t parameters = 0, bytes = 0;
  for (const StoredTensor& tensor : reader.tensors()) {
    int64_t size = 1;
    for (int64_t n : tensor.shape) size *= n;
    if (tensor.name.starts_with("model/")) parameters += size;
    bytes += size * static_cast<int64_t>(size_of(tensor.dtype));
  }
  const RunState state = read_state(reader);
  return {{"path", reader.path().string()}, {"step", reader.step()}, {"tokens", state.tokens},
          {"parameters", parameters},       {"bytes", bytes},        {"tensors", reader.tensors().size()}};
}

int list(const fs::path& dir, bool as_json) {
  const fs::path folder = fs::exists(dir / "checkpoints") ? dir / "checkpoints" : dir;
  if (!fs::is_directory(folder)) throw UserError(str(folder.string(), ": there is no such folder"));
  json all = json::array();
  for (const fs::path& path : list_checkpoints(folder)) all.push_back(summary(CheckpointReader(path)));
  if (as_json) {
    std::printf("%s\n", all.dump(2).c_str());
  } else if (all.empty()) {
    std::printf("%s: no checkpoints\n", folder.c_str());
  }
  for (const json& entry : as_json ? json::array() : all) {
    std::printf("step %-10lld %10s tokens %12s  %s\n", entry["step"].get<long long>(),
                count_text(entry["tokens"].get<double>()).c_str(), bytes_text(entry["bytes"].get<int64_t>()).c_str(),
                entry["path"].get<std::string>().c_str());
  }
  return kDone;
}

int inspect(const fs::path& path, bool as_json) {
  const CheckpointReader reader(path);
  json result = summary(reader);
  json tensors = json::array();
  for (const StoredTensor& t : reader.tensors())
    tensors.push_back({{"name", t.name}, {"dtype", name_of(t.dtype)}, {"shape", t.shape}});
  if (as_json) {
    result["state"] = reader.state();
    result["tensor_list"] = tensors;
    std::printf("%s\n", result.dump(2).c_str());
    return kDone;
  }
  std::printf("%s: step %lld, %s tokens, %s parameters, %s\n\n", path.c_str(), result["step"].get<long long>(),
              count_text(result["tokens"].get<double>()).c_str(),
              count_text(result["parameters"].get<double>()).c_str(),
              bytes_text(result["bytes"].get<int64_t>()).c_str());
  for (const json& t : tensors) {
    std::printf("  %-52s %-9s %s\n", t["name"].get<std::string>().c_str(), t["dtype"].get<std::string>().c_str(),
                t["shape"].dump().c_str());
  }
  std::printf("\nconfiguration:\n%s", indent(read_state(reader).config).c_str());
  std::printf("\n");
  return kDone;
}

int verify(const fs::path& path, bool as_json) {
  const std::vector<std::string> problems = CheckpointReader(path).verify();
  if (as_json) {
    std::printf("%s\n",
                json({{"path", path.string()}, {"whole", problems.empty()}, {"problems", problems}}).dump(2).c_str());
  } else {
    for (const std::string& problem : problems) std::printf("%s\n", problem.c_str());
    std::printf("%s: %s\n", path.c_str(), problems.empty() ? "every checksum is right" : "DAMAGED");
  }
  return problems.empty() ? kDone : kFailed;
}

}  // namespace

int checkpoint_verb(const Arguments& arguments) {
  Command command("checkpoint ls|inspect|verify PATH [options]",
                  "ls       the checkpoints of a run folder\n"
                  "inspect  tensors, step and configuration of one checkpoint\n"
                  "verify   reads everything and compares every checksum; exit code 1 where something is damaged");
  command.positional("action");
  command.positional("path");
  if (!command.parse(arguments)) return kDone;
  const std::string action = command.required("action"), path = command.required("path");
  if (action == "ls") return list(path, command.json());
  if (action == "inspect") return inspect(path, command.json());
  if (action == "verify") return verify(path, command.json());
  throw UserError(str("checkpoint ", action, ": there is no such action; one of ls, inspect, verify"));
}

}  // namespace tmamba
