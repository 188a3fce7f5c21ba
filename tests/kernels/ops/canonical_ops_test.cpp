// The canonical ops compute what the plain ones do, to the steps of their grids, and whatever they add to sums adds up
// to the same bits in any order.
#include "kernels/ops/canonical_ops.h"

#include <cstring>
#include <functional>
#include <limits>

#include "kernels/ops/step_scalars.h"
#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

constexpr int64_t kUnit = 4;

std::unique_ptr<Ops> canonical(int64_t summands = 1) {
  return make_canonical_ops(make_ops(Device::cpu), {.unit = kUnit, .summands = summands});
}

using Call = std::function<Arrays(Runner&, Random&)>;

Arrays row_ops(Runner& r, Random& random) {
  const int64_t N = 11, C = 6, O = 5, V = 7;  // 3 rows left over
  const Tensor x = r.in(random.uniform({N, C})), dy = r.in(random.uniform({N, C})), w_C = r.in(random.uniform({C}));
  const Tensor w_OC = r.in(random.uniform({O, C})), dy_NO = r.in(random.uniform({N, O}));
  const Tensor table = r.in(random.uniform({V, C}));
  Array ids({N}), targets({N});
  for (int64_t n = 0; n < N; ++n) {
    ids(n) = static_cast<double>(n % (V + 1));                    // one of them outside the table
    targets(n) = n == 4 ? -1 : static_cast<double>(n % (V + 1));  // and one not counted
  }
  const Tensor tokens = r.ints(ids), y = r.out({N, C}), rstd = r.out_acc({N}), sum = r.out({N, C});
  const Tensor rows = r.out({N, C}), dtable = r.added_acc({V, C}), dx = r.out({N, C}), dw_C = r.added_acc({C});
  r.ops().embedding_forward({rows, table, tokens, 0});
  r.ops().embedding_backward({dtable, dy, tokens, 0});
  r.ops().rmsnorm_forward({y, rstd, sum, x, dy, w_C, 1e-3});
  r.ops().rmsnorm_backward({dx, dw_C, dy, sum, rstd, w_C, x});
  const Tensor out = r.out({N, O}), dx_linear = r.added({N, C}), dw = r.added_acc({O, C});
  r.ops().linear_forward({out, x, w_OC});
  r.ops().linear_backward_input({dx_linear, dy_NO, w_OC, true});
  r.ops().linear_backward_weight({dw, dy_NO, x});
  const Tensor h = r.out({N, C / 2}), dgate_up = r.out({N, C});
  r.ops().swiglu_forward({h, x});
  r.ops().swiglu_backward({dgate_up, h, x});
  const Tensor logits = r.in(random.uniform({N, V})), max = r.out_acc({N}), sum_exp = r.out_acc({N});
  const Tensor target = r.out_acc({N}), loss = r.added_acc({1}), count = r.added_acc({1}), losses = r.out_acc({N});
  const Tensor labels = r.ints(targets);
  r.ops().cross_entropy_stats({max, sum_exp, target, logits, labels, 0});
  r.ops().cross_entropy_loss({loss, count, losses, max, sum_exp, target, labels});
  r.ops().cross_entropy_gradient({logits, max, sum_exp, labels, 0, 0.125});
  return {{"rows", r.get(rows)},
          {"dtable", r.get_added(dtable)},
          {"y", r.get(y)},
          {"rstd", r.get(rstd)},
          {"sum", r.get(sum)},
          {"dx", r.get(dx)},
          {"dw_C", r.get_added(dw_C)},
          {"out", r.get(out)},
          {"dx_linear", r.get_added(dx_linear)},
          {"dw", r.get_added(dw)},
          {"h", r.get(h)},
          {"dgate_up", r.get(dgate_up)},
          {"losses", r.get(losses)},
          {"loss", r.get_added(loss)},
          {"count", r.get_added(count)},
          {"dlogits", r.get(logits)}};
}

