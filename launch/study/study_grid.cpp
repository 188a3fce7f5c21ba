// Expands a study into its points: parses the layouts and resolves each for every number of ranks and sequence length.
#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>
#include <sstream>

#include "launch/config/batch_split.h"
#include "launch/study/study.h"

namespace tmamba {

namespace {

struct AxisSizes {
  int64_t tp = 1, sp = 1, dp = 1, fold = 1;
  std::string transport = "auto";
  int64_t ranks() const { return tp * sp * dp; }
};

// Sizes of the axes; `rest`, if set, is the axis that takes the ranks the others leave.
struct LayoutRule {
  AxisSizes sizes;
  int64_t AxisSizes::*rest = nullptr;
};

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(' '), end = text.find_last_not_of(' ');
  return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

int64_t size_in(const std::string& layout, const std::string& text) {
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

// "sp", or "tp=2, sp=rest, fold=2, transport=gather+sliced". Throws UserError if the text is not a layout.
LayoutRule rule_of(const std::string& layout) {
  const std::map<std::string, int64_t AxisSizes::*> axes{
      {"tp", &AxisSizes::tp}, {"sp", &AxisSizes::sp}, {"dp", &AxisSizes::dp}, {"fold", &AxisSizes::fold}};
  if (layout == "dp" || layout == "sp" || layout == "tp") return {.sizes = {}, .rest = axes.at(layout)};
  LayoutRule rule;
  bool dp_given = false;
  std::istringstream parts(layout);
  for (std::string part; std::getline(parts, part, ',');) {
    const size_t equals = part.find('=');
    const std::string key = trimmed(part.substr(0, equals)),
                      value = equals == std::string::npos ? "" : trimmed(part.substr(equals + 1));
    if (key == "transport" && !value.empty()) {
      rule.sizes.transport = value;
      if (value != "auto") transport_named(value);
    } else if (!axes.contains(key) || value.empty()) {
      throw UserError(str("layout \"", layout, "\": \"", trimmed(part),
                          "\" is not a layout; valid: dp, sp, tp, auto, grid, or a list of tp=, sp=, dp= (a "
                          "number or rest), fold= and transport="));
    } else if (value == "rest" && key != "fold") {
      if (rule.rest != nullptr) throw UserError(str("layout \"", layout, "\": only one axis can be \"rest\""));
      rule.rest = axes.at(key);
    } else {
      rule.sizes.*axes.at(key) = size_in(layout, value);
    }
    dp_given = dp_given || key == "dp";
  }
  if (rule.rest == nullptr && !dp_given) rule.rest = &AxisSizes::dp;
  return rule;
}

// Throws UserError if the rule cannot be applied to `ranks` ranks.
AxisSizes sizes_of(const LayoutRule& rule, int64_t ranks) {
  AxisSizes sizes = rule.sizes;
  if (rule.rest != nullptr) {
    sizes.*rule.rest = 1;
    if (ranks % sizes.ranks() != 0) throw UserError(str(ranks, " ranks are not a multiple of ", sizes.ranks()));
    sizes.*rule.rest = ranks / sizes.ranks();
  }
  if (sizes.ranks() != ranks) throw UserError(str("the layout has ", sizes.ranks(), " ranks, not ", ranks));
  return sizes;
}

int64_t global_batch(const Study& study, int64_t ranks) {
  return study.mode == "weak" ? study.batch * ranks : study.batch;
}

std::string id_of(const StudyPoint& point, const AxisSizes& sizes) {
  char text[96];
  std::snprintf(text, sizeof text, "T%lld-n%04lld-tp%lld-sp%lld-dp%lld-fold%lld-",
                static_cast<long long>(point.seq_len), static_cast<long long>(point.ranks),
                static_cast<long long>(sizes.tp), static_cast<long long>(sizes.sp), static_cast<long long>(sizes.dp),
                static_cast<long long>(sizes.fold));
  return text + sizes.transport;
}

StudyPoint point_of(const Study& study, const RunConfig& base, const AxisSizes& sizes, int64_t ranks, int64_t seq_len,
                    const MachineModel& machine) {
  StudyPoint point{.id = "",
                   .series = {},
                   .ranks = ranks,
                   .seq_len = study.mode == "weak_sequence" ? seq_len * ranks : seq_len,
                   .global_batch = global_batch(study, ranks),
                   .transport = sizes.transport,
                   .config = base};
  RunConfig& config = point.config;
  config.data.seq_len = point.seq_len;
  config.parallel.tp = sizes.tp, config.parallel.sp = sizes.sp, config.parallel.dp = sizes.dp;
  config.parallel.fold = sizes.fold, config.parallel.transport = sizes.transport;
  config.train.global_batch = point.global_batch;
  // study.micro_batch is an upper bound: a rank with fewer sequences runs them as one micro-batch.
  config.train.micro_batch = std::min(study.micro_batch, point.global_batch / sizes.dp);
  config.train.micro_batch = split_batch(config.train, sizes.dp).micro_batch;
  const MeshShape mesh = mesh_shape(sizes.tp, sizes.sp, sizes.dp, static_cast<int>(ranks));
  point.plan = choose_plan(config, mesh, machine);
  point.id = id_of(point, sizes);
  return point;
}

// Every tp x sp x dp, with each fold where sp > 1 (fold has no effect otherwise).
std::vector<AxisSizes> grid_of(int64_t ranks, const std::vector<int64_t>& folds) {
  std::vector<AxisSizes> grid;
  for (int64_t tp = 1; tp <= ranks; ++tp) {
    for (int64_t sp = 1; ranks % tp == 0 && sp <= ranks / tp; ++sp) {
      if (ranks / tp % sp != 0) continue;
      for (int64_t fold : sp == 1 ? std::vector<int64_t>{1} : folds) {
        grid.push_back({.tp = tp, .sp = sp, .dp = ranks / tp / sp, .fold = fold});
      }
    }
  }
  return grid;
}

}  // namespace

RunConfig study_config(const Study& study) {
  RunConfig config = load_config(study.config, study.set);
  validate(config.model);
  validate_dtype(config);
  if (config.model.vocab == 0) config.model.vocab = 4096;  // `bench step` uses the same default for its random tokens
  config.run.plan.clear();
  return config;
}

std::vector<StudyPoint> points_of(const Study& study, const RunConfig& base, const std::string& layout, int64_t ranks,
                                  int64_t seq_len, const MachineModel& machine) {
  const bool all = layout == "grid";
  if (layout != "auto" && !all)
    return {point_of(study, base, sizes_of(rule_of(layout), ranks), ranks, seq_len, machine)};
  std::vector<StudyPoint> points;
  std::string why;
  double least = 0;
  for (const AxisSizes& sizes : grid_of(ranks, all ? std::vector<int64_t>{1} : std::vector<int64_t>{1, 2, 4, 8})) {
    try {
      StudyPoint point = point_of(study, base, sizes, ranks, seq_len, machine);
      const Prediction predicted = predict(point.plan, machine);
      if (!predicted.fits && base.run.device == Device::cuda) throw UserError("predicted not to fit the GPU's memory");
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
