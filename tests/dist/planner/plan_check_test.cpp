// check_plan() against every mutation of every message of several plans.
#include <gtest/gtest.h>

#include <algorithm>

#include "dist/planner/plan.h"
#include "tests/dist/planner/plan_cases.h"

namespace tmamba {
namespace {

// --- Mutations

struct Mutant {
  std::string name;
  Plan plan;
};

using Edit = void (*)(std::vector<PlanMessage>&, size_t);

// Edits of one message of one list, each of which breaks the plan.
const std::vector<std::pair<const char*, Edit>>& edits() {
  using List = std::vector<PlanMessage>;
  static const std::vector<std::pair<const char*, Edit>> all{
      {"drop", [](List& list, size_t i) { list.erase(list.begin() + static_cast<ptrdiff_t>(i)); }},
      {"duplicate",
       [](List& list, size_t i) { list.insert(list.begin() + static_cast<ptrdiff_t>(i), PlanMessage(list[i])); }},
      {"next peer", [](List& list, size_t i) { ++list[i].peer; }},
      {"previous peer", [](List& list, size_t i) { --list[i].peer; }},
      {"later begin", [](List& list, size_t i) { ++list[i].range.begin; }},
      {"earlier begin", [](List& list, size_t i) { --list[i].range.begin; }},
      {"later end", [](List& list, size_t i) { ++list[i].range.end; }},
      {"earlier end", [](List& list, size_t i) { --list[i].range.end; }},
      {"shifted range", [](List& list, size_t i) { ++list[i].range.begin, ++list[i].range.end; }},
      {"next segment", [](List& list, size_t i) { ++list[i].segment; }},
      {"previous segment", [](List& list, size_t i) { --list[i].segment; }},
      {"bytes", [](List& list, size_t i) { ++list[i].bytes; }},
      {"payload",
       [](List& list, size_t i) { list[i].what = list[i].what == Payload::key ? Payload::value : Payload::key; }},
      {"other order", [](List& list, size_t i) { std::swap(list[i], list[i == 0 ? list.size() - 1 : i - 1]); }},
  };
  return all;
}

std::vector<Case> mutation_cases() {
  std::vector<Case> cases;
  for (const Transport& transport : all_transports()) {
    cases.push_back({small_dims(2, 1, 16, {8, 5}), transport});
    cases.push_back({small_dims(3, 2, 27, {20, 0}), transport});
    cases.push_back({small_dims(3, 1, 24, {24, 13}), transport});
  }
  return cases;
}

TEST(PlanCheck, RejectsEveryOneSidedMutation) {
  size_t mutants = 0;
  for (const Case& c : mutation_cases()) {
    Plan plan = make_plan(c.dims, c.transport);
    ASSERT_TRUE(check_plan(plan).empty());
    for (size_t r = 0; r < plan.programs.size(); ++r) {
      for (PlanStep& step : plan.programs[r]) {
        for (auto* list : {&step.sends, &step.receives}) {
          const std::vector<PlanMessage> original = *list;
          for (size_t i = 0; i < original.size(); ++i) {
            for (const auto& [name, edit] : edits()) {
              edit(*list, i);
              const bool changed = *list != original;  // swapping a single message with itself changes nothing
              if (changed) {
                ASSERT_FALSE(check_plan(plan).empty())
                    << describe(c.dims, c.transport) << ": " << name << ", rank " << r << " exchange " << step.exchange
                    << (list == &step.sends ? " send " : " receive ") << i;
                ++mutants;
              } else {
                ASSERT_STREQ(name, "other order");
                ASSERT_EQ(original.size(), 1u);
              }
              *list = original;
            }
          }
        }
      }
    }
    ASSERT_TRUE(check_plan(plan).empty());
  }
  EXPECT_GT(mutants, 10000u);
  RecordProperty("mutants", static_cast<int>(mutants));
}

// The receive of another rank that matches a send.
PlanMessage* matching_receive(Plan& plan, int from, const PlanStep& step, const PlanMessage& send) {
  for (PlanMessage& m : plan.programs[static_cast<size_t>(send.peer)][static_cast<size_t>(step.exchange)].receives) {
    if (m.peer == from && m.what == send.what && m.segment == send.segment && m.range == send.range) return &m;
  }
  return nullptr;
}

void sort_messages(std::vector<PlanMessage>& list) { std::sort(list.begin(), list.end(), message_before); }

// A message, seen from both sides.
struct TwoSides {
  Plan& plan;
  size_t exchange;
  int from;
  PlanStep& step;
  size_t send;
  std::vector<PlanMessage>& receives;
  size_t receive;

