// SequenceLayout against counts token by token, over random sequences, ranks, folds and schedules.
#include "dist/sequence/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "kernels/base/rng.h"

namespace tmamba {
namespace {

// A reproducible random layout; the trace names it in every failure.
struct Random {
  Philox philox;
  uint64_t counter = 0;
  explicit Random(uint64_t seed) : philox(seed, stream_id("layout_test")) {}
  int64_t in(int64_t low, int64_t high) {  // both inclusive
    return low + static_cast<int64_t>(philox.uniform(counter++) * static_cast<double>(high - low + 1));
  }
};

std::string describe(const LayoutSpec& spec) {
  std::string text = str("tokens ", spec.tokens, " ranks ", spec.ranks, " fold ", spec.fold, " grain ", spec.grain,
                         " chunk ", spec.chunk, " P");
  for (int64_t p : spec.transpoints) text += str(" ", p);
  return text;
}

LayoutSpec random_spec(uint64_t seed) {
  Random random(seed);
  LayoutSpec spec;
  spec.ranks = static_cast<int>(random.in(1, 12));
  spec.fold = static_cast<int>(random.in(1, 8));
  spec.chunk = random.in(0, 3) == 0 ? random.in(3, 9) : int64_t{1} << random.in(2, 5);
  spec.grain = random.in(0, 1) ? static_cast<int>(random.in(2, 4)) : 1;
  const int64_t segments = spec.segments();
  spec.tokens = spec.chunk * (segments * random.in(1, 3) + (random.in(0, 1) ? random.in(0, segments) : 0));
  if (random.in(0, 1)) spec.tokens += random.in(3, spec.chunk + 2) - spec.chunk;
  const int64_t layers = random.in(1, 5);
  for (int64_t l = 0; l < layers; ++l) {
    switch (random.in(0, 4)) {
      case 0:
        spec.transpoints.push_back(0);
        break;
      case 1:
        spec.transpoints.push_back(spec.tokens);
        break;
      case 2:
        spec.transpoints.push_back(std::min(spec.tokens, spec.chunk * random.in(0, segments)));
        break;
      default:
        spec.transpoints.push_back(random.in(0, spec.tokens));
    }
  }
  return spec;
}

// Runs `body` on every random layout that exists, and checks that most of them do.
template <class Body>
void for_random_layouts(Body body) {
  int tried = 0, made = 0;
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    const LayoutSpec spec = random_spec(seed);
    SCOPED_TRACE(str("seed ", seed, ": ", describe(spec)));
    ++tried;
    if (!split_problem(spec).empty()) continue;
    ++made;
    body(SequenceLayout(spec));
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(made, tried * 3 / 4);
}

TEST(Layout, ZigzagAssignsSegments) {
  const std::vector<int> expected{0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0};
  for (size_t k = 0; k < expected.size(); ++k) EXPECT_EQ(zigzag_rank(static_cast<int64_t>(k), 3), expected[k]) << k;
  for (int64_t k = 0; k < 5; ++k) EXPECT_EQ(zigzag_rank(k, 1), 0);
}

TEST(Layout, EvenSplitIsEqualAndAligned) {
  const SequenceLayout layout(
      {.tokens = 8192, .ranks = 8, .fold = 4, .chunk = 64, .transpoints = {0, 128, 256, 512, 1024, 2048, 4096, 8192}});
  ASSERT_EQ(layout.segments().size(), 32u);
  for (const Segment& s : layout.segments()) {
    EXPECT_EQ(s.begin, s.index * 256);
    EXPECT_EQ(s.size(), 256);
  }
  for (int r = 0; r < 8; ++r) EXPECT_EQ(layout.local_tokens(r), 1024);
  const Alignment alignment = layout.alignment();
  EXPECT_EQ(alignment.gcd, 128);
  EXPECT_EQ(alignment.unit, 256);
  ASSERT_EQ(alignment.splits.size(), 1u);  // P = 128 inside segment 0
  EXPECT_EQ(alignment.splits[0].layer, 1);
  EXPECT_EQ(alignment.splits[0].transpoint, 128);
  EXPECT_EQ(alignment.splits[0].segment, 0);
}

// What makes a run the same for every number of ranks: the grain takes up what ranks and folds leave of K segments.
TEST(Layout, GrainHoldsTheSplitFixed) {
  const SequenceLayout one({.tokens = 100, .chunk = 4, .grain = 16});
  for (const auto& [ranks, fold] : {std::pair{1, 4}, {2, 1}, {2, 4}, {4, 1}, {4, 2}, {16, 1}, {8, 2}}) {
    const int grain = 16 / (ranks * fold);
    const SequenceLayout many({.tokens = 100, .ranks = ranks, .fold = fold, .chunk = 4, .grain = grain});
    ASSERT_EQ(many.segments().size(), one.segments().size());
    for (size_t k = 0; k < one.segments().size(); ++k) {
      EXPECT_EQ(many.segments()[k].range(), one.segments()[k].range()) << ranks << " x " << fold << " segment " << k;
    }
  }
  const std::vector<int> expected{0, 0, 1, 1, 1, 1, 0, 0};
  const SequenceLayout small({.tokens = 64, .ranks = 2, .fold = 2, .chunk = 8, .grain = 2});
  for (size_t k = 0; k < expected.size(); ++k) EXPECT_EQ(small.segments()[k].rank, expected[k]) << k;
}

TEST(Layout, FoldChoicesReportAlignment) {
  const auto choices = fold_choices(
      {.tokens = 8192, .ranks = 8, .chunk = 64, .transpoints = {0, 128, 256, 512, 1024, 2048, 4096, 8192}});
  std::map<int, std::pair<int64_t, int>> got;
  for (const FoldChoice& c : choices) got[c.fold] = {c.unit, c.split_layers};
  const std::map<int, std::pair<int64_t, int>> expected{
      {1, {1024, 3}}, {2, {512, 2}}, {4, {256, 1}}, {8, {128, 0}}, {16, {64, 0}}};
  EXPECT_EQ(got, expected);
  // 3 ranks do not divide 128 chunks at any fold, and 128 chunks are too few for fold 64.
  for (const FoldChoice& c : fold_choices({.tokens = 8192, .ranks = 3, .chunk = 64}, 64)) {
    EXPECT_EQ(c.unit, 0);
    EXPECT_LE(c.fold, 32);
  }
}

TEST(Layout, EveryTokenHasOneOwnerAndOneRow) {
  for_random_layouts([](const SequenceLayout& layout) {
    std::vector<std::set<int64_t>> rows(static_cast<size_t>(layout.ranks()));
    for (int64_t t = 0; t < layout.tokens(); ++t) {
      const Segment& s = layout.segment_at(t);
      ASSERT_TRUE(s.range().contains(t)) << "token " << t;
      ASSERT_EQ(layout.rank_of(t), zigzag_rank(s.index / layout.spec().grain, layout.ranks()));
      ASSERT_TRUE(rows[static_cast<size_t>(s.rank)].insert(layout.local_row(t)).second) << "token " << t;
    }
    int64_t most = 0;
    for (int r = 0; r < layout.ranks(); ++r) {
      const auto& mine = rows[static_cast<size_t>(r)];
      const auto size = static_cast<int64_t>(mine.size());
      ASSERT_EQ(size, layout.local_tokens(r));
      ASSERT_EQ(*mine.begin(), 0);
      ASSERT_EQ(*mine.rbegin(), size - 1);
      const auto positions = layout.positions(r);
      ASSERT_EQ(static_cast<int64_t>(positions.size()), size);
      ASSERT_TRUE(std::is_sorted(positions.begin(), positions.end()));
      for (int64_t row = 0; row < size; ++row) ASSERT_EQ(layout.local_row(positions[static_cast<size_t>(row)]), row);
      const auto mine_in_order = layout.segments_of(r);
      ASSERT_EQ(std::ssize(mine_in_order), layout.spec().fold * layout.spec().grain);
      for (size_t i = 0; i < mine_in_order.size(); ++i) {
        ASSERT_EQ(layout.spec().local_index(mine_in_order[i].index), static_cast<int64_t>(i));
      }
      most = std::max(most, size);
    }
    ASSERT_EQ(most, layout.max_local_tokens());
  });
}

TEST(Layout, SegmentsAreWholeChunksOfNearlyEqualSize) {
  for_random_layouts([](const SequenceLayout& layout) {
    const int64_t chunk = layout.spec().chunk;
    int64_t shortest = layout.tokens(), longest = 0, expected_begin = 0;
    for (const Segment& s : layout.segments()) {
      ASSERT_EQ(s.begin, expected_begin);
      ASSERT_EQ(s.begin % chunk, 0);
      ASSERT_GT(s.size(), 0);
      if (layout.segments().size() > 1) {
        ASSERT_GE(s.size(), 3);
      }
      shortest = std::min(shortest, s.size());
      longest = std::max(longest, s.size());
      expected_begin = s.end;
    }
    ASSERT_EQ(expected_begin, layout.tokens());
    ASSERT_LE(longest - shortest, chunk);
    if (layout.tokens() % (chunk * static_cast<int64_t>(layout.segments().size())) == 0) {
      ASSERT_EQ(longest, shortest);
      ASSERT_EQ(layout.alignment().unit, longest);
    }
    // No other cut at chunk granularity gives the busiest rank fewer chunks, where grain is 1.
    const int64_t grain = layout.spec().grain;
    ASSERT_LE(ceil_div(layout.max_local_tokens(), chunk),
              ceil_div(ceil_div(layout.tokens(), chunk), int64_t{layout.ranks()}) + grain - 1);
    for (int r = 0; r < layout.ranks(); ++r) {
      ASSERT_LE(layout.max_local_tokens() - layout.local_tokens(r), 2 * grain * chunk);
    }
  });
}

TEST(Layout, HalosAreTheTokensBefore) {
  for_random_layouts([](const SequenceLayout& layout) {
    const auto halos = layout.halos();
    ASSERT_EQ(halos.size() + 1, layout.segments().size());
    for (size_t i = 0; i < halos.size(); ++i) {
      const Halo& h = halos[i];
      ASSERT_EQ(h.to_segment, static_cast<int>(i) + 1);
      const Segment& to = layout.segment(h.to_segment);
      ASSERT_EQ(h.to_rank, to.rank);
      ASSERT_EQ(h.rows, (TokenRange{to.begin - 3, to.begin}));
      for (int64_t t = h.rows.begin; t < h.rows.end; ++t) ASSERT_EQ(layout.rank_of(t), h.from_rank);
    }
  });
}

TEST(Layout, PartsAndKeysOfALayerMatchTokenCounts) {
  for_random_layouts([](const SequenceLayout& layout) {
    for (int l = 0; l < layout.layers(); ++l) {
      const LayerLayout layer = layout.layer(l);
      const int64_t p = layout.transpoint(l);
      for (const Segment& s : layout.segments()) {
        int64_t attention = 0, ssm = 0;
        for (int64_t t = s.begin; t < s.end; ++t) (t < p ? attention : ssm) += 1;
        ASSERT_EQ(layer.attention_part(s).size(), attention);
        ASSERT_EQ(layer.ssm_part(s).size(), ssm);
        if (attention > 0) {
          ASSERT_EQ(layer.attention_part(s).begin, s.begin);
        }
        if (ssm > 0) {
          ASSERT_EQ(layer.ssm_part(s).end, s.end);
        }
      }
      bool keys_travel = false;
      for (int r = 0; r < layout.ranks(); ++r) {
        std::set<int64_t> seen;  // keys that some query of the rank may look at
        for (int64_t t = 0; t < p; ++t) {
          if (layout.rank_of(t) != r) continue;
          for (int64_t key = static_cast<int64_t>(seen.size()); key <= t; ++key) seen.insert(key);
        }
        ASSERT_EQ(layer.keys_needed(r), (TokenRange{0, static_cast<int64_t>(seen.size())})) << "rank " << r;
        for (const Segment& s : layout.segments()) {
          int64_t in_segment = 0;
          for (int64_t t = s.begin; t < s.end; ++t) in_segment += seen.count(t);
          ASSERT_EQ(layer.keys_needed(r, s).size(), in_segment);
          const auto receivers = layer.key_receivers(s);
          const bool receives = std::count(receivers.begin(), receivers.end(), r) == 1;
          ASSERT_EQ(receives, in_segment > 0 && s.rank != r);
          keys_travel |= receives;
        }
      }
      ASSERT_EQ(layer.exchanges_keys(), keys_travel);
    }
  });
}

// An SSM token reads the states of all segments before its own. So does the decay gradient of any token that a later
// SSM token's state depends on.
TEST(Layout, StateFlowsFromEveryTokenToEveryLaterSsmToken) {
  for_random_layouts([](const SequenceLayout& layout) {
    const auto segments = layout.segments();
    for (int l = 0; l < layout.layers(); ++l) {
      const LayerLayout layer = layout.layer(l);
      const int64_t p = layout.transpoint(l);
      std::set<int> feeding, reading, adjoint;
      for (const Segment& from : segments) {
        for (const Segment& to : segments) {
          if (from.index >= to.index) continue;
          for (int64_t t = to.begin; t < to.end; ++t) {
            if (t >= p) feeding.insert(from.index), adjoint.insert(to.index);
          }
        }
      }
      for (const Segment& s : segments) {
        if (s.index > 0 && (feeding.contains(s.index) || adjoint.contains(s.index))) reading.insert(s.index);
      }
      for (const Segment& s : segments) {
        ASSERT_EQ(layer.delivers_adjoint(s), adjoint.count(s.index) == 1) << "segment " << s.index;
        ASSERT_EQ(layer.feeds_state(s), feeding.count(s.index) == 1) << "segment " << s.index;
        ASSERT_EQ(layer.needs_inflow(s), reading.count(s.index) == 1) << "segment " << s.index;
      }
      for (int r = 0; r < layout.ranks(); ++r) {
        const auto reads =
            std::count_if(reading.begin(), reading.end(), [&](int k) { return layout.segment(k).rank == r; });
        ASSERT_EQ(layer.rank_needs_inflow(r), reads > 0);
      }
      ASSERT_EQ(layer.exchanges_state(), layout.ranks() > 1 && !reading.empty());
    }
  });
}

TEST(Layout, AlignmentListsEverySplitSegment) {
  for_random_layouts([](const SequenceLayout& layout) {
    int64_t gcd = 0;
    size_t splits = 0;
    for (int l = 0; l < layout.layers(); ++l) {
      const int64_t p = layout.transpoint(l);
      if (p > 0 && p < layout.tokens()) gcd = std::gcd(gcd, p);
      for (const Segment& s : layout.segments()) {
        const LayerLayout layer = layout.layer(l);
        splits += !layer.attention_part(s).empty() && !layer.ssm_part(s).empty();
      }
    }
    const Alignment alignment = layout.alignment();
    ASSERT_EQ(alignment.gcd, gcd);
    ASSERT_EQ(alignment.splits.size(), splits);
    if (alignment.unit > 0 && gcd % alignment.unit == 0) {
      ASSERT_EQ(splits, 0u);
    }
    for (const SplitSegment& split : alignment.splits) {
      const Segment& s = layout.segment(split.segment);
      ASSERT_TRUE(s.begin < split.transpoint && split.transpoint < s.end);
      ASSERT_EQ(split.transpoint, layout.transpoint(split.layer));
    }
  });
}

TEST(Layout, TargetsAreShiftedBeforeTheSplit) {
  for_random_layouts([](const SequenceLayout& layout) {
    std::vector<int64_t> window(static_cast<size_t>(layout.tokens() + 1));
    std::iota(window.begin(), window.end(), 1000);
    for (int r = 0; r < layout.ranks(); ++r) {
      const auto [inputs, targets] = layout.shard_with_targets(std::span<const int64_t>(window), r);
      const auto positions = layout.positions(r);
      ASSERT_EQ(inputs.size(), positions.size());
      ASSERT_EQ(targets.size(), positions.size());
      for (size_t i = 0; i < inputs.size(); ++i) {
        ASSERT_EQ(inputs[i], 1000 + positions[i]);
        ASSERT_EQ(targets[i], inputs[i] + 1);
      }
    }
  });
}

// The message of the UserError that the layout is refused with.
std::string refusal(const LayoutSpec& spec) {
  try {
    SequenceLayout layout(spec);
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Layout, RefusalNamesTheNumberToChange) {
  EXPECT_NE(refusal({.tokens = 512, .ranks = 4, .fold = 4, .chunk = 64}).find("set parallel.fold to at most 2"),
            std::string::npos);
  EXPECT_NE(refusal({.tokens = 512, .ranks = 12, .fold = 1, .chunk = 64}).find("set parallel.sp to at most 8"),
            std::string::npos);
  EXPECT_EQ(refusal({.tokens = 512, .ranks = 4, .fold = 2, .chunk = 64}), "accepted");
  const std::string tail = refusal({.tokens = 513, .ranks = 9, .fold = 1, .chunk = 64});
  EXPECT_NE(tail.find("into a segment of 1,"), std::string::npos) << tail;
  EXPECT_NE(tail.find("data.seq_len"), std::string::npos) << tail;
  EXPECT_EQ(refusal({.tokens = 515, .ranks = 9, .fold = 1, .chunk = 64}), "accepted");
  EXPECT_EQ(refusal({.tokens = 64, .ranks = 2, .fold = 2, .chunk = 2}), "accepted");
  EXPECT_NE(refusal({.tokens = 8, .ranks = 2, .fold = 2, .chunk = 2}).find("model.chunk to at least 3"),
            std::string::npos);
  EXPECT_NE(refusal({.tokens = 64, .transpoints = {65}}).find("TransPoint 65"), std::string::npos);
  EXPECT_NE(refusal({.tokens = 64, .transpoints = {-1}}).find("TransPoint -1"), std::string::npos);
  EXPECT_NE(refusal({.tokens = 64, .ranks = 0}).find("parallel.sp = 0"), std::string::npos);
  EXPECT_NE(refusal({.tokens = 64, .fold = 0}).find("parallel.fold = 0"), std::string::npos);
  EXPECT_NE(refusal({.tokens = 64, .grain = 0}).find("LayoutSpec::grain = 0"), std::string::npos);
  EXPECT_NE(refusal({.tokens = 512, .ranks = 4, .chunk = 64, .grain = 4}).find("set run.canonical to at most 8"),
            std::string::npos);
  EXPECT_NE(refusal({.tokens = 64, .chunk = 0}).find("model.chunk = 0"), std::string::npos);
  EXPECT_NE(refusal({.tokens = 0}).find("data.seq_len"), std::string::npos);
  EXPECT_EQ(refusal({.tokens = 1, .transpoints = {0, 1}}), "accepted");  // one rank, one segment: no halo to hand over
}

}  // namespace
}  // namespace tmamba
