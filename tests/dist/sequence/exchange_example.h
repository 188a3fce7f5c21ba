// One step of all layers of a random example, on the ranks that share its sequences, in the order of the plan.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <optional>

#include "dist/planner/plan.h"
#include "dist/sequence/exchange.h"
#include "kernels/base/rng.h"
#include "tests/dist/sequence/exchange_tools.h"

namespace tmamba {

struct Example {
  PlanDims dims;
  Transport transport;
  uint64_t seed = 0;
  int64_t pad = 0;
  std::string text() const {
    std::string text = str("seed ", seed, " ", name_of(transport), " sp ", dims.sp, " fold ", dims.fold, " grain ",
                           dims.grain, " tokens ", dims.tokens, " chunk ", dims.chunk, " W ", dims.conv_width, " B ",
                           dims.batch, " H ", dims.heads, " D ", dims.head_dim, " pad ", pad, " P");
    for (int64_t p : dims.transpoints) text += str(" ", p);
    return text;
  }
};

// A sequence that `sp` ranks can cut, with TransPoints at the ends, at borders, beside them and inside segments.
inline Example random_example(uint64_t seed, int sp, int fold) {
  const Philox random(seed, stream_id("exchange test"));
  uint64_t counter = 0;
  const auto below = [&](int64_t end) {
    return static_cast<int64_t>(random.uniform(counter++) * static_cast<double>(end));
  };
  const int64_t grain = 1 + below(3), K = int64_t{fold} * sp * grain, chunk = 1 + below(4), W = 2 + below(3);
  const int64_t chunks_needed = ceil_div(W - 1, chunk) + 1;
  Example example{.dims = {.dim = 8,
                           .heads = 1 + below(3),
                           .head_dim = 2 + below(2),
                           .ffn = 8,
                           .vocab = 8,
                           .conv_width = W,
                           .chunk = chunk,
                           .tokens = K * chunks_needed * chunk + below(2 * K * chunk),
                           .batch = 1 + below(2),
                           .activation_bytes = 8,
                           .state_bytes = 8,
                           .sp = sp,
                           .fold = fold,
                           .grain = static_cast<int>(grain)},
                  .transport = {},
                  .seed = seed,
                  .pad = below(2)};
  const int64_t T = example.dims.tokens;
  const SequenceLayout layout(example.dims.layout());
  const auto border = [&] { return layout.segment(static_cast<int>(below(K))).begin; };
  example.dims.transpoints = {0, T, border(), border() + 1, std::max<int64_t>(0, border() - 1), below(T)};
  return example;
}

class Step {
 public:
  Step(const Example& example, Communicator& comm)
      : dims_(example.dims),
        seed_(example.seed),
        pad_(example.pad),
        layout_(dims_.layout()),
        recorder_(comm),
        transport_(example.transport),
        exchange_(layout_, recorder_, checked_ops()),
        decays_(static_cast<size_t>(layout_.layers())) {}

  void run() {
    for (int l = 0; l < layout_.layers(); ++l) {
      if (transport_.head_parallel) {
        heads(l, {"q", "k", "v", "dt"}, false);
        heads(l, {"y"}, true);
        continue;
      }
      halo(l);
      keys(l);
      states(l);
    }
    for (int l = layout_.layers() - 1; l >= 0; --l) {
      if (transport_.head_parallel) {
        heads(l, {"dy"}, false);
        heads(l, {"dq", "dk", "dv", "ddt"}, true);
        continue;
      }
      keys(l);
      adjoints(l);
      key_gradients(l);
      halo_gradients(l);
    }
  }

  const std::vector<Call>& calls() const { return recorder_.calls; }

 private:
  int64_t B() const { return dims_.batch; }
  int64_t H() const { return dims_.heads; }
  int64_t D() const { return dims_.head_dim; }
  int64_t E() const { return D() * D(); }
  int64_t X() const { return 3 * H() * D(); }
  int64_t W() const { return dims_.conv_width; }
  int64_t K() const { return std::ssize(layout_.segments()); }
  int64_t local_segments() const { return std::ssize(exchange_.segments()); }
  const Segment& local(int64_t i) const { return exchange_.segments()[static_cast<size_t>(i)]; }

