#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/checkpoint/checkpoint_folder.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/state/checkpoint_tools.h"
#include "launch/state/run_state.h"
#include "launch/verbs.h"

namespace tmamba {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json summary(const CheckpointReader& reader) {
  int64_t parameters = 0;
  for (const StoredTensor& tensor : reader.tensors()) {
    int64_t size = 1;
    for (int64_t n : tensor.shape) size *= n;
    if (tensor.name.starts_with("model/")) parameters += size;
  }
  const RunState state = read_state(reader);
  return {{"path", reader.path().string()}, {"step", reader.step()},   {"tokens", state.tokens},
          {"parameters", parameters},       {"bytes", reader.bytes()}, {"tensors", reader.tensors().size()}};
}

// summary(), or the problem found when the checkpoint is opened.
json entry_of(const fs::path& path) {
  json entry = {{"path", path.string()}, {"damaged", false}};
  const auto step = step_of_name(path.filename().string());
  if (step) entry["step"] = *step;
  try {
    const CheckpointReader reader(path);
    if (const std::string wrong = misplaced(reader); !wrong.empty()) throw DamagedCheckpoint(wrong);
    entry.update(summary(reader));
  } catch (const DamagedCheckpoint& error) {
    entry["damaged"] = true, entry["problem"] = error.what();
  } catch (const Error& error) {  // for example of another format version
    entry["problem"] = error.what();
  }
  return entry;
}

void print_entry(const json& entry) {
  const std::string step = entry.contains("step") ? std::to_string(entry["step"].get<int64_t>()) : "?";
  if (entry.contains("problem")) {
    std::printf("step %-10s %s: %s\n", step.c_str(), entry["damaged"].get<bool>() ? "DAMAGED" : "cannot be read",
                entry["problem"].get<std::string>().c_str());
    return;
  }
  std::printf("step %-10s %10s tokens %12s  %s\n", step.c_str(), count_text(entry["tokens"].get<double>()).c_str(),
              bytes_text(entry["bytes"].get<int64_t>()).c_str(), entry["path"].get<std::string>().c_str());
}

int list(const fs::path& dir, bool as_json) {
  const bool one = fs::exists(dir / "manifest.json") || step_of_name(fs::absolute(dir).filename().string());
  const fs::path folder = checkpoints_folder(dir);
  json all = json::array();
  for (const fs::path& path : one ? std::vector{dir} : list_checkpoints(folder)) all.push_back(entry_of(path));
  if (as_json) {
    std::printf("%s\n", all.dump(2).c_str());
  } else if (all.empty()) {
    std::printf("%s: no checkpoints\n", folder.c_str());
  } else {
    for (const json& entry : all) print_entry(entry);
  }
  const bool problems =
      std::any_of(all.begin(), all.end(), [](const json& entry) { return entry.contains("problem"); });
  return problems ? kFailed : kDone;
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
  std::printf("%s: step %lld, %s tokens, %s parameters, %s\n", path.c_str(), result["step"].get<long long>(),
              count_text(result["tokens"].get<double>()).c_str(),
              count_text(result["parameters"].get<double>()).c_str(),
              bytes_text(result["bytes"].get<int64_t>()).c_str());
  if (const json build = reader.state().value("build", json()); build.is_object()) {
    const auto field = [&](const char* name) {
      const auto found = build.find(name);
      return found != build.end() && found->is_string() ? found->get<std::string>() : "?";
    };
    std::printf("written by transmamba %s, commit %s\n", field("version").c_str(), field("commit").c_str());
  }
  std::printf("\n");
  for (const json& t : tensors) {
    std::printf("  %-52s %-9s %s\n", t["name"].get<std::string>().c_str(), t["dtype"].get<std::string>().c_str(),
                t["shape"].dump().c_str());
  }
  std::printf("\nconfiguration:\n%s", indent(read_state(reader).config).c_str());
  std::printf("\n");
  return kDone;
}

int verify(const fs::path& path, bool as_json) {
  const CheckpointReader reader(path);
  std::vector<std::string> problems = reader.verify();
  if (const std::string wrong = misplaced(reader); !wrong.empty()) problems.push_back(wrong);
  if (as_json) {
    std::printf("%s\n",
                json({{"path", path.string()}, {"whole", problems.empty()}, {"problems", problems}}).dump(2).c_str());
  } else {
    for (const std::string& problem : problems) std::printf("%s\n", problem.c_str());
    std::printf("%s: %s\n", path.c_str(), problems.empty() ? "all checksums match" : "DAMAGED");
  }
  return problems.empty() ? kDone : kFailed;
}

}  // namespace

int checkpoint_verb(const Arguments& arguments) {
  Command command("checkpoint");
  if (!command.parse(arguments)) return kDone;
  const std::string action = command.get<std::string>("action"), given = command.get<std::string>("path");
  const bool as_json = command.json();
  const std::string second = command.has("second") ? command.get<std::string>("second") : "";
  const bool reads_one =
      action == "inspect" || action == "verify" || action == "diff" || action == "export" || action == "reshard";
  const fs::path path = reads_one ? checkpoint_at(given) : fs::path(given);
  if (action == "ls") return list(path, as_json);
  if (action == "inspect") return inspect(path, as_json);
  if (action == "verify") return verify(path, as_json);
  if (action == "diff") return checkpoint_diff(path, checkpoint_at(second), as_json);
  if (action == "export") return checkpoint_export(path, second, command.has("weights"), as_json);
  if (action == "import") return checkpoint_import(path, second, as_json);
  if (action == "reshard") return checkpoint_reshard(path, second, command.get<int64_t>("writers"), as_json);
  const SaveOptions keep{.keep = command.get<int64_t>("keep"), .keep_every = command.get<int64_t>("keep-every")};
  return checkpoint_prune(path, keep, command.has("dry-run"), as_json);
}

}  // namespace tmamba
