#include "launch/report/report.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/base/check.h"
#include "launch/cli/format.h"
#include "launch/cli/wall_time.h"
#include "launch/report/html.h"
#include "launch/train/comm_profile.h"
#include "launch/train/op_profile.h"

namespace tmamba {

namespace {

std::string percent(double part, double whole) { return whole > 0 ? fixed(100 * part / whole, 1) + " %" : "-"; }

// "2026-11-22 03:31:02" with a no-break space.
std::string clock_text(double seconds) {
  std::string text = utc_text(seconds).substr(0, 19);
  text.replace(10, 1, "\xC2\xA0");
  return text;
}

std::string number(double x, int digits) { return std::isfinite(x) ? fixed(x, digits) : "-"; }

std::string tile(const std::string& value, const std::string& what) {
  return "<div class=\"tile\"><b>" + html_escaped(value) + "</b><span>" + html_escaped(what) + "</span></div>\n";
}

// The last recorded value of evaluations, with the tokens that it is over: values over different data do not compare.
std::string last_of(const std::vector<PauseRecord>& pauses, double PauseRecord::*member, int digits) {
  for (auto pause = pauses.rbegin(); pause != pauses.rend(); ++pause) {
    if (!std::isfinite((*pause).*member)) continue;
    const std::string over =
        std::isfinite(pause->valid_tokens) ? str(" (", count_text(pause->valid_tokens), " tokens)") : "";
    return number((*pause).*member, digits) + over;
  }
  return "-";
}

// Of the kept steps that recorded one.
double mean_mfu(const RunRecord& run) {
  double seconds = 0, weighted = 0;
  for (const StepRecord& s : run.kept.steps) {
    if (!std::isfinite(s.mfu) || !std::isfinite(s.step_ms)) continue;
    seconds += s.step_ms, weighted += s.mfu * s.step_ms;
  }
  return seconds > 0 ? weighted / seconds : kNotRecorded;
}

// Tokens of all kept steps over their time, not a mean of rates.
double mean_tokens_per_s(const RunRecord& run) {
  double tokens = 0, seconds = 0;
  for (const StepRecord& s : run.kept.steps) {
    if (!std::isfinite(s.tokens_per_s) || !std::isfinite(s.step_ms)) continue;
    tokens += s.tokens_per_s * 1e-3 * s.step_ms;
    seconds += 1e-3 * s.step_ms;
  }
  return seconds > 0 ? tokens / seconds : kNotRecorded;
}

std::string state_of(const RunRecord& record, const Goodput& goodput) {
  if (goodput.attempts.empty()) return "not started";
  const std::string& end = goodput.attempts.back().end;
  const std::string why = shortened(goodput.attempts.back().why, 200);
  return end == "done"                       ? "done"
         : end == "stop"                     ? "stopped; can be resumed"
         : end == "time_up"                  ? why
         : end == "failed"                   ? "failed: " + why
         : end == "hang"                     ? "hang: " + why
         : end == "no_progress"              ? "given up: attempts made no progress"
         : end == "killed"                   ? "terminated unexpectedly"
         : record.lease == LeaseState::alive ? "running"
                                             : "running, or terminated unexpectedly";
}

// Version and commit of the program that made the latest attempt; "-" before these were recorded.
std::string program_of(const RunRecord& record) {
  for (auto event = record.events.rbegin(); event != record.events.rend(); ++event) {
    const auto build = event->details.find("build");
    if (build == event->details.end() || !build->is_object()) continue;
    const auto field = [&](const char* name) {
      const auto found = build->find(name);
      return found != build->end() && found->is_string() ? shortened(found->get<std::string>(), 40) : "?";
    };
    return field("version") + " (" + field("commit") + ")";
  }
  return "-";
}

// The overview of a run, shown as a table row or as tiles: (label, value).
std::vector<std::pair<std::string, std::string>> facts(const ReportRun& run) {
  const MetricRecords& m = run.record.kept;
  const StepRecord last = m.steps.empty() ? StepRecord{} : m.steps.back();
  const double tokens_per_s = mean_tokens_per_s(run.record);
  return {{"state", state_of(run.record, run.goodput)},
          {"steps", str(last.step)},
          {"tokens", std::isfinite(last.tokens) ? count_text(last.tokens) : "-"},
          {"loss, last step", number(last.loss, 4)},
          {"held-out loss", last_of(m.pauses, &PauseRecord::valid_loss, 4)},
          {"held-out bits/byte", last_of(m.pauses, &PauseRecord::valid_bits_per_byte, 3)},
          {"tokens/s", std::isfinite(tokens_per_s) ? count_text(tokens_per_s) : "-"},
          {"MFU, %", number(100 * mean_mfu(run.record), 1)},
          {"wall time", duration(run.goodput.wall_seconds)},
          {"goodput", percent(run.goodput.of(Spent::training), run.goodput.wall_seconds)},
          {"attempts", str(run.goodput.attempts.size())},
          {"transmamba", program_of(run.record)}};
}

std::string overview(const std::vector<ReportRun>& runs) {
  std::string out;
  if (runs.size() == 1) {
    for (const auto& [what, value] : facts(runs.front())) {
      if (what != "state") out += tile(value, what);
    }
    return "<div class=\"tiles\">\n" + out + "</div>\n";
  }
  std::vector<std::string> header{"run"};
  std::vector<std::vector<std::string>> rows;
  for (size_t i = 0; i < runs.size(); ++i) {
    std::vector<std::string> row{
        str("<span class=\"key c", i % kChartColours, "\"></span>", html_escaped(runs[i].name))};
    for (const auto& [what, value] : facts(runs[i])) {
      if (i == 0) header.push_back(html_escaped(what));
      row.push_back(html_escaped(value));
    }
    rows.push_back(std::move(row));
  }
  return html_table(header, rows);
}

std::string problems_of(const std::vector<ReportRun>& runs) {
  std::string list;
  for (const ReportRun& run : runs) {
    for (const std::string& problem : run.record.problems) {
      list += "<li>" + html_escaped((runs.size() > 1 ? run.name + "/" : "") + shortened(problem, 300)) + "</li>\n";
    }
    if (!run.goodput.complete) {
      list += "<li>" + html_escaped(run.name) +
              ": lines without a time, written by an older version of the program, "
              "are not counted in the times below</li>\n";
    }
  }
  if (list.empty()) return "";
  return "<div class=\"card warn\"><b>Some records could not be read</b><ul>\n" + list + "</ul></div>\n";
}

std::string attempts_table(const Goodput& goodput) {
  std::vector<std::vector<std::string>> rows;
  for (size_t i = 0; i < goodput.attempts.size(); ++i) {
    const AttemptRecord& s = goodput.attempts[i];
    const auto of = [&](Spent spent) { return duration(s.seconds[static_cast<size_t>(spent)]); };
    rows.push_back({str(i + 1, "\xC2\xA0\xC2\xA0", clock_text(s.launched)), str(s.ranks),
                    str(s.from_step, "&#8211;", s.to_step), of(Spent::waiting), of(Spent::startup), of(Spent::training),
                    str(s.lost_steps), of(Spent::lost), html_escaped(s.end)});
  }
  constexpr size_t kMostRows = 100;
  std::string note;
  if (rows.size() > kMostRows) {
    note = str("<p class=\"soft\">", rows.size() - kMostRows, " earlier attempts are not shown.</p>\n");
    rows.erase(rows.begin(), rows.end() - kMostRows);
  }
  return html_table({"attempt, launched (UTC)", "ranks", "steps", "waiting", "startup", "training", "lost steps",
                     "lost", "end"},
                    rows) +
         note;
}

std::string time_section(const std::vector<ReportRun>& runs) {
  std::string sums, tables;
  for (const ReportRun& run : runs) {
    const std::string name = runs.size() > 1 ? run.name + ": " : "";
    sums += "<p>" + html_escaped(name + goodput_text(run.goodput)) + ".</p>\n";
    if (runs.size() > 1) tables += "<h3>" + html_escaped(run.name) + "</h3>\n";
    tables += attempts_table(run.goodput);
  }
  return "<div class=\"grid\"><div class=\"card\">" + goodput_chart(runs) + "</div>\n<div>" + sums +
         "<p class=\"soft\">Goodput is the training time over the wall time. lost: steps repeated after a restart, or "
         "skipped; startup: from the launch to the first step; checkpoint: time for which saves blocked training; "
         "evaluation: validation and samples; waiting: from the end of an attempt to the launch of the next; other: "
         "logging and checks. The parts sum to the wall time.</p></div></div>\n" +
         tables;
}

// All fields of an event except its time, kind and step.
std::string details_of(const EventRecord& event) {
  std::string text;
  for (const auto& [key, value] : event.details.items()) {
    if (key == "time" || key == "event" || key == "step") continue;
    text += (text.empty() ? "" : ", ") + key + " " +
            (value.is_string()         ? value.get<std::string>()
             : value.is_number_float() ? tick_text(value.get<double>(), 4)
                                       : value.dump());
  }
  return shortened(text, 240);
}

std::string checkpoints_text(const RunRecord& run) {
  double count = 0, seconds = 0, bytes = 0, stall = 0;
  for (const EventRecord& event : run.events) {
    if (event.kind != "checkpoint") continue;
    const auto of = [&](const char* key) {
      const auto found = event.details.find(key);
      return found != event.details.end() && found->is_number() ? found->get<double>() : 0;
    };
    ++count, seconds += of("seconds"), bytes += of("bytes"), stall += of("stall_seconds");
  }
  if (count == 0) return "No checkpoint was saved.";
  return str(static_cast<int64_t>(count), " checkpoints of ", bytes_text(static_cast<int64_t>(bytes / count)), ", ",
             fixed(seconds / count, 2), " s each; each save blocked training for ", fixed(1e3 * stall / count, 1),
             " ms.");
}

std::string events_section(const std::vector<ReportRun>& runs, size_t most) {
  std::string out;
  for (const ReportRun& run : runs) {
    std::vector<std::vector<std::string>> rows;
    for (const EventRecord& event : run.record.events) {
      if (event.kind == "checkpoint") continue;  // summarized by checkpoints_text()
      rows.push_back({clock_text(event.time), event.step() < 0 ? "" : str(event.step()),
                      "<b>" + html_escaped(event.kind) + "</b> " + html_escaped(details_of(event))});
    }
    const size_t limit = std::max<size_t>(4, most / runs.size());
    std::string note;
    if (rows.size() > limit) {
      note = str("<p class=\"soft\">", rows.size() - limit, " earlier events are not shown.</p>\n");
      rows.erase(rows.begin(), rows.end() - static_cast<std::ptrdiff_t>(limit));
    }
    for (auto& row : rows) row[2] = "<span style=\"display:block;text-align:left\">" + row[2] + "</span>";
    if (runs.size() > 1) out += "<h3>" + html_escaped(run.name) + "</h3>\n";
    out += "<p>" + html_escaped(checkpoints_text(run.record)) + "</p>\n" +
           html_table({"time (UTC)", "step", "<span style=\"display:block;text-align:left\">event</span>"}, rows) +
           note;
  }
  return html_section("Events", out);
}

std::string layout_section(const std::vector<ReportRun>& runs) {
  std::string out;
  std::vector<PlanDims> drawn;
  for (const ReportRun& run : runs) {
    if (!run.record.plan || std::find(drawn.begin(), drawn.end(), *run.record.plan) != drawn.end()) continue;
    const PlanDims& dims = *run.record.plan;
    if (drawn.size() == 4) break;
    drawn.push_back(dims);
    if (runs.size() > 1) out += "<h3>" + html_escaped(run.name) + "</h3>\n";
    try {
      out += "<div class=\"grid\"><div class=\"card\">" + rank_picture(dims) + "</div><div class=\"card\">" +
             layer_picture(dims) + "</div></div>\n";
    } catch (const UserError& error) {
      out += "<p>The layout cannot be drawn: " + html_escaped(error.what()) + "</p>\n";
    }
    out +=
        str("<p class=\"soft\">tensor parallel ", dims.tp, ", sequence parallel ", dims.sp, ", data parallel ", dims.dp,
            ", fold ", dims.fold, "; ", dims.tokens, " tokens in ", dims.layout().segments(), " segments</p>\n");
  }
  return out.empty() ? "" : html_section("Layout of a sequence", out);
}

std::string samples_section(const std::vector<ReportRun>& runs, size_t bytes) {
  std::string out;
  for (const ReportRun& run : runs) {
    const std::vector<SampleRecord>& samples = run.record.samples;
    if (samples.empty()) continue;
    if (runs.size() > 1) out += "<h3>" + html_escaped(run.name) + "</h3>\n";
    // The latest sample is expanded; earlier ones are collapsed, as many as fit.
    size_t left = bytes / runs.size(), shown = 0;
    for (auto sample = samples.rbegin(); sample != samples.rend(); ++sample, ++shown) {
      const std::string text = shortened(sample->text, 4000);
      if (shown > 0 && text.size() > left) break;
      left -= std::min(left, text.size());
      const std::string body = "<pre>" + html_escaped(text) + "</pre>";
      const std::string step = str("step ", sample->step);
      out += shown == 0 ? "<p class=\"soft\">" + step + "</p>" + body
                        : "<details><summary>" + step + "</summary>" + body + "</details>\n";
    }
    if (shown < samples.size()) {
      out += str("<p class=\"soft\">", samples.size() - shown, " earlier samples are not shown.</p>\n");
    }
  }
  return out.empty() ? "" : html_section("Samples", out);
}

std::string profile_section(const std::vector<ReportRun>& runs) {
  std::string out;
  for (const ReportRun& run : runs) {
    const nlohmann::json& summary = run.record.summary;
    if (!summary.is_object()) continue;
    const std::string name = runs.size() > 1 ? run.name + ": " : "";
    try {
      if (summary.contains("ops"))
        out +=
            "<p>" + html_escaped(name) + "ops of rank 0</p><pre>" + html_escaped(op_table(summary["ops"])) + "</pre>\n";
      if (summary.contains("comm"))
        out += "<p>" + html_escaped(name) + "communication</p><pre>" + html_escaped(comm_table(summary["comm"])) +
               "</pre>\n";
    } catch (const nlohmann::json::exception& error) {
      out += "<p>" + html_escaped(name + "summary.json: the profile is damaged: " + error.what()) + "</p>\n";
    }
  }
  return out.empty() ? "" : html_section("Profile", out);
}

std::string page_with(const std::vector<ReportRun>& runs, const ReportDetail& detail) {
  const bool one = runs.size() == 1;
  const std::string title = one ? runs.front().name : str(runs.size(), " runs");
  const std::vector<AttemptRecord>& attempts = runs.front().goodput.attempts;
  const std::string subtitle = str("TransMamba training report. ",
                                   one ? str(state_of(runs.front().record, runs.front().goodput),
                                             attempts.empty() ? ""
                                                              : str("; from ", clock_text(attempts.front().launched),
                                                                    " to ", clock_text(attempts.back().ended), " UTC"))
                                       : "A run has the same colour in every chart.");
  const std::string curves_note =
      str("<p class=\"soft\">Thin lines: the first, lowest, highest and last value in each of ", detail.groups,
          " ranges of steps, so that every extreme is shown. Thick lines: means.",
          one ? " Dotted vertical lines: attempts that resumed, and rollbacks to a checkpoint." : "", "</p>\n");
  return html_page(title, subtitle,
                   problems_of(runs) + overview(runs) + differences_section(runs) +
                       html_section("Training", report_curves(runs, detail) + curves_note) +
                       html_section("Time", time_section(runs)) + layout_section(runs) +
                       samples_section(runs, detail.text_bytes / 2) + events_section(runs, detail.events) +
                       profile_section(runs) + config_section(runs, detail.text_bytes / 2));
}

}  // namespace

std::vector<ReportRun> read_runs(const std::vector<std::string>& dirs) {
  std::vector<ReportRun> runs;
  std::set<std::string> names;
  for (const std::string& dir : dirs) {
    ReportRun run{.record = read_run(dir), .goodput = {}, .name = ""};
    run.goodput = goodput_of(run.record);
    run.name = run.record.name;
    for (int copy = 2; !names.insert(run.name).second; ++copy) run.name = str(run.record.name, " (", copy, ")");
    runs.push_back(std::move(run));
  }
  return runs;
}

std::string report_page(const std::vector<ReportRun>& runs) {
  TM_CHECK(!runs.empty(), "report_page() needs at least one run");
  ReportDetail detail;
  std::string page = page_with(runs, detail);
  while (page.size() > kReportBytes && detail.groups > 8) {
    detail = {.groups = detail.groups / 2, .text_bytes = detail.text_bytes / 2, .events = detail.events / 2};
    page = page_with(runs, detail);
  }
  if (page.size() > kReportBytes) {
    throw UserError(str(runs.size(), " runs make a page of ", page.size(), " bytes, more than ", kReportBytes,
                        "; report fewer runs at a time"));
  }
  return page;
}

}  // namespace tmamba
