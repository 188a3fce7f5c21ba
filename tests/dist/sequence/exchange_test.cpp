// The results of the exchanges equal those of one rank on the whole sequence, and their messages those of the plan.
#include "dist/sequence/exchange.h"

#include <gtest/gtest.h>

#include "tests/dist/comm/mpi_main.h"
#include "tests/dist/sequence/exchange_example.h"

namespace tmamba {
namespace {
std::vector<std::pair<int, int64_t>> peers_and_bytes(const std::vector<PlanMessage>& messages) {
  std::vector<std::pair<int, int64_t>> list;
  for (const PlanMessage& m : messages) list.emplace_back(m.peer, m.bytes);
  return list;
}

// Every call is an exchange of the plan: the same collective, bytes and messages, in the plan's order.
void expect_plan(const std::vector<Call>& calls, const Plan& plan, int rank) {
  ASSERT_EQ(calls.size(), plan.exchanges.size());
  for (size_t x = 0; x < calls.size(); ++x) {
    SCOPED_TRACE(str("exchange ", x, ", ", name_of(plan.exchanges[x].kind), " of layer ", plan.exchanges[x].layer));
    EXPECT_EQ(calls[x].op, plan.exchanges[x].op);
    EXPECT_EQ(calls[x].received, bytes_received(plan, static_cast<int>(x), rank));
    if (calls[x].op != Collective::send_recv) continue;
    const PlanStep& step = plan.programs[static_cast<size_t>(rank)][x];
    EXPECT_EQ(calls[x].receives, peers_and_bytes(step.receives));
    EXPECT_EQ(calls[x].sends, peers_and_bytes(step.sends));
  }
}

// What Communicator::traffic() counts is what the plan says, to the byte.
void expect_traffic(const TrafficCounter& traffic, const Plan& plan, int rank) {
  TrafficCounter expected;
  for (size_t x = 0; x < plan.exchanges.size(); ++x) {
    const auto op = static_cast<size_t>(plan.exchanges[x].op);
    ++expected.calls[op];
    expected.bytes[op] += bytes_received(plan, static_cast<int>(x), rank);
  }
  EXPECT_EQ(traffic.calls, expected.calls);
  EXPECT_EQ(traffic.bytes, expected.bytes);
}

class Exchanges : public testing::TestWithParam<int> {
 protected:
  Communicator& comm_ = test_world().comm();
};

TEST_P(Exchanges, GiveWhatOneRankHasAndMoveWhatThePlanSays) {
  constexpr uint64_t kSeeds = 6;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Example example = random_example(seed, comm_.size(), GetParam());
    for (const Transport& transport : all_transports()) {
      if (transport.head_parallel) example.dims.heads *= comm_.size();  // all_transports() has it last
      example.transport = transport;
      SCOPED_TRACE(example.text());
      const Plan plan = make_plan(example.dims, transport);
      comm_.reset_traffic();
      Step step(example, comm_);
      step.run();
      expect_plan(step.calls(), plan, comm_.rank());
      expect_traffic(comm_.traffic(), plan, comm_.rank());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Folds, Exchanges, testing::Values(1, 2, 4),
                         [](const auto& fold) { return str("fold", fold.param); });

TEST(ExchangeErrors, NameTheVerbTheTensorAndTheRank) {
  Communicator& comm = test_world().comm();
  const int ranks = comm.size();
  const int64_t T = 8 * ranks;
  const SequenceLayout layout({.tokens = T, .ranks = ranks, .chunk = 4, .transpoints = {T}});
  SequenceExchange exchange(layout, comm, host_ops());
  Arena arena(4096, Device::cpu);
  const std::string where = str("\"", comm.name(), "\", rank ", comm.rank(), " of ", ranks);
  const auto expect = [&](const std::string& text, const std::string& verb, const std::string& part) {
    EXPECT_NE(text.find(verb), std::string::npos) << text;
    EXPECT_NE(text.find(where), std::string::npos) << text;
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  Host pre({1, 8, 6}, 0), wrong({1, 1, 2, 6}, 0), keys({1, 8, 1, 2}, 0), states({1, 1, 1, 4}, 0), two({2, 1, 1, 4}, 0);
  expect(error_of([&] { exchange.conv_halo(arena, wrong.x, pre.x).finish(); }), "conv_halo",
         "the halo is [1, 1, 2, 6], expected [1, 1, 3, 6]");
  const auto gather = [&] {
    exchange.gather_keys(arena, layout.layer(0), KeyTransport::gather, pre.x, pre.x, keys.x, keys.x).finish();
  };
  expect(error_of(gather), "gather_keys", "k of the tokens needed");
  const auto scan = [&] {
    exchange.scan_states(arena, layout.layer(0), StateTransport::sliced, two.x, {}, states.x, {}).finish();
  };
  expect(error_of(scan), "scan_states", "the inflow is [2, 1, 1, 4]");
  EXPECT_EQ(arena.used(), 0u);

  const SequenceLayout other({.tokens = 8 * (ranks + 1), .ranks = ranks + 1, .chunk = 4});
  const auto construct = [&] { SequenceExchange(other, comm, host_ops()); };
  EXPECT_THROW(construct(), Error);
}

}  // namespace
}  // namespace tmamba
