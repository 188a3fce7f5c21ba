// Compares what was measured with what the hardware should give.
#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "kernels/base/clock.h"
#include "launch/cli/format.h"
#include "launch/doctor/doctor.h"

namespace tmamba {

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr double kGoodFraction = 0.5;  // of what a link can carry; a tuned collective reaches more

struct Link {
  double gb_per_s = 0;  // of one rank, per direction; 0: unknown
  std::string what;
};

// NVLink per direction, half of the total that the data sheets state. GPUs without it exchange over PCIe.
constexpr auto kNvlink = std::to_array<std::pair<const char*, double>>({{"NVIDIA A100-SXM4-40GB", 300},
                                                                        {"NVIDIA A100-SXM4-80GB", 300},
                                                                        {"NVIDIA H100 80GB HBM3", 450},
                                                                        {"NVIDIA H200", 450},
                                                                        {"NVIDIA B200", 900}});

Link gpu_link(const json& gpu) {
  const std::string name = gpu.at("name");
  for (const auto& [known, rate] : kNvlink) {
    if (name == known) return {rate, "NVLink of " + name};
  }
  return {gpu.at("pcie_gb_per_s").get<double>(), "PCIe of " + name};
}

// What connects the ranks: the slowest adapter between hosts; on one host NVLink, PCIe, or copies in memory.
Link link_between(const std::vector<json>& ranks, Device device, double copy_gb_per_s) {
  std::set<std::string> hosts;
  Link slowest;
  const auto consider = [&](const Link& link, bool first) {
    if (first || link.gb_per_s < slowest.gb_per_s) slowest = link;
  };
  for (const json& rank : ranks) hosts.insert(rank.at("host").get<std::string>());
  // Shared memory holds a message once between its sender and its receiver: two copies.
  if (hosts.size() == 1 && device == Device::cpu) return {copy_gb_per_s / 2, "two copies in memory"};
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (hosts.size() == 1) {
      consider(gpu_link(ranks[i].at("gpu")), i == 0);
    } else {
      const double rate = ranks[i].at("nic_gbit_per_s").get<double>();
      consider({rate / 8, str("adapter ", ranks[i].at("nic").get<std::string>(), " at ", fixed(rate, 0), " Gbit/s")},
               i == 0);
    }
  }
  return slowest;
}

json row(const std::string& check, const char* verdict, const std::string& text) {
  return {{"check", check}, {"verdict", verdict}, {"text", text}};
}

// "wrong" if there is a problem among the findings.
json row_of(const std::string& check, const std::vector<Finding>& findings) {
  const bool wrong = std::any_of(findings.begin(), findings.end(), [](const Finding& f) { return f.problem; });
  std::string text;
  for (const Finding& f : findings) text += (text.empty() ? "" : "; ") + f.text;
  return row(check, wrong ? "wrong" : "ok", text.empty() ? "nothing found" : text);
}

struct FileLimit {
  const char* key;
  const char* what;
  const char* unit;
  double limit;
  bool at_least;
};

// What a local SSD and a shared file system of a cluster give while they are not overloaded.
constexpr auto kFileLimits = std::to_array<FileLimit>({{"fsync_ms", "fsync of a small file", "ms", 50, false},
                                                       {"write_mb_per_s", "write", "MB/s", 200, true},
                                                       {"rename_ms", "rename over a file", "ms", 100, false},
                                                       {"visible_ms", "visible to all ranks", "ms", 1000, false}});

}  // namespace

double copy_gb_per_s(World& world) {
  constexpr size_t kBytes = size_t{64} << 20;
  const std::vector<char> from(kBytes, 1);
  std::vector<char> to(kBytes, 0);
  double best = 0;
  for (int i = 0; i < 3; ++i) {
    world.comm().barrier();
    const auto begin = Clock::now();
    std::memcpy(to.data(), from.data(), kBytes);
    best = std::max(best, static_cast<double>(kBytes) / 1e6 / ms_since(begin));
  }
  world.comm().all_reduce(Tensor(&best, {1}, DType::f64), ReduceOp::min).wait();
  return best;
}

json verdicts(const DoctorResults& results) {
  json rows{row_of("placement", results.placement), row_of("settings", results.settings)};
  const Link link = results.sweep.empty() ? Link{} : link_between(results.ranks, results.device, results.copy_gb_per_s);
  for (size_t i = 0; i < results.sweep.size(); ++i) {
    const json& at = results.sweep[i];
    const std::string exchange = at.at("exchange");
    if (i + 1 < results.sweep.size() && results.sweep[i + 1].at("exchange") == exchange) continue;  // the largest size
    const double rate = at.at("bus_gb_per_s");
    const char* verdict = link.gb_per_s == 0 ? "unknown" : rate < kGoodFraction * link.gb_per_s ? "slow" : "ok";
    rows.push_back(row(exchange, verdict,
                       str(fixed(rate, 2), " GB/s of bus bandwidth; ",
                           link.gb_per_s == 0 ? str("the speed of ", link.what, " is not known")
                                              : str(link.what, " can give ", fixed(link.gb_per_s, 2), " GB/s"))));
  }
  if (results.files.is_null()) return rows;
  for (const FileLimit& limit : kFileLimits) {
    if (results.files.at(limit.key).is_null()) continue;  // a finding says why
    const double value = results.files.at(limit.key);
    const bool good = limit.at_least ? value >= limit.limit : value <= limit.limit;
    rows.push_back(row(limit.what, good ? "ok" : "slow",
                       str(fixed(value, 1), " ", limit.unit, "; at ", limit.at_least ? "least " : "most ",
                           fixed(limit.limit, 0), " expected")));
  }
  rows.push_back(row_of("file system", results.files_findings));
  return rows;
}

std::string verdicts_text(const json& rows) {
  std::string text;
  for (const json& r : rows) {
    std::string verdict = r.at("verdict"), check = r.at("check");
    verdict.resize(std::max<size_t>(verdict.size(), 7), ' ');
    check.resize(std::max<size_t>(check.size(), 22), ' ');
    text += str(verdict, " ", check, " ", r.at("text").get<std::string>(), "\n");
  }
  return text;
}

}  // namespace tmamba