Arrays mixer_rows(Runner& r, Random& random) {
  const int64_t B = 2, T = 6, H = 3, D = 4, N = B * T, W = 4;
  const Tensor raw = r.in(random.uniform({N, H})), bias = r.in(random.uniform({H})), A_log = r.in(random.uniform({H}));
  const Tensor dt = r.out_acc({N, H}), log_a = r.out_acc({N, H}), draw = r.out({N, H});
  const Tensor dbias = r.added_acc({H}), dA_log = r.added_acc({H});
  r.ops().dt_forward({dt, log_a, raw, bias, A_log});
  r.ops().dt_backward({draw, dbias, dA_log, dt, log_a, raw, bias, A_log});
  const Tensor y = r.in(random.uniform({B, T, H, D})), z = r.in(random.uniform({B, T, H, D}));
  const Tensor w = r.in(random.uniform({H, D})), out = r.out({B, T, H, D}), rstd = r.out_acc({B, T, H});
  const Tensor dy = r.out({B, T, H, D}), dz = r.out({B, T, H, D}), dw = r.added_acc({H, D});
  r.ops().gated_norm_forward({out, rstd, y, z, w, 1e-3});
  r.ops().gated_norm_backward({dy, dz, dw, out, y, z, rstd, w});
  const Tensor x = r.in(random.uniform({B, T, D})), halo = r.in(random.uniform({B, W - 1, D}));
  const Tensor taps = r.in(random.uniform({D, W})), b = r.in(random.uniform({D})), conv = r.out({B, T, D});
  const Tensor dx = r.out({B, T, D}), dhalo = r.out({B, W - 1, D}), dtaps = r.added_acc({D, W}), db = r.added_acc({D});
  r.ops().conv_silu_forward({conv, x, halo, taps, b});
  r.ops().conv_silu_backward({dx, dhalo, dtaps, db, conv, x, halo, taps, b});
  // Two heads of width 2, the first four tokens rotated, keys apart.
  const Tensor qkv = r.in(random.uniform({B, T, 12})), rows = r.in(random.uniform({B, W - 1, 12}));
  const Tensor w12 = r.in(random.uniform({12, W})), b12 = r.in(random.uniform({12}));
  const Tensor turned = r.out({B, T, 12}), k_rot = r.out({B, 4, 2, 2}), dqkv = r.out({B, T, 12});
  const Tensor drows = r.out({B, W - 1, 12}), dw12 = r.added_acc({12, W}), db12 = r.added_acc({12});
  r.ops().conv_silu_rope_forward({turned, k_rot, qkv, rows, w12, b12, 2, 4, 5, 100});
  r.ops().conv_silu_rope_backward({dqkv, drows, dw12, db12, r.in(random.uniform({B, T, 12})),
                                   r.in(random.uniform({B, 4, 2, 2})), qkv, rows, w12, b12, 2, 4, 5, 100});
  return {{"dt", r.get(dt)},
          {"log_a", r.get(log_a)},
          {"draw", r.get(draw)},
          {"dbias", r.get_added(dbias)},
          {"dA", r.get_added(dA_log)},
          {"out", r.get(out)},
          {"dy", r.get(dy)},
          {"dz", r.get(dz)},
          {"dw", r.get_added(dw)},
          {"conv", r.get(conv)},
          {"turned", r.get(turned)},
          {"k_rot", r.get(k_rot)},
          {"dqkv", r.get(dqkv)},
          {"drows", r.get(drows)},
          {"dw12", r.get_added(dw12)},
          {"db12", r.get_added(db12)},
          {"dx", r.get(dx)},
          {"dhalo", r.get(dhalo)},
          {"dtaps", r.get_added(dtaps)},
          {"db", r.get_added(db)}};
}

Arrays attention(Runner& r, Random& random) {
  const int64_t B = 2, T = 5, S = 9, H = 2, D = 4, begin = 3;  // the last key is seen by none
  const Tensor q = r.in(random.uniform({B, T, H, D})), k = r.in(random.uniform({B, S, H, D}));
  const Tensor v = r.in(random.uniform({B, S, H, D})), d_o = r.in(random.uniform({B, T, H, D}));
  const Tensor q_rot = r.out({B, T, H, D}), q_back = r.out({B, T, H, D});
  r.ops().rope_forward({q_rot, q, begin, 100});
  r.ops().rope_backward({q_back, q_rot, begin, 100});
  const Tensor o = r.out({B, T, H, D}), lse = r.out_acc({B, T, H});
  const Tensor dq = r.out({B, T, H, D}), dk = r.added({B, S, H, D}), dv = r.added({B, S, H, D});
  r.ops().attention_forward({o, lse, q_rot, k, v, begin, 0.5});
  r.ops().attention_backward({dq, dk, dv, d_o, o, lse, q_rot, k, v, begin, 0.5});
  return {{"q_rot", r.get(q_rot)}, {"q_back", r.get(q_back)}, {"o", r.get(o)},
          {"dq", r.get(dq)},       {"dk", r.get_added(dk)},   {"dv", r.get_added(dv)}};
}

