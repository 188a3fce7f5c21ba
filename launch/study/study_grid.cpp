// From a study to the points that are measured: layouts, their meaning at a number of ranks, and what cannot be.
#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>
#include <sstream>

#include "launch/study/study.h"

namespace tmamba {

namespace {

struct Cut {
  int64_t tp = 1, sp = 1, dp = 1, fold = 1;
  std::string transport = "auto";
  int64_t ranks() const { return tp * sp * dp; }
};

// A cut that may leave an axis to what the others do not take.
struct Rule {
  Cut cut;
  int64_t Cut::*rest = nullptr;
};

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(' '), end = text.find_last_not_of(' ');
  return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

int64_t whole(const std::string& layout, const std::string& text) {
  size_t used = 0;
  int64_t value = 0;
  try {
    value = std::stoll(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used == 0 || used != text.size() || value < 1 || value > (1 << 20)) {
    throw UserError(str("layout \"", layout, "\": \"", text, "\" is neither a number of ranks nor \"rest\""));
  }
  return value;
}

// "sp", or "tp=2, sp=rest, fold=2, transport=gather+sliced". Throws UserError where the text is no layout.
Rule rule_of(const std::string& layout) {
  const std::map<std::string, int64_t Cut::*> axes{
      {"tp", &Cut::tp}, {"sp", &Cut::sp}, {"dp", &Cut::dp}, {"fold", &Cut::fold}};
  if (layout == "dp" || layout == "sp" || layout == "tp") return {.cut = {}, .rest = axes.at(layout)};
  Rule rule;
  bool dp_given = false;
  std::istringstream parts(layout);
  for (std::string part; std::getline(parts, part, ',');) {
    const size_t equals = part.find('=');
    const std::string key = trimmed(part.substr(0, equals)),
                      value = equals == std::string::npos ? "" : trimmed(part.substr(equals + 1));
    if (key == "transport" && !value.empty()) {
      rule.cut.transport = value;
      if (value != "auto") transport_named(value);
    } else if (!axes.contains(key) || value.empty()) {
      throw UserError(str("layout \"", layout, "\": \"", trimmed(part),
                          "\" is no part of a layout; one of dp, sp, tp, auto, grid, or a list of tp=, sp=, dp= (a "
                          "number or rest), fold= and transport="));
    } else if (value == "rest" && key != "fold") {
      if (rule.rest != nullptr) throw UserError(str("layout \"", layout, "\": only one axis can take the rest"));
      rule.rest = axes.at(key);
    } else {
      rule.cut.*axes.at(key) = whole(layout, value);
    }
    dp_given = dp_given || key == "dp";
  }
  if (rule.rest == nullptr && !dp_given) rule.rest = &Cut::dp;
  return rule;
}

// Throws UserError where the rule does not cut so many ranks.
Cut cut_of(const Rule& rule, int64_t ranks) {
  Cut cut = rule.cut;
  if (rule.rest != nullptr) {
    cut.*rule.rest = 1;
    if (ranks % cut.ranks() != 0) throw UserError(str("takes a multiple of ", cut.ranks(), " ranks, not ", ranks));
    cut.*rule.rest = ranks / cut.ranks();
  }
  if (cut.ranks() != ranks) throw UserError(str("takes ", cut.ranks(), " ranks, not ", ranks));
  return cut;
}

int64_t global_batch(const Study& study, int64_t ranks) {
  return study.mode == "weak" ? study.batch * ranks : study.batch;
}

// Sequences of a micro-batch on each data-parallel rank.
int64_t micro_batch(const Study& study, int64_t batch, int64_t dp) {
  if (batch % dp != 0)
    throw UserError(str("a step's ", batch, " sequences cannot be dealt to ", dp, " data-parallel ranks"));
  const int64_t per_rank = batch / dp, most = study.micro_batch == 0 ? per_rank : std::min(study.micro_batch, per_rank);
  if (per_rank % most != 0) {
    throw UserError(str(per_rank, " sequences per data-parallel rank cannot be cut into micro-batches of ", most));
  }
  return most;
}

std::string id_of(const StudyPoint& point, const Cut& cut) {
  char text[96];
  std::snprintf(text, sizeof text, "T%lld-n%04lld-tp%lld-sp%lld-dp%lld-fold%lld-",
                static_cast<long long>(point.seq_len), static_cast<long long>(point.ranks),
                static_cast<long long>(cut.tp), static_cast<long long>(cut.sp), static_cast<long long>(cut.dp),
                static_cast<long long>(cut.fold));
  return text + cut.transport;
}

StudyPoint point_of(const Study& study, const RunConfig& base, const Cut& cut, int64_t ranks, int64_t seq_len,
                    const MachineModel& machine) {
  StudyPoint point{.id = "",
                   .series = {},
                   .ranks = ranks,
                   .seq_len = study.mode == "weak_sequence" ? seq_len * ranks : seq_len,
                   .global_batch = global_batch(study, ranks),
                   .transport = cut.transport,
                   .config = base};
  RunConfig& config = point.config;
  config.data.seq_len = point.seq_len;
  config.parallel.tp = cut.tp, config.parallel.sp = cut.sp, config.parallel.dp = cut.dp;
  config.parallel.fold = cut.fold, config.parallel.transport = cut.transport;
  config.train.global_batch = point.global_batch;
  config.train.micro_batch = micro_batch(study, point.global_batch, cut.dp);
  const MeshShape mesh = mesh_shape(cut.tp, cut.sp, cut.dp, static_cast<int>(ranks));
  point.plan = choose_plan(config, mesh, machine);
  point.id = id_of(point, cut);
  return point;
}

// Every tp x sp x dp; of fold those that differ.
std::vector<Cut> grid_of(int64_t ranks, std::vector<int64_t> folds) {
  std::vector<Cut> cuts;
  for (int64_t tp = 1; tp <= ranks; ++tp) {
    for (int64_t sp = 1; ranks % tp == 0 && sp <= ranks / tp; ++sp) {
      if (ranks / tp % sp != 0) continue;
      for (int64_t fold : sp == 1 ? std::vector<int64_t>{1} : folds) {
        cuts.push_back({.tp = tp, .sp = sp, .dp = ranks / tp / sp, .fold = fold});
      }
    }
  }
  return cuts;
}

}  // namespace

RunConfig study_config(const Study& study) {
  RunConfig config = load_config(study.config, study.set);
  validate(config.model);
  validate_dtype(config);
  if (config.model.vocab == 0) config.model.vocab = 4096;  // of random tokens, as `bench step` takes them
  config.run.plan.clear();
  return config;
}

std::vector<StudyPoint> points_of(const Study& study, const RunConfig& base, const std::string& layout, int64_t ranks,
                                  int64_t seq_len, const MachineModel& machine) {
  const bool all = layout == "grid";
  if (layout != "auto" && !all) return {point_of(study, base, cut_of(rule_of(layout), ranks), ranks, seq_len, machine)};
  std::vector<StudyPoint> points;
  std::string why;
  double least = 0;
  for (const Cut& cut : grid_of(ranks, all ? std::vector<int64_t>{1} : std::vector<int64_t>{1, 2, 4, 8})) {
    try {
      StudyPoint point = point_of(study, base, cut, ranks, seq_len, machine);
      const Prediction predicted = predict(point.plan, machine);
      if (!predicted.fits && base.run.device == "cuda") throw UserError("is predicted not to fit the GPU's memory");
      const double seconds = predicted.time.total();
      if (all || points.empty()) {
        points.push_back(std::move(point));
      } else if (seconds < least) {
        points.front() = std::move(point);
      } else {
        continue;
      }
      least = seconds;
    } catch (const UserError& error) {
      if (why.empty()) why = error.what();
    }
  }
  if (points.empty()) throw UserError(str("no layout of ", ranks, " ranks is possible: ", why));
  return points;
}

StudyGrid study_grid(const Study& study) {
  const RunConfig base = study_config(study);
  const MachineModel machine = machine_of_device(base);
  StudyGrid grid;
  const std::vector<int64_t> lengths = study.seq_len.empty() ? std::vector<int64_t>{base.data.seq_len} : study.seq_len;
  for (const std::string& layout : study.layouts) {
    if (layout == "auto" || layout == "grid") continue;
    try {
      rule_of(layout);
    } catch (const UserError& error) {
      throw UserError(str(study.file, ": study.layouts: ", error.what()));
    }
  }
  for (int64_t seq_len : lengths) {
    for (int64_t ranks : study.ranks) {
      for (const std::string& layout : study.layouts) {
        try {
          for (StudyPoint& point : points_of(study, base, layout, ranks, seq_len, machine)) {
            const auto same = [&](const StudyPoint& other) { return other.id == point.id; };
            const auto known = std::find_if(grid.points.begin(), grid.points.end(), same);
            StudyPoint& of = known == grid.points.end() ? grid.points.emplace_back(std::move(point)) : *known;
            of.series.push_back(layout);
          }
        } catch (const UserError& error) {
          grid.skipped.push_back({layout, ranks, seq_len, error.what()});
        }
      }
    }
  }
  if (!grid.points.empty()) return grid;
  std::string reasons;
  for (const SkippedPoint& s : grid.skipped) {
    reasons +=
        str("\n  ", s.series, " on ", s.ranks, s.ranks == 1 ? " rank" : " ranks", ", T=", s.seq_len, ": ", s.why);
  }
  throw UserError(str(study.file, ": no layout of this study can run:", reasons));
}

}  // namespace tmamba
