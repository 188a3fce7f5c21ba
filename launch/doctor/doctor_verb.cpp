// transmamba doctor: checks the placement and the interconnect of a job before it trains.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "dist/comm/collective_guard.h"
#include "dist/world/device_world.h"
#include "launch/bench/comm_sweep.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/doctor/doctor.h"
#include "launch/run/rank_agreement.h"
#include "launch/verbs.h"

namespace tmamba {

namespace {

using nlohmann::json;

std::vector<json> of_all(World& world, const json& own) {
  std::vector<json> all;
  for (const std::string& text : CollectiveGuard(world.comm()).gather(own.dump())) all.push_back(json::parse(text));
  return all;
}

json settings_json(const std::vector<json>& settings) {
  json of_first = settings.front();
  json by_rank = json::array();
  for (const json& s : settings) by_rank.push_back(s.at("environment"));
  of_first["environment_of_ranks"] = std::move(by_rank);
  return of_first;
}

json sweep_all(World& world, Device device, double seconds) {
  if (world.size() == 1) return json::array();
  const auto comm = make_device_communicator(world, device);
  return sweep(world, *comm, DType::f32, device,
               {.min_bytes = std::max<int64_t>(1024, 16 * world.size()),
                .max_bytes = largest_sweep_bytes(device),
                .factor = 16,
                .names = {"all_reduce", "all_gather", "send_recv"},
                .seconds = seconds / 3});
}

std::string settings_text(const json& settings) {
  std::string text = str("MPI    ", settings.at("mpi").get<std::string>(), "\n");
  const std::string nccl = settings.at("nccl");
  text += str("NCCL   ", nccl.empty() ? "not in this build" : nccl, "\n");
  for (const char* group : {"mpi_settings", "environment"}) {
    for (const auto& [name, value] : settings.at(group).items()) {
      text += str("       ", name, " = ", value.get<std::string>(), "\n");
    }
  }
  return text;
}

std::string files_text(const json& files) {
  const auto number = [&](const char* name, int digits) { return fixed(files.at(name).get<double>(), digits); };
  return str(files.at("path").get<std::string>(), " (", files.at("type").get<std::string>(),
             "): ", bytes_text(files.at("free_bytes").get<int64_t>()), " and ",
             files.at("free_inodes").is_null() ? "any number of" : count_text(files.at("free_inodes").get<double>()),
             " inodes free; fsync of a small file ", number("fsync_ms", 2), " ms, write ", number("write_mb_per_s", 0),
             " MB/s, rename over a file ", number("rename_ms", 2), " ms, ",
             files.at("visible_ms").is_null() ? "not visible to all ranks"
                                              : "visible to all ranks after " + number("visible_ms", 1) + " ms",
             "; locks ", files.at("locks").is_null() ? "not tested" : files.at("locks").get<std::string>(), "\n");
}

json findings_json(const std::vector<Finding>& findings) {
  json rows = json::array();
  for (const Finding& f : findings) rows.push_back({{"level", f.problem ? "problem" : "note"}, {"text", f.text}});
  return rows;
}

// The device to sweep. If ranks share or lack a GPU, that is reported as a problem and the sweep runs on CPUs.
Device device_to_sweep(World& world, const std::string& wanted, std::vector<Finding>& findings) {
  if (wanted == "cpu") return Device::cpu;
  try {
    select_device(world, Device::cuda);
    return Device::cuda;
  } catch (const UserError& error) {  // thrown on all ranks
    findings.push_back({true, error.what()});
    return Device::cpu;
  }
}

int examine(World& world, const Command& command) {
  const std::string wanted = command.get<std::string>("device");
  const double seconds = command.get<double>("seconds");
  const std::vector<json> ranks = of_all(world, rank_facts(world)), settings = of_all(world, rank_settings());
  bool any_gpu = false;
  for (const json& rank : ranks) any_gpu = any_gpu || !rank.at("gpu").is_null();
  const bool gpus = wanted == "cuda" || (wanted == "auto" && any_gpu);
  DoctorResults found{
      .ranks = ranks, .placement = placement_findings(ranks, gpus), .settings = settings_findings(settings)};
  const Device device = device_to_sweep(world, gpus ? "cuda" : "cpu", found.placement);
  found.device = device;
  found.sweep = json::array();
  if (seconds > 0) found.sweep = sweep_all(world, device, seconds);
  if (!found.sweep.empty() && device == Device::cpu) found.copy_gb_per_s = copy_gb_per_s(world);
  if (command.has("folder")) {
    found.files = probe_files(world, command.get<std::string>("folder"), found.files_findings);
  }
  std::vector<Finding> findings = found.placement;
  for (const auto* more : {&found.settings, &found.files_findings}) {
    findings.insert(findings.end(), more->begin(), more->end());
  }
  json result = {{"ranks", ranks},
                 {"settings", settings_json(settings)},
                 {"device", device == Device::cuda ? "cuda" : "cpu"},
                 {"sweep", found.sweep},
                 {"files", found.files}};
  result["findings"] = findings_json(findings);
  bool problem = false;
  for (const Finding& f : findings) problem = problem || f.problem;
  // Only rank 0 has the findings about the file system.
  int32_t code = problem ? kFailed : kDone;
  world.comm().broadcast(Tensor(&code, {1}, DType::i32), 0).wait();
  if (world.rank() != 0) return code;
  result["verdicts"] = verdicts(found);
  if (command.json()) {
    std::printf("%s\n", result.dump(2).c_str());
    return code;
  }
  std::printf("%s\n%s\n", placement_table(ranks).c_str(), settings_text(result["settings"]).c_str());
  if (!result["sweep"].empty()) {
    std::printf("collectives over all ranks, %s\n%s\n", result["device"].get<std::string>().c_str(),
                sweep_text(result["sweep"]).c_str());
  }
  if (!result["files"].is_null()) std::printf("%s\n", files_text(result["files"]).c_str());
  std::printf("%s\n", verdicts_text(result["verdicts"]).c_str());
  for (const Finding& f : findings) std::printf("%s: %s\n", f.problem ? "PROBLEM" : "note", f.text.c_str());
  if (!problem) std::printf("no problems\n");
  return code;
}

}  // namespace

int doctor_verb(const Arguments& arguments) {
  return run_main([&](World& world) {
    Command command("doctor");
    // Other differences between ranks are its findings.
    bool runs = false;
    require_agreement(world.comm(), [&](RankFacts& facts) {
      facts.must_agree("verb", "doctor");
      runs = command.parse(arguments, world.rank() == 0);
      facts.add(command);
    });
    return runs ? examine(world, command) : static_cast<int>(kDone);
  });
}

}  // namespace tmamba