Arrays scan(Runner& r, Random& random) {
  const int64_t B = 2, T = 7, H = 2, K = 3, D = 4;
  const Tensor q = r.in(random.uniform({B, T, H, K})), k = r.in(random.uniform({B, T, H, K}));
  const Tensor v = r.in(random.uniform({B, T, H, D})), dy = r.in(random.uniform({B, T, H, D}));
  const Tensor dt = r.in_acc(random.uniform({B, T, H}, 0.1, 1)), log_a = r.in_acc(random.uniform({B, T, H}, -1, 0));
  const Tensor skip = r.in(random.uniform({H})), initial = r.in_acc(random.uniform({B, H, K, D}));
  const Tensor y = r.out({B, T, H, D}), final_state = r.out_acc({B, H, K, D}), decay = r.out_acc({B, H});
  r.ops().ssd_forward({.y_BTHD = y,
                       .final_state_BHKD = final_state,
                       .log_decay_BH = decay,
                       .q_BTHD = q,
                       .k_BTHD = k,
                       .v_BTHD = v,
                       .dt_BTH = dt,
                       .log_a_BTH = log_a,
                       .D_H = skip,
                       .initial_state_BHKD = initial,
                       .chunk = 2});
  SsdBackward args{.dq_BTHD = r.out({B, T, H, K}),
                   .dk_BTHD = r.out({B, T, H, K}),
                   .dv_BTHD = r.added({B, T, H, D}),
                   .ddt_BTH = r.out_acc({B, T, H}),
                   .dlog_a_BTH = r.out_acc({B, T, H}),
                   .dD_H = r.added_acc({H}),
                   .dinitial_state_BHKD = r.out_acc({B, H, K, D}),
                   .dy_BTHD = dy,
                   .dfinal_state_BHKD = final_state,
                   .q_BTHD = q,
                   .k_BTHD = k,
                   .v_BTHD = v,
                   .dt_BTH = dt,
                   .log_a_BTH = log_a,
                   .D_H = skip,
                   .initial_state_BHKD = initial,
                   .chunk = 2,
                   .accumulate_v = true};
  r.ops().ssd_backward(args);
  // A prefix: without outputs, and so without D.
  SsdBackward prefix = args;
  prefix.dq_BTHD = {}, prefix.dD_H = {}, prefix.dy_BTHD = {}, prefix.q_BTHD = {}, prefix.D_H = {};
  prefix.dk_BTHD = r.out({B, T, H, K}), prefix.dv_BTHD = r.out({B, T, H, D}), prefix.accumulate_v = false;
  prefix.ddt_BTH = r.out_acc({B, T, H}), prefix.dlog_a_BTH = r.out_acc({B, T, H});
  prefix.dinitial_state_BHKD = r.out_acc({B, H, K, D});
  r.ops().ssd_backward(prefix);
  const Tensor adjoint = r.out_acc({B, H, K, D}), adjoint_decay = r.out_acc({B, H});
  r.ops().ssd_adjoint({adjoint, adjoint_decay, q, dy, log_a, 2});
  r.ops().ssd_decay({adjoint, log_a});
  return {{"y", r.get(y)},
          {"final_state", r.get(final_state)},
          {"decay", r.get(decay)},
          {"dq", r.get(args.dq_BTHD)},
          {"dk", r.get(args.dk_BTHD)},
          {"dv", r.get_added(args.dv_BTHD)},
          {"ddt", r.get(args.ddt_BTH)},
          {"dlog_a", r.get(args.dlog_a_BTH)},
          {"dD", r.get_added(args.dD_H)},
          {"dinitial", r.get(args.dinitial_state_BHKD)},
          {"prefix dk", r.get(prefix.dk_BTHD)},
          {"prefix dinitial", r.get(prefix.dinitial_state_BHKD)},
          {"adjoint", r.get(adjoint)},
          {"adjoint_decay", r.get(adjoint_decay)}};
}