  // A number in [-1, 1) of a name and up to five indices, the same on all ranks.
  double value(std::string_view name, int layer, const Index& i, int64_t extra = 0) const {
    uint64_t counter = static_cast<uint64_t>(layer);
    for (int64_t index : {i[0], i[1], i[2], i[3], extra}) counter = counter * 1009 + static_cast<uint64_t>(index);
    return 2 * Philox(seed_, stream_id(name)).uniform(counter) - 1;
  }

  // Ops of the host that must not be called while memory is measured.
  ExchangeOps checked_ops() {
    const ExchangeOps ops = host_ops();
    const auto touch = [this] { EXPECT_FALSE(measuring_) << "data touched while measuring"; };
    return {.copy = [=](Tensor y, ConstTensor x) { touch(), ops.copy(y, x); },
            .add = [=](Tensor y, ConstTensor x) { touch(), ops.add(y, x); },
            .zero = [=](Tensor x) { touch(), ops.zero(x); },
            .scan = [=](Tensor o, ConstTensor i, ConstTensor d, bool r) { touch(), ops.scan(o, i, d, r); }};
  }

  // verb(arena, measuring) over a measuring arena, then over one with exactly that memory, full of NaN.
  template <class Verb>
  void measure_and_run(Verb verb) {
    const size_t calls_before = recorder_.calls.size();
    Arena measured(Device::cpu);
    measuring_ = true;
    verb(measured, true).finish();
    measuring_ = false;
    EXPECT_EQ(recorder_.calls.size(), calls_before) << "messages while measuring";
    Arena real(std::max<size_t>(measured.peak(), 1), Device::cpu);
    std::fill_n(real.take({0}, DType::f64).data<double>(), measured.peak() / sizeof(double), kNaN);
    verb(real, false).finish();
    EXPECT_EQ(real.peak(), measured.peak());
    if (layout_.segments().size() == 1) {
      EXPECT_EQ(measured.peak(), 0u) << "one segment needs no staging";
    }
  }
  static Tensor pick(const Host& host, bool measuring) { return measuring ? host.shadow : host.x; }

  // Every element of x equals expected(index), bit for bit (0 and -0 are equal).
  template <class F>
  void expect(const char* what, const ConstTensor& x, F expected) const {
    int wrong = 0;
    for_each_index(x, [&](const Index& i) {
      const double want = expected(i);
      if (bits(at(x, i) + 0.0) == bits(want + 0.0) || ++wrong > 3) return;
      ADD_FAILURE() << what << " [" << i[0] << ", " << i[1] << ", " << i[2] << ", " << i[3] << "] is " << at(x, i)
                    << ", expected " << want;
    });
  }

  void halo(int l) {
    Host pre({B(), exchange_.local_tokens(), X()}, pad_);
    const std::vector<int64_t> positions = layout_.positions(exchange_.rank());
    const auto row = [&](int64_t b, int64_t t, int64_t x) { return value("pre", l, {b, t, x}); };
    pre.fill([&](const Index& i) { return row(i[0], positions[static_cast<size_t>(i[1])], i[2]); });
    Host halo({local_segments(), B(), W() - 1, X()}, pad_);
    measure_and_run([&](Arena& arena, bool m) { return exchange_.conv_halo(arena, pick(halo, m), pick(pre, m)); });
    expect("halo", halo.x, [&](const Index& i) {
      const int64_t t = local(i[0]).begin - (W() - 1) + i[2];
      return t < 0 ? 0.0 : row(i[1], t, i[3]);
    });
  }

