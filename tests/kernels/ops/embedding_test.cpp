#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

// A shard of the rows [begin, begin + V) of a vocabulary of `whole` words.
struct EmbeddingCase : OpCase {
  int64_t N, C, V, begin;

  EmbeddingCase(int64_t N_in, int64_t C_in, int64_t V_in, int64_t begin_in, int64_t whole)
      : N(N_in), C(C_in), V(V_in), begin(begin_in) {
    name = str("embedding N ", N, " C ", C, " rows ", begin, " .. ", begin + V, " of ", whole);
    seed = 12;
    Random random(seed);
    in["table"] = random.uniform({V, C});
    in["tokens"] = random.uniform({N}, 0, static_cast<double>(whole));
    for (double& token : in["tokens"].data) token = std::min(std::floor(token), static_cast<double>(whole - 1));
    in["grad_y"] = random.uniform({N, C});
  }

  Arrays run(Runner& r) const override {
    const Tensor table = r.in(in.at("table")), tokens = r.ints(in.at("tokens")), dy = r.in(in.at("grad_y"));
    const Tensor y = r.out({N, C}), dtable = r.added_acc({V, C});
    r.ops().embedding_forward({y, table, tokens, begin});
    r.ops().embedding_backward({dtable, dy, tokens, begin});
    return {{"y", r.get(y)}, {"dtable", r.get_added(dtable)}};
  }

  Arrays reference() const override {
    Array y({N, C}), dtable({V, C});
    for (int64_t n = 0; n < N; ++n) {
      const int64_t row = static_cast<int64_t>(in.at("tokens")(n)) - begin;
      if (row < 0 || row >= V) continue;
      for (int64_t c = 0; c < C; ++c) {
        y(n, c) = in.at("table")(row, c);
        dtable(row, c) += in.at("grad_y")(n, c);
      }
    }
    return {{"y", y}, {"dtable", dtable}};
  }
};

std::vector<EmbeddingCase> cases() {
  return {{1, 8, 5, 0, 5}, {45, 24, 17, 0, 17}, {257, 130, 10, 10, 31}, {900, 8, 3, 4, 9}};
}

TEST(Embedding, MatchesPlainLoops) {
  for (const EmbeddingCase& c : cases()) check_reference(c);
}

TEST(Embedding, GradientsMatchFiniteDifferences) {
  for (EmbeddingCase& c : cases()) check_gradients(c);
}

TEST(Embedding, TypesLayoutsAndThreads) {
  for (const EmbeddingCase& c : cases()) check_variants(c, 16);
}

// Outputs of the shards of a vocabulary add up to those of the whole; the shards' gradients are its rows.
TEST(Embedding, ShardsAddUpToTheWhole) {
  const EmbeddingCase whole(100, 8, 31, 0, 31);
  const Arrays all = run(whole, DType::f64);
  Array sum({100, 8});
  for (const auto& [begin, count] : std::vector<std::pair<int64_t, int64_t>>{{0, 11}, {11, 11}, {22, 9}}) {
    EmbeddingCase shard = whole;
    shard.V = count, shard.begin = begin;
    shard.in["table"] = whole.in.at("table").slice(0, begin, count);
    const Arrays part = run(shard, DType::f64);
    for (size_t i = 0; i < sum.data.size(); ++i) sum.data[i] += part.at("y").data[i];
    EXPECT_EQ(relative_error(part.at("dtable"), all.at("dtable").slice(0, begin, count)), 0.0);
  }
  EXPECT_EQ(relative_error(sum, all.at("y")), 0.0);
}

TEST(Embedding, NoTokens) { EXPECT_EQ(norm(run(EmbeddingCase(0, 8, 3, 0, 3), DType::f32).at("dtable")), 0.0); }

}  // namespace
}  // namespace tmamba::test