Arrays optimizer(Runner& r, Random& random) {
  const Tensor squares = r.out_acc({1}), grad = r.in_acc(random.uniform({5, 3})), bias = r.in_acc(random.uniform({4}));
  const std::vector<ConstTensor> gradients{grad, bias};
  r.ops().sum_squares({squares, gradients});
  std::vector<AdamwTensor> tensors;
  for (const Tensor& g : {grad, bias}) {
    const std::vector<int64_t> sizes = g.dims() == 1 ? std::vector<int64_t>{4} : std::vector<int64_t>{5, 3};
    const Tensor param = r.in_acc(random.uniform(sizes));
    tensors.push_back({.param = param,
                       .master = param,
                       .m = r.in_acc(random.uniform(sizes)),
                       .v = r.in_acc(random.uniform(sizes, 0, 1)),
                       .grad = g,
                       .decay = g.dims() == 2});
  }
  StepScalars step{.lr = 0.1, .bias_correction1 = 1, .bias_correction2 = 1, .grad_scale = 0.5, .applied = 1};
  r.ops().adamw({tensors, {.weight_decay = 0.1}, scalars_tensor(step)});
  return {{"squares", r.get(squares)},
          {"matrix", r.get(tensors[0].param)},
          {"vector", r.get(tensors[1].param)},
          {"m", r.get(tensors[0].m)},
          {"v", r.get(tensors[1].v)}};
}

TEST(CanonicalOps, ComputeWhatThePlainOnesDo) {
  const std::map<std::string, Call> calls{{"rows", row_ops},
                                          {"mixer rows", mixer_rows},
                                          {"attention", attention},
                                          {"scan", scan},
                                          {"optimizer", optimizer}};
  for (const auto& [name, call] : calls) {
    for (int64_t pad : {0, 3}) {
      if (pad > 0 && name == "optimizer") continue;  // takes contiguous tensors alone
      const auto result_of = [&](Ops& ops) {
        Runner runner(ops, DType::f64, pad);
        Random random(11);
        const Arrays result = call(runner, random);
        runner.expect_padding_untouched();
        return result;
      };
      const auto ops = canonical();
      const Arrays plain = result_of(test_ops()), result = result_of(*ops);
      ASSERT_EQ(result.size(), plain.size());
      for (const auto& [array, values] : plain) {
        ASSERT_GT(norm(values), 0) << name << " " << array;
        // The loss is a sum on the coarsest grid, of three units.
        EXPECT_LE(relative_error(result.at(array), values), array == "loss" ? 3 * 0x1p-25 / norm(values) : 1e-10)
            << name << " " << array << " pad " << pad << " seed 11";
      }
    }
  }
}

// Adds what six units give to gradients in different orders, on one rank or on several.
struct Sums {
  Array dw, dtable, dk;
};

constexpr int64_t kUnits = 6, kIn = 9, kOut = 7;

Sums sums_of(Ops& ops, const std::vector<std::vector<int64_t>>& units_of_ranks) {
  Random random(5);
  const int64_t N = kUnits * kUnit;
  const Array x = random.uniform({N, kIn}), dy = random.uniform({N, kOut}), q = random.uniform({1, N, 1, 4});
  const Array k = random.uniform({1, N, 1, 4}), v = random.uniform({1, N, 1, 4}), d_o = random.uniform({1, N, 1, 4});
  Sums total{Array({kOut, kIn}), Array({3, kIn}), Array({1, N, 1, 4})};
  for (const std::vector<int64_t>& units : units_of_ranks) {
    Runner r(ops, DType::f64);
    const Tensor dw = r.make(Array({kOut, kIn}), DType::f64), dtable = r.make(Array({3, kIn}), DType::f64);
    const Tensor dk = r.make(Array({1, N, 1, 4}), DType::f64), dv = r.make(Array({1, N, 1, 4}), DType::f64);
    for (int64_t unit : units) {
      const int64_t at = unit * kUnit;
      Array ids({kUnit});
      for (int64_t n = 0; n < kUnit; ++n) ids(n) = static_cast<double>((at + n) % 3);
      ops.linear_backward_weight({dw, r.in(dy.slice(0, at, kUnit)), r.in(x.slice(0, at, kUnit))});
      ops.embedding_backward({dtable, r.in(x.slice(0, at, kUnit)), r.ints(ids), 0});
      const auto of = [&](const Array& all) { return r.in(all.slice(1, at, kUnit)); };
      const Tensor o = r.out({1, kUnit, 1, 4}), lse = r.out_acc({1, kUnit, 1}), dq = r.out({1, kUnit, 1, 4});
      ops.attention_forward({o, lse, of(q), r.in(k), r.in(v), at, 0.5});
      ops.attention_backward({dq, dk, dv, of(d_o), o, lse, of(q), r.in(k), r.in(v), at, 0.5});
    }
    const auto add = [&](Array& to, const Tensor& from) {
      const Array values = r.get(from);
      for (size_t i = 0; i < to.data.size(); ++i) to.data[i] += values.data[i];
    };
    add(total.dw, dw), add(total.dtable, dtable), add(total.dk, dk);
  }
  return total;
}

