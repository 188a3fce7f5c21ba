// Plans in files: names, JSON, and what is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "dist/planner/plan.h"
#include "kernels/base/rng.h"
#include "tests/dist/planner/plan_cases.h"

namespace tmamba {
namespace {

TEST(Plan, JsonRoundTrip) {
  std::set<std::string> hashes;
  size_t plans = 0;
  for (const Case& c : random_cases(25)) {
    if (c.dims.sp == 1) continue;
    const Plan plan = make_plan(c.dims, c.transport);
    const std::string text = plan_to_json(plan);
    const Plan back = plan_from_json(text);
    ASSERT_TRUE(back == plan) << describe(c.dims, c.transport);
    ASSERT_EQ(plan_to_json(back), text);
    ASSERT_EQ(plan_hash(back), plan_hash(plan));
    hashes.insert(plan_hash(plan));
    ++plans;
  }
  EXPECT_EQ(hashes.size(), plans);
  EXPECT_EQ(plan_hash(make_plan(small_dims(3, 1, 24, {24}), Transport{})).size(), 16u);
}

TEST(Plan, MixedTransportsPerLayer) {
  const PlanDims dims = small_dims(3, 2, 48, {0, 17, 30, 48, 24});
  std::vector<Transport> transports(all_transports().begin(), all_transports().end());
  const Plan plan = make_plan(dims, transports);
  EXPECT_TRUE(check_plan(plan).empty());
  EXPECT_TRUE(plan_from_json(plan_to_json(plan)) == plan);
}

TEST(Plan, DamagedJsonIsRefused) {
  const std::string text = plan_to_json(make_plan(small_dims(2, 1, 16, {16, 0}), Transport{}));
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    const size_t at = changed.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return changed.replace(at, from.size(), to);
  };
  for (const std::string& damaged :
       {text.substr(0, text.size() / 2), std::string(), std::string("[]"), replaced("\"version\":3", "\"version\":99"),
        replaced("\"key\"", "\"kex\""), replaced("\"sends\"", "\"sent\""),
        replaced("\"tokens\":16", "\"tokens\":\"16\""), replaced("\"send_recv\"", "\"send\""),
        replaced("group_cast+all_gather", "pigeons")}) {
    EXPECT_THROW(plan_from_json(damaged), UserError);
  }
  // A plan that was written before a field existed has the field's default; an unknown field is an error.
  const std::string older = replaced(",\"keep_keys\":false", ""), newer = replaced("keep_keys", "keep_queries");
  EXPECT_EQ(plan_to_json(plan_from_json(older)), text);
  EXPECT_THROW(plan_from_json(newer), UserError);
}

// Numbers that would be truncated, wrap around, or make a size overflow.
TEST(Plan, HostileNumbersAreRefused) {
  const std::string text = plan_to_json(make_plan(small_dims(2, 1, 16, {16, 0}), Transport{}));
  const std::string halo = "[\"halo\",1,1,5,8,";
  const auto refused = [&](const std::string& from, const std::string& to, const std::string& part) {
    std::string changed = text;
    const size_t at = changed.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    try {
      plan_from_json(changed.replace(at, from.size(), to));
      FAIL() << to << " was accepted";
    } catch (const UserError& error) {
      EXPECT_NE(std::string(error.what()).find("not a plan: "), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  refused("\"sp\":2", "\"sp\":4294967298", "sp = 4294967298 is out of range");
  refused("\"sp\":2", "\"sp\":2.5", "sp is 2.5, which is no integer");
  refused("\"tokens\":16", "\"tokens\":18446744073709551615", "out of range");
  refused("\"tokens\":16", "\"tokens\":9223372036854775807", "out of range");
  refused("\"tokens\":16", "\"tokens\":-16", "out of range");
  refused("\"head_dim\":4", "\"head_dim\":9223372036854775807", "out of range");
  refused("\"tied_head\":false", "\"tied_head\":0", "neither true nor false");
  refused("\"transpoints\":[16,0]", "\"transpoints\":16", "no list");
  refused("\"transpoints\":[16,0]", "\"transpoints\":[16,{}]", "no integer");
  refused(halo, "[\"halo\",1,1,-9223372036854775808,9223372036854775807,", "range of message");
  refused(halo, "[\"halo\",1,1,5,17,", "range of message");
  refused(halo, "[\"halo\",1,1,8,5,", "range of message");
  refused(halo, "[\"halo\",1,5,8,", "6 fields");
}

// A byte of a saved plan changed, lost or doubled: the plan is refused, is for another run, or does not pass the check,
// unless its content is unchanged.
TEST(Plan, NoDamagedBytePassesUnnoticed) {
  const Plan plan = make_plan(small_dims(3, 2, 48, {0, 17, 48}), transport_named("gather+sliced"));
  const std::string text = plan_to_json(plan);
  constexpr uint64_t kSeed = 11, kChanges = 3000;
  const Philox random(kSeed, 0);
  int refused = 0, other = 0, wrong = 0, same = 0;
  for (uint64_t i = 0; i < kChanges; ++i) {
    const auto words = random.words(i);
    std::string changed = text;
    const size_t at = words[0] % text.size();
    if (words[1] % 3 == 0) {
      changed[at] = static_cast<char>(words[2] % 256);
    } else if (words[1] % 3 == 1) {
      changed.erase(at, 1);
    } else {
      changed.insert(at, 1, text[at]);
    }
    SCOPED_TRACE(str("seed ", kSeed, ", change ", i, " at ", at));
    try {
      const Plan read = plan_from_json(changed);
      if (!dims_difference(read.dims, plan.dims).empty()) {
        ++other;
      } else if (!check_plan(read).empty()) {
        ++wrong;
      } else {
        // Transports may have changed to others that need the same messages.
        ++same;
        EXPECT_TRUE(read.programs == plan.programs);
      }
    } catch (const UserError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 500);
  EXPECT_GT(wrong, 100);
  EXPECT_GT(other, 0);
  EXPECT_LT(same, 50) << refused << " refused, " << other << " for another run, " << wrong << " wrong";
}

TEST(Plan, TheFirstDifferenceIsNamedWithBothValues) {
  const PlanDims dims = small_dims(4, 2, 64, {0, 32});
  EXPECT_EQ(dims_difference(dims, dims), "");
  const auto difference = [&](auto change) {
    PlanDims other = dims;
    change(other);
    return dims_difference(dims, other);
  };
  EXPECT_EQ(difference([](PlanDims& d) { d.sp = 2; }), "sp = 4, but this run has 2 (parallel.sp)");
  EXPECT_EQ(difference([](PlanDims& d) { d.sp = 2, d.heads = 3; }), "heads = 6, but this run has 3 (model.heads)");
  EXPECT_EQ(difference([](PlanDims& d) {
              d.transpoints = {0, 16};
            }),
            "transpoints = [0,32], but this run has [0,16] (model.schedule)");
  EXPECT_EQ(difference([](PlanDims& d) { d.tied_head = true; }),
            "tied_head = false, but this run has true (model.tied_head)");
  EXPECT_EQ(difference([](PlanDims& d) { d.keep_keys = true; }),
            "keep_keys = false, but this run has true (keep_keys)");
  EXPECT_EQ(difference([](PlanDims& d) { d.recompute = Recompute::mlp; }),
            "recompute = \"none\", but this run has \"mlp\" (train.recompute)");
}

TEST(Plan, TransportNames) {
  for (const Transport& transport : all_transports()) EXPECT_EQ(transport_named(name_of(transport)), transport);
  try {
    transport_named("ring");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("group_cast+sliced"), std::string::npos);
  }
}

TEST(Plan, RefusalsNameTheNumberToChange) {
  const auto problem = [](auto change) {
    PlanDims dims = small_dims(2, 1, 16, {8});
    change(dims);
    EXPECT_THROW(make_plan(dims, Transport{}), UserError);
    return dims_problem(dims);
  };
  EXPECT_NE(problem([](PlanDims& d) { d.tp = 5; }).find("parallel.tp = 5 does not divide model.heads = 6"),
            std::string::npos);
  EXPECT_NE(problem([](PlanDims& d) { d.tp = 5; }).find("divisor of 6"), std::string::npos);
  EXPECT_NE(problem([](PlanDims& d) { d.fold = 8; }).find("parallel.fold"), std::string::npos);
  EXPECT_NE(problem([](PlanDims& d) { d.global_batch = 7; }).find("train.global_batch = 7"), std::string::npos);
  EXPECT_NE(problem([](PlanDims& d) { d.zero = 3; }).find("parallel.zero"), std::string::npos);
  EXPECT_NE(problem([](PlanDims& d) { d.transpoints = {17}; }).find("TransPoint 17"), std::string::npos);
  EXPECT_NE(problem([](PlanDims& d) { d.dim = 0; }).find("model.dim"), std::string::npos);
  const PlanDims dims = small_dims(4, 1, 16, {8});
  EXPECT_NE(transport_problem(dims, transport_named("head_parallel")).find("parallel.sp = 4"), std::string::npos);
  EXPECT_THROW(make_plan(dims, transport_named("head_parallel")), UserError);
}

TEST(Plan, OneRankExchangesNothing) {
  const Plan plan = make_plan(small_dims(1, 4, 32, {16, 32, 0}), Transport{});
  EXPECT_TRUE(plan.exchanges.empty());
  EXPECT_TRUE(check_plan(plan).empty());
}

}  // namespace
}  // namespace tmamba