  void erase_send() const { step.sends.erase(step.sends.begin() + static_cast<ptrdiff_t>(send)); }
  void erase_receive() const { receives.erase(receives.begin() + static_cast<ptrdiff_t>(receive)); }
  void resize(int64_t begin, int64_t end) const {
    for (PlanMessage* m : {&step.sends[send], &receives[receive]}) {
      m->range.begin += begin, m->range.end += end;
      m->bytes = payload_bytes(plan.dims, m->what, m->range);
    }
  }
  int third() const { return 3 - from - step.sends[send].peer; }
  PlanStep& of_third() const { return plan.programs[static_cast<size_t>(third())][exchange]; }
};

struct TwoSidedMutation {
  const char* name;
  void (*change)(const TwoSides&);
  int64_t least_size = 1;  // of the range
  int least_ranks = 2;
};

const TwoSidedMutation kTwoSidedMutations[] = {
    {"drop", [](const TwoSides& m) { m.erase_send(), m.erase_receive(); }},
    {"duplicate",
     [](const TwoSides& m) {
       m.step.sends.push_back(PlanMessage(m.step.sends[m.send]));
       m.receives.push_back(PlanMessage(m.receives[m.receive]));
     }},
    {"longer", [](const TwoSides& m) { m.resize(0, 1); }},
    {"shorter", [](const TwoSides& m) { m.resize(1, 0); }, 2},
    {"redirect",
     [](const TwoSides& m) {
       const int third = m.third();
       m.of_third().receives.push_back(m.receives[m.receive]);
       m.erase_receive();
       m.step.sends[m.send].peer = third;
     },
     1, 3},
    {"forward from a rank that does not own it",
     [](const TwoSides& m) {
       m.receives[m.receive].peer = m.third();
       m.of_third().sends.push_back(m.step.sends[m.send]);
       m.erase_send();
     },
     1, 3},
};

// Both sides agree, sizes and order are right, and the plan is still wrong: only the check of needs can detect it.
TEST(PlanCheck, RejectsEveryTwoSidedMutation) {
  size_t mutants = 0;
  for (const Case& c : mutation_cases()) {
    const Plan plan = make_plan(c.dims, c.transport);
    for (int r = 0; r < c.dims.sp; ++r) {
      for (size_t e = 0; e < plan.exchanges.size(); ++e) {
        const auto& sends = plan.programs[static_cast<size_t>(r)][e].sends;
        for (size_t i = 0; i < sends.size(); ++i) {
          for (const TwoSidedMutation& mutation : kTwoSidedMutations) {
            if (sends[i].range.size() < mutation.least_size || c.dims.sp < mutation.least_ranks) continue;
            Plan mutant = plan;
            PlanStep& step = mutant.programs[static_cast<size_t>(r)][e];
            PlanMessage* receive = matching_receive(mutant, r, step, step.sends[i]);
            ASSERT_NE(receive, nullptr);
            auto& receives = mutant.programs[static_cast<size_t>(step.sends[i].peer)][e].receives;
            mutation.change({mutant, e, r, step, i, receives, static_cast<size_t>(receive - receives.data())});
            for (auto& program : mutant.programs) sort_messages(program[e].sends), sort_messages(program[e].receives);
            ASSERT_FALSE(check_plan(mutant).empty()) << describe(c.dims, c.transport) << ": " << mutation.name
                                                     << " exchange " << e << " rank " << r << " send " << i;
            ++mutants;
          }
        }
      }
    }
  }
  EXPECT_GT(mutants, 3000u);
  RecordProperty("mutants", static_cast<int>(mutants));
}

TEST(PlanCheck, RejectsEveryChangeOfTheSchedule) {
  for (const Case& c : mutation_cases()) {
    SCOPED_TRACE(describe(c.dims, c.transport));
    const Plan plan = make_plan(c.dims, c.transport);
    const size_t count = plan.exchanges.size();
    for (size_t e = 0; e < count; ++e) {
      for (size_t r = 0; r < plan.programs.size(); ++r) {
        Plan skipping = plan;  // one rank leaves an exchange out
        skipping.programs[r].erase(skipping.programs[r].begin() + static_cast<ptrdiff_t>(e));
        EXPECT_FALSE(check_plan(skipping).empty());
        Plan swapped = plan;  // one rank issues two exchanges the other way round
        std::swap(swapped.programs[r][e], swapped.programs[r][(e + 1) % count]);
        EXPECT_FALSE(check_plan(swapped).empty());
      }
      Plan dropped = plan, reordered = plan, other_op = plan;  // all ranks alike
      dropped.exchanges.erase(dropped.exchanges.begin() + static_cast<ptrdiff_t>(e));
      std::swap(reordered.exchanges[e], reordered.exchanges[(e + 1) % count]);
      for (size_t r = 0; r < plan.programs.size(); ++r) {
        auto& program = dropped.programs[r];
        program.erase(program.begin() + static_cast<ptrdiff_t>(e));
        for (size_t i = 0; i < program.size(); ++i) program[i].exchange = static_cast<int>(i);
        std::swap(reordered.programs[r][e], reordered.programs[r][(e + 1) % count]);
        for (size_t i = 0; i < count; ++i) reordered.programs[r][i].exchange = static_cast<int>(i);
      }
      EXPECT_FALSE(check_plan(dropped).empty()) << e;
      EXPECT_FALSE(check_plan(reordered).empty()) << e;
      other_op.exchanges[e].op = Collective::broadcast;
      EXPECT_FALSE(check_plan(other_op).empty()) << e;
    }
  }
}

TEST(PlanCheck, NamesTheRankAndTheMessage) {
  Plan plan = make_plan(small_dims(3, 1, 24, {24}), Transport{});
  auto& receives = plan.programs[2][1].receives;
  ASSERT_EQ(plan.exchanges[1].kind, ExchangeKind::keys);
  receives.erase(receives.begin());
  const auto problems = check_plan(plan);
  ASSERT_FALSE(problems.empty());
  EXPECT_EQ(problems[0], "layer 0 forward keys: rank 2 does not receive key of segment 0 [0, 8) from rank 0");
}

}  // namespace
}  // namespace tmamba