bool same_bits(const Array& a, const Array& b) {
  return std::memcmp(a.data.data(), b.data.data(), a.data.size() * sizeof(double)) == 0;
}

TEST(CanonicalOps, SumsDoNotDependOnOrderOrRanks) {
  const auto ops = canonical(3);
  const Sums one = sums_of(*ops, {{0, 1, 2, 3, 4, 5}}), plain = sums_of(test_ops(), {{0, 1, 2, 3, 4, 5}});
  for (const std::vector<std::vector<int64_t>>& deal :
       {std::vector<std::vector<int64_t>>{{5, 4, 3, 2, 1, 0}}, {{0, 5}, {1, 4}, {2, 3}}, {{3, 4, 5}, {0, 1, 2}}}) {
    const Sums sums = sums_of(*ops, deal), plain_sums = sums_of(test_ops(), deal);
    EXPECT_TRUE(same_bits(sums.dw, one.dw) && same_bits(sums.dtable, one.dtable) && same_bits(sums.dk, one.dk));
    // The plain ops' sums do depend on it.
    EXPECT_FALSE(same_bits(plain_sums.dw, plain.dw));
    EXPECT_FALSE(same_bits(plain_sums.dk, plain.dk));
  }
}

// A call for all rows is the calls for its units, with rows left over first.
TEST(CanonicalOps, RowsAreProcessedUnitByUnit) {
  const auto ops = canonical();
  Random random(3);
  const int64_t N = 2 * kUnit + 3;
  const Array x = random.uniform({N, 40}), w = random.uniform({33, 40});
  Runner r(*ops, DType::f64), plain(test_ops(), DType::f64);
  const Tensor y = r.out({N, 33});
  ops->linear_forward({y, r.in(x), r.in(w)});
  const std::vector<std::pair<int64_t, int64_t>> parts{{0, 3}, {3, kUnit}, {3 + kUnit, kUnit}};
  for (const auto& [begin, count] : parts) {
    const Tensor part = plain.out({count, 33});
    test_ops().linear_forward({part, plain.in(x.slice(0, begin, count)), plain.in(w)});
    EXPECT_TRUE(same_bits(plain.get(part), r.get(y).slice(0, begin, count))) << begin;
  }
}

TEST(CanonicalOps, SumsOutOfRangeAreRefusedAndNonFiniteOnesPass) {
  const auto add = [](int64_t summands, double from, double value) {
    const auto ops = canonical(summands);
    Runner r(*ops, DType::f64);
    const Tensor dw = r.make(Array({1, 1}, from), DType::f64);
    ops->linear_backward_weight({dw, r.in(Array({1, 1}, value)), r.in(Array({1, 1}, 1))});
    return r.get(dw).data[0];
  };
  EXPECT_EQ(add(1, 100, 28), 128);
  EXPECT_THROW(add(1, 100, 29), Error);
  EXPECT_THROW(add(1, -100, -29), Error);
  EXPECT_EQ(add(4, 30, 2), 32);
  try {
    add(4, 30, 3);
    ADD_FAILURE() << "33 was accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("run.canonical: the sum of linear_backward_weight dw_OI reached 33"),
              std::string::npos)
        << error.what();
  }
  EXPECT_TRUE(std::isnan(add(1, 0, std::numeric_limits<double>::quiet_NaN())));
  EXPECT_TRUE(std::isinf(add(1, 0, std::numeric_limits<double>::infinity())));
  EXPECT_TRUE(std::isnan(add(1, std::numeric_limits<double>::quiet_NaN(), 1)));
}

TEST(CanonicalOps, TakeFloat64Alone) {
  const auto ops = canonical();
  Runner r(*ops, DType::f32);
  EXPECT_THROW(ops->linear_backward_weight({r.added_acc({2, 2}), r.in(Array({4, 2})), r.in(Array({4, 2}))}), Error);
  EXPECT_THROW(make_canonical_ops(make_ops(Device::cpu), {.unit = 0}), Error);
}

}  // namespace
}  // namespace tmamba::test