  void halo_gradients(int l) {
    const std::vector<int64_t> positions = layout_.positions(exchange_.rank());
    const auto row = [&](int64_t b, int64_t t, int64_t x) { return value("dpre", l, {b, t, x}); };
    const auto grad = [&](int64_t k, int64_t b, int64_t w, int64_t x) { return value("dhalo", l, {k, b, w, x}); };
    Host dpre({B(), exchange_.local_tokens(), X()}, pad_), dhalo({local_segments(), B(), W() - 1, X()}, pad_);
    dpre.fill([&](const Index& i) { return row(i[0], positions[static_cast<size_t>(i[1])], i[2]); });
    dhalo.fill([&](const Index& i) { return grad(local(i[0]).index, i[1], i[2], i[3]); });
    measure_and_run(
        [&](Arena& arena, bool m) { return exchange_.conv_halo_backward(arena, pick(dpre, m), pick(dhalo, m)); });
    expect("dpre", dpre.x, [&](const Index& i) {
      const int64_t t = positions[static_cast<size_t>(i[1])];
      const Segment& s = layout_.segment_at(t);
      const int64_t w = t - (s.end - (W() - 1));
      const bool in_halo = w >= 0 && s.index + 1 < K();
      return in_halo ? row(i[0], t, i[2]) + grad(s.index + 1, i[0], w, i[2]) : row(i[0], t, i[2]);
    });
  }

  // Positions of the local prefix tokens.
  std::vector<int64_t> prefix(const LayerLayout& layer) const {
    std::vector<int64_t> positions;
    for (int64_t t : layout_.positions(exchange_.rank())) {
      if (t < layer.transpoint()) positions.push_back(t);
    }
    return positions;
  }
  // Whether to pass the local keys as the ones needed: allowed where they are the same tokens.
  bool shared_memory(const LayerLayout& layer, int l) const {
    return l % 2 == 1 && layer.keys_needed(exchange_.rank()).end == std::ssize(prefix(layer));
  }

  void keys(int l) {
    const LayerLayout layer = layout_.layer(l);
    const std::vector<int64_t> positions = prefix(layer);
    const int64_t S = layer.keys_needed(exchange_.rank()).end;
    Host k({B(), std::ssize(positions), H(), D()}, pad_), v({B(), std::ssize(positions), H(), D()}, pad_);
    const auto of = [&](const char* name, const Index& i, int64_t t) { return value(name, l, {i[0], t, i[2], i[3]}); };
    k.fill([&](const Index& i) { return of("k", i, positions[static_cast<size_t>(i[1])]); });
    v.fill([&](const Index& i) { return of("v", i, positions[static_cast<size_t>(i[1])]); });
    // Contiguous in even layers, so that keys arrive in place.
    Host all_k({B(), S, H(), D()}, l % 2 ? pad_ : 0), all_v({B(), S, H(), D()}, l % 2 ? pad_ : 0);
    const bool shared = shared_memory(layer, l);
    const Host &needed_k = shared ? k : all_k, &needed_v = shared ? v : all_v;
    measure_and_run([&](Arena& arena, bool m) {
      if (S == 0) return exchange_.gather_keys(arena, layer, transport_.keys, {}, {}, pick(k, m), pick(v, m));
      return exchange_.gather_keys(arena, layer, transport_.keys, pick(needed_k, m), pick(needed_v, m), pick(k, m),
                                   pick(v, m));
    });
    expect("k", needed_k.x, [&](const Index& i) { return of("k", i, i[1]); });
    expect("v", needed_v.x, [&](const Index& i) { return of("v", i, i[1]); });
  }

