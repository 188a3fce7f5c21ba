// What follows from heartbeats, without processes.
#include "dist/comm/heartbeat.h"

#include <gtest/gtest.h>

#include <map>

namespace tmamba {
namespace {

constexpr uint64_t kWorld = 77, kPair = 78;

Heartbeat rank_with(int rank, std::vector<OperationRecord> world_operations) {
  Heartbeat heartbeat;
  heartbeat.rank = rank;
  heartbeat.host = "node" + std::to_string(rank / 2);
  heartbeat.beat = 5;
  heartbeat.seconds = 9.5;
  heartbeat.communicators.push_back({kWorld, "world", {0, 1, 2}, std::move(world_operations)});
  return heartbeat;
}

Heartbeat waiting(Heartbeat heartbeat, uint64_t key, OperationRecord operation) {
  heartbeat.waiting_key = key;
  heartbeat.waiting_for = operation;
  return heartbeat;
}

const OperationRecord kSum{7, Collective::all_reduce, 400};

// Rank 0 waits for the sum; the others are as given.
std::string report(std::map<int, RankStatus> others) {
  const Heartbeat waiter = waiting(rank_with(0, {kSum}), kWorld, kSum);
  others[0] = {"node0", waiter, true};
  return hang_report(waiter, [&](int rank) -> const RankStatus& { return others.at(rank); }).text;
}

RankStatus alive(Heartbeat heartbeat) { return {heartbeat.host, heartbeat, true}; }
const RankStatus kWaitsToo = alive(waiting(rank_with(1, {kSum}), kWorld, kSum));

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST(HangReport, NamesTheOperation) {
  const std::string text = report({{1, kWaitsToo}, {2, alive(rank_with(2, {}))}});
  expect_contains(text, "rank 0 on node0: all_reduce #7 (400 bytes) on \"world\" timed out after 9.5 s; stragglers:\n");
  expect_contains(text, "  rank 2 on node1: did not arrive: outside any communication for 9.5 s; it has started no");
  EXPECT_EQ(text.find("rank 1"), std::string::npos) << text;
}

TEST(HangReport, DistinguishesRanksThatHaveExited) {
  RankStatus frozen = alive(rank_with(2, {{6, Collective::barrier, 0}}));
  frozen.alive = false;
  expect_contains(report({{1, kWaitsToo}, {2, frozen}}),
                  "rank 2 on node1: its process has stopped; its last operation "
                  "there was barrier #6 (0 bytes) on \"world\"");
  expect_contains(report({{1, kWaitsToo}, {2, {"node1", std::nullopt, false}}}), "rank 2 on node1: has written no");
  Heartbeat without = rank_with(2, {});
  without.communicators.clear();
  expect_contains(report({{1, kWaitsToo}, {2, alive(without)}}), "rank 2 on node1: has no communicator \"world\"");
}

TEST(HangReport, ReportsAnotherOperationOrSizeAtTheSamePlace) {
  const OperationRecord larger{7, Collective::all_reduce, 404};
  expect_contains(report({{1, kWaitsToo}, {2, alive(waiting(rank_with(2, {larger}), kWorld, larger))}}),
                  "rank 2 on node1: issued all_reduce #7 (404 bytes) on \"world\" instead");
}

TEST(HangReport, SuspectsWhoHasStartedItOnlyWithoutABetterReason) {
  const RankStatus idle = alive(rank_with(1, {kSum}));
  expect_contains(
      report({{1, idle}, {2, alive(waiting(rank_with(2, {kSum}), kWorld, kSum))}}),
      "possible stragglers:\n  rank 1 on node0: has started it and is outside any communication for 9.5 s\n");
  const std::string text = report({{1, idle}, {2, alive(rank_with(2, {}))}});
  EXPECT_EQ(text.find("rank 1"), std::string::npos) << text;
}

TEST(HangReport, FollowsWaitsAcrossCommunicators) {
  // 1 waits for 2 on "pair" before it comes to the sum; 2 sleeps. Had 2 come to the sum, 1 would still be blamed
  // rightly.
  const OperationRecord gather{3, Collective::all_gather, 64};
  Heartbeat first = rank_with(1, {});
  first.communicators.push_back({kPair, "pair", {1, 2}, {gather}});
  first = waiting(first, kPair, gather);
  Heartbeat second = rank_with(2, {kSum});
  second.communicators.push_back({kPair, "pair", {1, 2}, {{2, Collective::broadcast, 8}}});
  const std::string text = report({{1, alive(first)}, {2, alive(second)}});
  expect_contains(text,
                  "stragglers:\n  rank 2 on node1: did not arrive: outside any communication for 9.5 s; its last "
                  "operation there was broadcast #2 (8 bytes) on \"pair\"\n");
  EXPECT_EQ(text.find("  rank 1"), std::string::npos) << text;
}

TEST(Heartbeat, TextHoldsEverything) {
  Heartbeat heartbeat = waiting(rank_with(2, {{6, Collective::barrier, 0}, kSum}), kWorld, kSum);
  heartbeat.host = "a \"quoted\" name";
  heartbeat.communicators.push_back({kPair, "two words", {1, 2}, {}});
  const std::string text = to_text(heartbeat);
  const auto read = heartbeat_from_text(text);
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(read->host, heartbeat.host);
  EXPECT_EQ(read->find(kPair)->name, "two words");
  EXPECT_EQ(read->find(kPair)->members, (std::vector{1, 2}));
  EXPECT_EQ(read->find(kWorld)->find(7)->bytes, 400);
  EXPECT_EQ(read->find(kWorld)->find(8), nullptr);
  EXPECT_EQ(to_text(*read), text);
}

TEST(Heartbeat, DamagedTextIsRefused) {
  const std::string text = to_text(waiting(rank_with(1, {kSum}), kWorld, kSum));
  for (size_t n = 0; n + 1 < text.size(); ++n) EXPECT_FALSE(heartbeat_from_text(text.substr(0, n))) << n;
  std::string unknown = text;
  unknown.replace(unknown.find("all_reduce"), 10, "all_reduze");
  EXPECT_FALSE(heartbeat_from_text(unknown));
  EXPECT_FALSE(
      heartbeat_from_text("rank 1 host x beat 1\nwaiting 0 0 barrier 0 seconds 1\ncommunicators 99999999999999\n"));
}

}  // namespace
}  // namespace tmamba
