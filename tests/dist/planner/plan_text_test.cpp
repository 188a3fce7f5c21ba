// The planner's text: every line fits, and its numbers are those of layout, plan and prediction.
#include "dist/planner/plan_text.h"

#include <gtest/gtest.h>

#include <sstream>

#include "kernels/base/bytes_text.h"
#include "tests/dist/planner/measured_costs.h"
#include "tests/dist/planner/plan_cases.h"

namespace tmamba {
namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

void expect_printable(const std::string& text) {
  ASSERT_FALSE(text.empty());
  EXPECT_EQ(text.back(), '\n');
  for (const std::string& line : lines_of(text)) {
    EXPECT_LE(line.size(), 100u) << line;
    for (char c : line) EXPECT_TRUE(c >= ' ' && c <= '~') << line;
  }
}

TEST(PlanText, EveryLineFits) {
  const MachineModel machine = h200_machine(128);
  for (int64_t tokens : {int64_t{8192}, int64_t{8229}, int64_t{1} << 20}) {
    for (const auto& [sp, fold, layers] :
         {std::tuple<int, int, int64_t>{1, 1, 24}, {3, 2, 96}, {8, 4, 1}, {48, 2, 24}}) {
      PlanDims dims = v9_dims(tokens, sp, fold, layers);
      dims.global_batch = 4096;
      expect_printable(plan_report(costs_of(dims), dims, choose_transports(dims, machine), machine, {}, "advice"));
    }
    PlanDims dims = v9_dims(tokens, 1, 1, 24);
    dims.global_batch = 4096;
    expect_printable(ranking_table(rank_layouts(dims, machine, 1024), 30));
  }
  expect_printable(check_text(make_plan(v9_dims(8192, 8, 4, 24), Transport{})));
}

TEST(PlanText, PictureShowsEverySegmentOfEveryLayer) {
  for (const auto& [tokens, sp, fold] :
       {std::tuple<int64_t, int, int>{8192, 8, 4}, {8192, 3, 5}, {8229, 12, 4}, {8229, 36, 2}}) {
    PlanDims dims = v9_dims(tokens, sp, fold);
    if (sp == 3) dims.grain = 2;
    const SequenceLayout layout(dims.layout());
    const auto lines = lines_of(layout_picture(layout));
    const size_t column = lines[2].rfind(' ') + 1;
    ASSERT_EQ(lines[2].size() - column, layout.segments().size());
    for (const Segment& s : layout.segments()) {
      const char digit = lines[2][column + static_cast<size_t>(s.index)];
      EXPECT_EQ(digit, s.rank < 10 ? '0' + s.rank : 'a' + s.rank - 10);
    }
    ASSERT_EQ(lines.size(), 4u + 8u + 1u);  // 8 different TransPoints
    for (size_t row = 0; row < 8; ++row) {
      const LayerLayout layer = layout.layer(static_cast<int>(row));
      for (const Segment& s : layout.segments()) {
        const bool attention = !layer.attention_part(s).empty(), ssm = !layer.ssm_part(s).empty();
        EXPECT_EQ(lines[4 + row][column + static_cast<size_t>(s.index)], attention && ssm ? 'x'
                                                                         : attention      ? 'A'
                                                                                          : 'S')
            << "P " << layer.transpoint() << " segment " << s.index;
      }
    }
  }
}

TEST(PlanText, LongSequencesShareColumns) {
  const SequenceLayout layout(v9_dims(131072, 64, 8).layout());  // 512 segments
  const std::string text = layout_picture(layout);
  EXPECT_NE(text.find("Each column is 8 segments."), std::string::npos) << text;
  EXPECT_NE(text.find(std::string(32, 'A') + std::string(32, 'S')), std::string::npos) << text;  // P = T / 2
}

TEST(PlanText, ExchangeTableSumsThePlan) {
  const PlanDims dims = v9_dims(8192, 8, 4, 24);
  const Plan plan = make_plan(dims, transport_named("group_cast+sliced"));
  double most = 0, mean = 0;
  for (size_t i = 0; i < plan.exchanges.size(); ++i) {
    int64_t largest = 0;
    for (int r = 0; r < dims.sp; ++r) {
      const int64_t bytes = bytes_received(plan, static_cast<int>(i), r);
      largest = std::max(largest, bytes);
      mean += static_cast<double>(bytes) / dims.sp;
    }
    most += static_cast<double>(largest);
  }
  const auto lines = lines_of(exchange_table(dims, {transport_named("group_cast+sliced")}));
  std::istringstream last(lines.back().substr(lines.back().find("micro-batch") + 11));
  for (double bytes : {most, mean}) {
    double printed = 0;
    std::string unit;
    last >> printed >> unit;
    ASSERT_TRUE(unit == "GiB" || unit == "MiB") << lines.back();
    EXPECT_NEAR(printed, bytes / (unit == "GiB" ? kGiB : kGiB / 1024), 0.005);
  }
}

TEST(PlanText, TablesAddUp) {
  const PlanDims dims = v9_dims(131072, 8, 4, 24);
  const MachineModel machine = h200_machine(128);
  const Prediction prediction = predict(dims, machine, {Transport{}});
  double sum = 0, step = 0;
  for (const std::string& line : lines_of(step_table(prediction, dims, machine))) {
    const size_t ms = line.find(" ms ");
    if (ms == std::string::npos) continue;
    const double value = std::stod(line.substr(32, ms - 32));
    (line.find("  step ") == 0 ? step : sum) += value;
  }
  EXPECT_NEAR(sum, prediction.time.total() * 1e3, 0.01);
  EXPECT_NEAR(step, prediction.time.total() * 1e3, 0.001);
  EXPECT_NE(memory_table(prediction.memory, prediction.memory, machine, "").find("free"), std::string::npos);
}

TEST(PlanText, ARunThatDoesNotFitReportsWhatMakesItFit) {
  MachineModel machine = h200_machine(128);
  PlanDims dims = v9_dims(131072, 2, 1, 8);
  dims.batch = dims.global_batch = 4;
  const auto needed = [&](Recompute level, int64_t batch) {
    PlanDims other = dims;
    other.recompute = level, other.batch = batch;
    return predict(other, machine, {Transport{}}).memory.total();
  };
  const auto report = [&](double bytes) {
    machine.memory_bytes = bytes / 0.95 * 1.0001;
    return plan_report(costs_of(dims), dims, {Transport{}}, machine, {},
                       memory_advice(dims.recompute, dims.batch, 0.95 * machine.memory_bytes, needed));
  };
  for (Recompute level : {Recompute::cheap, Recompute::mlp, Recompute::all}) {
    const std::string text = report(needed(level, 4));
    EXPECT_NE(text.find("does not fit"), std::string::npos);
    EXPECT_NE(text.find(str("train.recompute=", name_of(level), " makes it fit")), std::string::npos) << text;
  }
  EXPECT_NE(report(needed(Recompute::all, 1)).find("train.recompute=all and train.micro_batch=1 make it fit"),
            std::string::npos);
  EXPECT_NE(report(1e9).find("raise parallel.sp or parallel.tp"), std::string::npos);
  EXPECT_EQ(report(needed(Recompute::none, 4)).find("does not fit"), std::string::npos);
}

TEST(PlanText, RankingShowsTheBestOfEachLayout) {
  PlanDims dims = v9_dims(131072, 1, 1);
  dims.global_batch = 16;
  const auto choices = rank_layouts(dims, h200_machine(128), 16);
  const auto lines = lines_of(ranking_table(choices, 5));
  ASSERT_EQ(lines.size(), 7u);
  std::istringstream first(lines[2]);
  int number = 0, tp = 0, sp = 0, dp = 0, fold = 0;
  std::string transport;
  first >> number >> tp >> sp >> dp >> fold >> transport;
  EXPECT_EQ(number, 1);
  EXPECT_EQ(std::tie(tp, sp, dp, fold), std::tie(choices[0].tp, choices[0].sp, choices[0].dp, choices[0].fold));
  EXPECT_EQ(transport, choices[0].sp == 1 ? "-" : name_of(choices[0].transport));
}

TEST(PlanText, CheckNamesTheProblems) {
  Plan plan = make_plan(v9_dims(8192, 4, 2, 8), Transport{});
  EXPECT_NE(check_text(plan).find("Checked: every send has its receive"), std::string::npos);
  EXPECT_NE(check_text(plan).find(plan_hash(plan)), std::string::npos);
  plan.programs[1][0].sends.clear();
  EXPECT_EQ(check_text(plan).find("Checked"), std::string::npos);
  EXPECT_NE(check_text(plan).find("layer 0 forward halo: rank 1 sends nothing"), std::string::npos) << check_text(plan);
}

}  // namespace
}  // namespace tmamba