  void key_gradients(int l) {
    const LayerLayout layer = layout_.layer(l);
    const std::vector<int64_t> positions = prefix(layer);
    const int64_t S = layer.keys_needed(exchange_.rank()).end;
    // Of very different sizes, so that the order of a sum shows.
    const auto term = [&](const char* name, int rank, const Index& i, int64_t t) {
      return std::ldexp(value(name, l, {i[0], t, i[2], i[3]}, rank), 10 * rank % 23);
    };
    const bool shared = shared_memory(layer, l);
    Host dk({B(), std::ssize(positions), H(), D()}, pad_), dv({B(), std::ssize(positions), H(), D()}, pad_);
    Host all_dk({B(), S, H(), D()}, l % 2 ? pad_ : 0), all_dv({B(), S, H(), D()}, l % 2 ? pad_ : 0);
    Host &found_dk = shared ? dk : all_dk, &found_dv = shared ? dv : all_dv;
    found_dk.fill([&](const Index& i) { return term("dk", exchange_.rank(), i, i[1]); });
    found_dv.fill([&](const Index& i) { return term("dv", exchange_.rank(), i, i[1]); });
    measure_and_run([&](Arena& arena, bool m) {
      if (S == 0) {
        return exchange_.return_key_gradients(arena, layer, transport_.keys, pick(dk, m), pick(dv, m), {}, {});
      }
      return exchange_.return_key_gradients(arena, layer, transport_.keys, pick(dk, m), pick(dv, m), pick(found_dk, m),
                                            pick(found_dv, m));
    });
    const auto sum = [&](const char* name, const Index& i) {
      const int64_t t = positions[static_cast<size_t>(i[1])];
      double total = 0;
      for (int r = 0; r < layout_.ranks(); ++r) {
        if (t < layer.keys_needed(r).end) total += term(name, r, i, t);
      }
      return total;
    };
    expect("dk", dk.x, [&](const Index& i) { return sum("dk", i); });
    expect("dv", dv.x, [&](const Index& i) { return sum("dv", i); });
  }

  double decay(int l, int64_t k, int64_t b, int64_t h) const { return value("decay", l, {k, b, h}) - 1; }

  // The scan on the whole sequence: what one rank with all K segments has.
  Host whole_scan(int l, const LayerLayout& layer, bool reverse) const {
    Host in({K(), B(), H(), E()}, 0), out({K(), B(), H(), E()}, 0), decays({K(), B(), H()}, 0);
    in.fill([&](const Index& i) {
      const Segment& s = layout_.segment(static_cast<int>(i[0]));
      return (reverse ? layer.delivers_adjoint(s) : layer.feeds_state(s)) ? value(reverse ? "adjoint" : "state", l, i)
                                                                          : 0;
    });
    decays.fill([&](const Index& i) { return decay(l, i[0], i[1], i[2]); });
    host_ops().scan(out.x, in.x, decays.x, reverse);
    expect_closed_form(out.x, in.x, decays.x, reverse);
    return out;
  }

  // out_k = sum over the segments j before k (reversed: after it) of in_j, decayed by those between.
  void expect_closed_form(const Tensor& out, const Tensor& in, const Tensor& decays, bool reverse) const {
    for_each_index(out, [&](const Index& i) {
      double sum = 0;
      for (int64_t j = reverse ? i[0] + 1 : 0; j < (reverse ? K() : i[0]); ++j) {
        double log_decay = 0;
        for (int64_t n = std::min(j, i[0]) + 1; n < std::max(j, i[0]); ++n) log_decay += at(decays, {n, i[1], i[2]});
        sum += std::exp(log_decay) * at(in, {j, i[1], i[2], i[3]});
      }
      ASSERT_NEAR(at(out, i), sum, 1e-12);
    });
  }

  // Summaries that nothing depends on are NaN: whoever reads one shows it.
  void states(int l) {
    const LayerLayout layer = layout_.layer(l);
    Host state({local_segments(), B(), H(), E()}, pad_), inflow({local_segments(), B(), H(), E()}, pad_);
    Host decay_sBH({local_segments(), B(), H()}, pad_);
    state.fill([&](const Index& i) {
      return layer.feeds_state(local(i[0])) ? value("state", l, {local(i[0]).index, i[1], i[2], i[3]}) : kNaN;
    });
    decay_sBH.fill([&](const Index& i) {
      return layer.feeds_state(local(i[0])) ? decay(l, local(i[0]).index, i[1], i[2]) : kNaN;
    });
    Host& decays = decays_[static_cast<size_t>(l)].emplace(std::initializer_list<int64_t>{K(), B(), H()}, pad_);
    measure_and_run([&](Arena& arena, bool m) {
      return exchange_.scan_states(arena, layer, transport_.state, pick(inflow, m), pick(decays, m), pick(state, m),
                                   pick(decay_sBH, m));
    });
    const Host whole = whole_scan(l, layer, false);
    expect("inflow", inflow.x, [&](const Index& i) {
      return layer.needs_inflow(local(i[0])) ? at(whole.x, {local(i[0]).index, i[1], i[2], i[3]}) : 0;
    });
  }

