// `transmamba report`: the content of the page, and its rendering in a browser. Needs chromium (launch/packages.sh).
#include "launch/report/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "kernels/base/check.h"
#include "kernels/base/rng.h"
#include "tests/launch/killed_run.h"
#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string contents(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

void expect_all(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << "missing: " << part;
}

// Headless Chromium, run in the test's directory; its own messages are dropped.
Outcome browser(const std::string& arguments) {
  return shell("chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir=$PWD/browser " +
               arguments + " 2>browser.log");
}

// Width and height of a PNG file.
std::pair<uint32_t, uint32_t> size_of_png(const std::string& png) {
  EXPECT_EQ(png.substr(0, 8), "\x89PNG\r\n\x1a\n");
  const auto number = [&](size_t at) {
    uint32_t value = 0;
    for (size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(png.at(at + i));
    return value;
  };
  return {number(16), number(20)};
}

// Writes the logs of an invented run of `steps` steps.
void write_run(const fs::path& dir, int64_t steps, uint64_t seed, double level) {
  fs::create_directories(dir);
  const Philox random(seed, 1);
  std::ofstream out(dir / "metrics.jsonl");
  for (int64_t step = 1; step <= steps; ++step) {
    const double noise = static_cast<double>(random.words(static_cast<uint64_t>(step))[0]) / 4294967296.0;
    const double x = level + 4 * std::exp(-static_cast<double>(step) / 300) + 0.3 * noise;
    out << json({{"step", step},
                 {"loss", x},
                 {"bits_per_byte", x / 2},
                 {"grad_norm", 1 + noise},
                 {"lr", 1e-3},
                 {"tokens", 1024 * step},
                 {"tokens_per_s", 1000 + 50 * noise},
                 {"step_ms", 1000.0},
                 {"gflops", 10 + noise},
                 {"memory_bytes", 1 << 28},
                 {"data_ms", 10},
                 {"compute_ms", 900},
                 {"agree_ms", 20},
                 {"update_ms", 60},
                 {"time", 1.7e9 + static_cast<double>(step)}})
               .dump()
        << "\n";
  }
  std::ofstream(dir / "events.jsonl")
      << R"({"time":"2023-11-14T22:13:20.000Z","event":"start","step":0,"ranks":4,"startup_s":2})"
      << "\n";
}

TEST(Report, AKilledRunsPageReportsEverything) {
  const KilledRun& run = killed_run();
  ASSERT_EQ(run.code, 85) << run.output;
  fs::current_path(run.folder);
  const Outcome outcome = transmamba("report run");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  const std::string page = contents("run/report.html");
  EXPECT_LT(page.size(), kReportBytes);
  expect_all(page, {"Loss",
                    "Bits per byte of text",
                    "Learning rate",
                    "Gradient norm",
                    "Throughput",
                    "Memory",
                    "Step time by phase",
                    "Wall time by activity",
                    "Tokens owned by each sequence rank",
                    "Attention and SSM tokens of each layer",
                    "attention",
                    "P 16: layer 1",
                    "P 64: layer 3",
                    "held-out",
                    "killed",
                    "stop",
                    "resumed from step",
                    "checkpoints of",
                    "Samples",
                    "config.toml",
                    "seq_len = 64"});
  for (const char* outside : {"src=", "href=", "@import", "url("}) EXPECT_EQ(page.find(outside), std::string::npos);
  EXPECT_EQ(page.find("Some records could not be read"), std::string::npos);
  // The report is deterministic.
  ASSERT_EQ(transmamba("report run -o again.html").code, 0);
  EXPECT_EQ(contents("again.html"), page);
  const json figures = json::parse(transmamba("report run -o again.html --json").output);
  EXPECT_EQ(figures["runs"][0]["goodput"]["starts"].size(), 2u);
  EXPECT_TRUE(figures["runs"][0]["problems"].empty());
}

TEST(Report, ABrowserShowsThePage) {
  const KilledRun& run = killed_run();
  ASSERT_EQ(run.code, 85) << run.output;
  fs::current_path(run.folder);
  ASSERT_EQ(transmamba("report run -o page.html").code, 0);
  const std::string url = "file://" + (run.folder / "page.html").string();
  const Outcome dom = browser("--dump-dom " + url);
  ASSERT_EQ(dom.code, 0) << contents("browser.log");
  expect_all(dom.output, {"<title>", "Wall time by activity", "</html>"});
  // The policy allowed the page's script, which adds a box for values to each chart with axes.
  size_t charts = 0, boxes = 0;
  for (size_t at = dom.output.find("data-xname="); at != std::string::npos; at = dom.output.find("data-xname=", at + 1))
    ++charts;
  for (size_t at = dom.output.find("class=\"tip\""); at != std::string::npos;
       at = dom.output.find("class=\"tip\"", at + 1))
    ++boxes;
  EXPECT_GE(charts, 6u);
  EXPECT_EQ(boxes, charts);
  const Outcome shot = browser("--window-size=1280,2000 --screenshot=page.png " + url);
  ASSERT_EQ(shot.code, 0) << contents("browser.log");
  const std::string png = contents("page.png");
  EXPECT_EQ(size_of_png(png), (std::pair<uint32_t, uint32_t>{1280, 2000}));
  EXPECT_GT(png.size(), 60000u);  // an empty page has under 10,000

  // On a phone nothing is wider than the page. The policy is removed for the measuring script.
  std::string phone = contents("page.html");
  const size_t policy = phone.find("<meta http-equiv"), end = phone.find('>', policy);
  ASSERT_NE(policy, std::string::npos);
  phone.erase(policy, end - policy + 1);
  phone.insert(phone.find("</body>"),
               "<p id=\"measured\"></p><script>document.getElementById('measured').textContent='width '+"
               "document.documentElement.scrollWidth+' of '+document.documentElement.clientWidth+' end'</script>");
  std::ofstream("phone.html") << phone;
  const Outcome narrow = browser("--window-size=390,844 --dump-dom file://" + (run.folder / "phone.html").string());
  const size_t measured = narrow.output.find(">width ");
  ASSERT_NE(measured, std::string::npos) << narrow.output.substr(0, 300);
  int needed = 0, there = 0;
  ASSERT_EQ(std::sscanf(narrow.output.c_str() + measured, ">width %d of %d end", &needed, &there), 2);
  EXPECT_LE(needed, there);
  EXPECT_LE(there, 520);
}

TEST(Report, SeveralRunsLieOverEachOther) {
  enter_test_folder("report-several");
  write_run("a/run", 400, 1, 2);
  write_run("b/run", 300, 2, 1);
  const Outcome outcome = transmamba("report a/run b/run");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  const std::string page = contents("report.html");
  expect_all(page, {"2 runs", "a/run", "b/run", "class=\"key c0\"", "class=\"key c1\"", "data-n=\"a/run\"",
                    "data-n=\"b/run\""});
  // A run directory given twice gives two runs with different names.
  ASSERT_EQ(transmamba("report a/run a/run -o twice.html").code, 0);
  expect_all(contents("twice.html"), {"a/run (2)"});
}

// Evaluations over a part of the data and over all of it are two curves.
TEST(Report, EvaluationsAreJoinedOverTheSameData) {
  enter_test_folder("report-evaluations");
  write_run("run", 40, 1, 2);
  const auto evaluation = [](int step, double loss, int64_t tokens) {
    std::ofstream("run/metrics.jsonl", std::ios::app)
        << json({{"step", step}, {"valid_loss", loss}, {"valid_bits_per_byte", loss / 2}, {"valid_tokens", tokens}})
               .dump()
        << "\n";
  };
  for (int step : {10, 20, 30, 40}) evaluation(step, 3, 1000);
  const auto series = [] {
    const std::string page = report_page(read_runs({"run"}));
    size_t count = 0;
    for (size_t at = page.find("data-n=\"held-out"); at != std::string::npos;
         at = page.find("data-n=\"held-out", at + 1)) {
      ++count;
    }
    return std::pair(count, page);
  };
  EXPECT_EQ(series().first, 2u);  // of loss and of bits per byte
  evaluation(40, 2.5, 50000);
  const auto [count, page] = series();
  EXPECT_EQ(count, 4u);
  expect_all(page, {"held-out (1.00k tokens)", "held-out (50.0k tokens)", "2.5000 (50.0k tokens)"});
}

TEST(Report, RunsAreComparedByWhatDiffersInTheirConfigurations) {
  enter_test_folder("report-differences");
  for (const char* run : {"a", "b", "c"}) write_run(run, 20, 1, 2);
  std::ofstream("a/config.toml") << "[train]\nlr = 1e-3\nseed = 7\n[run]\ndir = \"a\"\n";
  std::ofstream("b/config.toml") << "[train]\nlr = 3e-4\nseed = 7\n[run]\ndir = \"b\"\n";
  std::ofstream("c/config.toml") << "[train]\nlr = ";
  const std::string page = report_page(read_runs({"a", "b", "c"}));
  const size_t begin = page.find("Differences of the configurations"), end = page.find("<h2", begin);
  ASSERT_NE(begin, std::string::npos);
  const std::string section = page.substr(begin, end - begin);
  expect_all(section, {"train.lr", "3e-4", "c: config.toml cannot be compared"});
  for (const char* same : {"train.seed", "run.dir"}) EXPECT_EQ(section.find(same), std::string::npos) << section;
  EXPECT_EQ(report_page(read_runs({"a"})).find("Differences"), std::string::npos);
  expect_all(report_page(read_runs({"a", "a"})), {"The configurations are the same"});
}

TEST(Report, LongRunsKeepTheirExtremesInUnderAMegabyte) {
  enter_test_folder("report-long");
  write_run("run", 60000, 3, 1);
  // The loss of one of 60,000 steps spikes.
  std::string text = contents("run/metrics.jsonl");
  const size_t at = text.find("\"step\":31337,"), begin = text.rfind('{', at);
  json line = json::parse(text.substr(begin, text.find('\n', begin) - begin));
  line["loss"] = 99.0;
  text.replace(begin, text.find('\n', begin) - begin, line.dump());
  std::ofstream("run/metrics.jsonl") << text;
  const std::vector<ReportRun> one = read_runs({"run"});
  const std::string page = report_page(one);
  EXPECT_LT(page.size(), 250000u);
  EXPECT_NE(page.find(">100</text>"), std::string::npos);  // the axis of the loss covers the spike
  // Forty runs are drawn with fewer points, and fit.
  std::vector<ReportRun> many;
  for (int i = 0; i < 40; ++i) {
    many.push_back(one.front());
    many.back().name = "run " + std::to_string(i);
  }
  EXPECT_LT(report_page(many).size(), kReportBytes);
}

TEST(Report, WhatIsDamagedIsNamed) {
  enter_test_folder("report-damaged");
  write_run("run", 50, 4, 1);
  std::string text = contents("run/metrics.jsonl");
  text.insert(text.find("{", text.find("\"step\":7,") + 1), "{\"step\": 7.5 <script>alert(1)</script>\n{\"loss\":1}\n");
  text += "{\"step\":51,\"lo";
  std::ofstream("run/metrics.jsonl") << text;
  std::ofstream("run/events.jsonl", std::ios::app) << "{\"event\":\"skip\"}\n[]\n";
  std::ofstream("run/samples.txt") << "--- step 10\nHeart </pre><script>alert(2)</script> \xff\n";
  std::ofstream("run/plan.json") << "{\"version\":";
  std::ofstream("run/summary.json") << "[1]";
  std::ofstream("run/config.toml") << "# <script>alert(3)</script>";
  const Outcome outcome = transmamba("report run");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  expect_all(outcome.output,
             {"metrics.jsonl:", "the last line: it is truncated", "without a step number",
              "events.jsonl:2: ignored an event without a time", "events.jsonl:3: ignored a damaged line",
              "plan.json: not a plan", "summary.json: damaged"});
  const std::string page = contents("run/report.html");
  expect_all(page, {"Some records could not be read", "the last line: it is truncated", "without a step number",
                    "&lt;/pre&gt;&lt;script&gt;alert(2)"});
  EXPECT_EQ(page.find("<script>alert"), std::string::npos);
  const json figures = json::parse(transmamba("report run --json 2>/dev/null").output);
  EXPECT_EQ(figures["runs"][0]["steps"], 50);
  EXPECT_GE(figures["runs"][0]["problems"].size(), 7u);
}

TEST(Report, MistakesExitWith2) {
  enter_test_folder("report-mistakes");
  fs::create_directories("empty");
  ASSERT_EQ(shell("mkfifo pipe").code, 0);
  write_run("run", 5, 5, 1);
  for (const auto& [arguments, message] : std::vector<std::pair<std::string, std::string>>{
           {"report", "run is missing"},
           {"report missing", "missing: cannot read it: no such file or directory"},
           {"report empty", "not a run directory"},
           {"report run -o missing/page.html", "missing/page.html"},
           {"report run -o pipe", "pipe"}}) {
    const Outcome outcome = transmamba(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments << "\n" << outcome.output;
    EXPECT_NE(outcome.output.find(message), std::string::npos) << arguments << "\n" << outcome.output;
  }
}

// A run that has only begun has no step, no time, no plan.
TEST(Report, ARunWithoutAStepHasAPageToo) {
  enter_test_folder("report-begun");
  fs::create_directories("run");
  std::ofstream("run/metrics.jsonl") << "";
  const Outcome outcome = transmamba("report run");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  expect_all(contents("run/report.html"), {"nothing was recorded", "not started"});
}

// Every layout can be drawn: one box per segment, and two per layer whose TransPoint is inside the sequence.
TEST(Report, LayoutsAreDrawn) {
  for (int sp : {1, 2, 8, 64}) {
    for (int fold : {1, 4}) {
      PlanDims dims;
      dims.dim = 64, dims.heads = 4, dims.head_dim = 16, dims.ffn = 96, dims.vocab = 256;
      dims.tokens = 8192, dims.chunk = 16, dims.sp = sp, dims.fold = fold;
      dims.transpoints = {0, 128, 4096, 8192, 0, 128, 4096, 8192};
      const std::string ranks = rank_picture(dims), layers = layer_picture(dims);
      size_t boxes = 0, parts = 0;
      for (size_t at = ranks.find("<rect"); at != std::string::npos; at = ranks.find("<rect", at + 1)) ++boxes;
      for (size_t at = layers.find("<rect"); at != std::string::npos; at = layers.find("<rect", at + 1)) ++parts;
      EXPECT_EQ(boxes, static_cast<size_t>(sp * fold));
      EXPECT_EQ(parts, 6u);
      EXPECT_NE(layers.find("P 128: layers 1,5"), std::string::npos) << layers;
    }
  }
}

}  // namespace
}  // namespace tmamba
