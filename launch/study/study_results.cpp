#include "launch/study/study_results.h"

#include <algorithm>
#include <cstdio>

#include "data/io/fs.h"
#include "kernels/base/rng.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;

constexpr int64_t kMostBytes = 1 << 20;  // limit of a repeat's file

std::string hexadecimal(uint64_t x) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(x));
  return text;
}

// The effective configuration without the origins of its values.
std::string values_of(const RunConfig& config) {
  RunConfig plain = config;
  plain.origin.clear();
  return to_toml(plain);
}

void add(MeasuredPoint& m, const json& repeat) {
  const json& r = repeat.at("result");
  const auto number = [&](const char* name) { return r.at(name).get<double>(); };
  const bool several = r.at("ranks").get<int>() > 1;
  m.step_ms.values.push_back(number("step_ms"));
  m.work_ms.values.push_back(several ? number("work_ms") : number("step_ms"));
  m.exposed_ms.values.push_back(several ? number("exposed_ms") : 0);
  m.memory_bytes = std::max(m.memory_bytes, number("memory_bytes"));
  m.hosts = r.at("hosts").get<int>(), m.processors = r.at("processors").get<int>();
  m.threads = r.at("threads").get<int>();
  if (r.contains("gemm_gflops")) m.gemm_flops_per_rank = number("gemm_gflops") * 1e9 / number("ranks");
  if (r.contains("peak_source")) m.peak.source = r.at("peak_source").get<std::string>();
  if (r.contains("peak_tflops")) m.peak.flops = number("peak_tflops") * 1e12;
  if (!r.contains("io")) return;
  const json& io = r.at("io");
  m.data_ms.values.push_back(io.at("data_ms").get<double>());
  m.checkpoint_stall_ms.values.push_back(io.at("checkpoint_stall_ms").get<double>());
  m.checkpoint_ms.values.push_back(io.at("checkpoint_ms").get<double>());
  m.checkpoint_bytes = io.at("checkpoint_bytes").get<int64_t>();
}

// The entry of study.seq_len that the point was made from.
int64_t listed_length(const Study& study, const StudyPoint& point) {
  return study.mode == "weak_sequence" ? point.seq_len / point.ranks : point.seq_len;
}

}  // namespace

fs::path point_folder(const Study& study, const StudyPoint& point) { return fs::path(study.dir) / "points" / point.id; }

fs::path repeat_file(const Study& study, const StudyPoint& point, int64_t repeat) {
  char name[32];
  std::snprintf(name, sizeof name, "start-%02lld.json", static_cast<long long>(repeat));
  return point_folder(study, point) / name;
}

std::string fingerprint(const Study& study, const StudyPoint& point) {
  return hexadecimal(stream_id(str(values_of(point.config), "|", point.ranks, "|", study.steps, "|", study.threads, "|",
                                   study.io, "|", study.starter() == "mpirun", "|", study.ranks_per_node)));
}

std::map<int64_t, json> read_repeats(const Study& study, const StudyPoint& point) {
  std::map<int64_t, json> repeats;
  const std::string expected = fingerprint(study, point);
  for (int64_t repeat = 0; repeat < study.repeats; ++repeat) {
    const fs::path file = repeat_file(study, point, repeat);
    std::error_code error;
    if (!fs::exists(file, error)) continue;
    json content;
    try {
      content = json::parse(read_text(file, kMostBytes));
      MeasuredPoint unused;
      add(unused, content);
      if (content.at("fingerprint") != expected) {
        throw UserError(str(file.string(), " was measured under another configuration than the current one of ",
                            study.file, "; set another study.dir (--dir), or delete ", study.dir));
      }
    } catch (const json::exception& wrong) {
      throw UserError(str(file.string(), " is damaged (", wrong.what(), "); delete it to repeat the measurement"));
    }
    repeats.emplace(repeat, std::move(content));
  }
  return repeats;
}

int MeasuredPoint::ranks_per_node() const { return static_cast<int>(ceil_div(point->ranks, hosts)); }

MeasuredStep MeasuredPoint::step() const {
  return {.costs = point->plan.costs,
          .dims = point->plan.dims,
          .transports = point->plan.transports,
          .ranks_per_node = ranks_per_node(),
          .step_seconds = step_ms.median() / 1e3,
          .exposed_seconds = std::max(0.0, exposed_ms.median() / 1e3)};
}

std::vector<MeasuredPoint> measured_points(const Study& study, const StudyGrid& grid) {
  std::vector<MeasuredPoint> points;
  for (const StudyPoint& point : grid.points) {
    MeasuredPoint measured{.point = &point};
    std::vector<double> loads;
    for (const auto& [number, repeat] : read_repeats(study, point)) {
      add(measured, repeat);
      loads.push_back(repeat.at("load").get<double>());
    }
    if (loads.empty()) continue;
    measured.load = median_of(loads);
    points.push_back(std::move(measured));
  }
  return points;
}

double step_flops(const StudyPoint& point) {
  return 3 * model_flops(point.plan.costs, point.plan.dims) * static_cast<double>(point.global_batch);
}

const MeasuredPoint& base_of(const std::vector<MeasuredPoint>& points, const Study& study, const MeasuredPoint& point) {
  const MeasuredPoint* best = nullptr;
  const auto rate = [](const MeasuredPoint& m) { return step_flops(*m.point) / m.step_ms.median(); };
  for (const MeasuredPoint& candidate : points) {
    if (listed_length(study, *candidate.point) != listed_length(study, *point.point)) continue;
    const bool fewer = best == nullptr || candidate.point->ranks < best->point->ranks;
    if (fewer || (candidate.point->ranks == best->point->ranks && rate(candidate) > rate(*best))) best = &candidate;
  }
  TM_CHECK(best != nullptr, "no base for a measured point");
  return *best;
}

}  // namespace tmamba