  void adjoints(int l) {
    const LayerLayout layer = layout_.layer(l);
    Host adjoint({local_segments(), B(), H(), E()}, pad_), outflow({local_segments(), B(), H(), E()}, pad_);
    adjoint.fill([&](const Index& i) {
      return layer.delivers_adjoint(local(i[0])) ? value("adjoint", l, {local(i[0]).index, i[1], i[2], i[3]}) : kNaN;
    });
    const Host& decays = *decays_[static_cast<size_t>(l)];
    measure_and_run([&](Arena& arena, bool m) {
      return exchange_.scan_adjoints(arena, layer, transport_.state, pick(outflow, m), pick(adjoint, m),
                                     pick(decays, m));
    });
    const Host whole = whole_scan(l, layer, true);
    expect("outflow", outflow.x, [&](const Index& i) {
      return layer.feeds_state(local(i[0])) ? at(whole.x, {local(i[0]).index, i[1], i[2], i[3]}) : 0;
    });
  }

  // Tensors of a head-parallel layer, as the model sends them: "dt" has one column a head, the others D; "y" is cut at
  // the TransPoint.
  void heads(int l, const std::vector<std::string>& names, bool to_tokens) {
    const int64_t R = layout_.ranks(), P = layout_.transpoint(l), T = layout_.tokens();
    const std::vector<int64_t> positions = layout_.positions(exchange_.rank());
    std::vector<HeadTensor> real, shadow;
    std::deque<Host> hosts;
    std::vector<std::function<void()>> checks;
    for (const std::string& name : names) {
      if (name.ends_with("dt") && P == T) continue;  // a layer without a scan has none
      const int64_t c = H() / R * (name.ends_with("dt") ? 1 : D());
      const bool cut = name.ends_with("y");
      for (const TokenRange& range : cut ? std::vector<TokenRange>{{0, P}, {P, T}} : std::vector<TokenRange>{{0, T}}) {
        std::vector<int64_t> mine;
        for (int64_t t : positions) {
          if (range.contains(t)) mine.push_back(t);
        }
        Host& of_tokens = hosts.emplace_back(std::initializer_list<int64_t>{B(), std::ssize(mine), c * R}, pad_);
        Host& of_heads = hosts.emplace_back(std::initializer_list<int64_t>{B(), range.size(), c}, pad_);
        const auto at_token = [=, this](const Index& i) { return value(name, l, {i[0], mine[at_index(i[1])], i[2]}); };
        const auto at_head = [=, this](const Index& i) {
          return value(name, l, {i[0], range.begin + i[1], exchange_.rank() * c + i[2]});
        };
        if (to_tokens) {
          of_heads.fill(at_head);
          checks.emplace_back([&of_tokens, at_token, this] { expect("tokens", of_tokens.x, at_token); });
        } else {
          of_tokens.fill(at_token);
          checks.emplace_back([&of_heads, at_head, this] { expect("heads", of_heads.x, at_head); });
        }
        real.push_back({range, of_heads.x, of_tokens.x}), shadow.push_back({range, of_heads.shadow, of_tokens.shadow});
      }
    }
    measure_and_run([&](Arena& arena, bool m) {
      return to_tokens ? exchange_.to_tokens(arena, m ? shadow : real) : exchange_.to_heads(arena, m ? shadow : real);
    });
    for (const auto& check : checks) check();
  }
  static size_t at_index(int64_t i) { return static_cast<size_t>(i); }

  PlanDims dims_;
  uint64_t seed_;
  int64_t pad_;
  SequenceLayout layout_;
  Recorder recorder_;
  Transport transport_;
  bool measuring_ = false;
  SequenceExchange exchange_;
  std::vector<std::optional<Host>> decays_;  // of each layer, from forward to backward
};

}  // namespace tmamba
