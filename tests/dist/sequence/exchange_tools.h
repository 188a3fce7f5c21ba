// What the tests of exchanges share: host tensors of float64 that may be strided, the arithmetic of exchanges on them,
// and a communicator that writes down what passes.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "dist/sequence/exchange.h"
#include "tests/dist/error_of.h"

namespace tmamba {

inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// --- Host tensors ---

using Index = std::array<int64_t, 4>;

template <class View>
auto& at(const View& x, const Index& index) {
  int64_t offset = 0;
  for (int i = 0; i < x.dims(); ++i) offset += index[static_cast<size_t>(i)] * x.stride(i);
  return x.template data<double>()[offset];
}

template <class F>
void for_each_index(const ConstTensor& x, F f) {
  const auto size = [&](int i) { return i < x.dims() ? x.size(i) : 1; };
  if (x.numel() == 0) return;
  Index i{};
  for (i[0] = 0; i[0] < size(0); ++i[0]) {
    for (i[1] = 0; i[1] < size(1); ++i[1]) {
      for (i[2] = 0; i[2] < size(2); ++i[2]) {
        for (i[3] = 0; i[3] < size(3); ++i[3]) f(i);
      }
    }
  }
}

// A tensor full of NaN; with `pad`, strided: between its rows and its second dimensions lie other elements. `shadow` is
// the same view without memory, as a measuring arena gives it.
struct Host {
  Host(std::initializer_list<int64_t> sizes, int64_t pad) {
    std::vector<int64_t> whole(sizes);
    whole.back() += pad;
    if (whole.size() > 2) whole[1] += pad;
    int64_t elements = 1;
    for (int64_t size : whole) elements *= size;
    data.assign(static_cast<size_t>(elements), kNaN);
    x = view(data.data(), whole, sizes);
    shadow = view(nullptr, whole, sizes);
  }
  template <class F>
  Host& fill(F value) {
    for_each_index(x, [&](const Index& i) { at(x, i) = value(i); });
    return *this;
  }

  std::vector<double> data;
  Tensor x, shadow;

 private:
  static Tensor view(double* memory, const std::vector<int64_t>& whole, const std::vector<int64_t>& sizes) {
    const bool four = whole.size() == 4;
    Tensor v = four ? Tensor(memory, {whole[0], whole[1], whole[2], whole[3]}, DType::f64)
                    : Tensor(memory, {whole[0], whole[1], whole[2]}, DType::f64);
    v = v.slice(1, 0, sizes[1]);
    return v.slice(v.dims() - 1, 0, sizes.back());
  }
};

inline ExchangeOps host_ops() {
  return {
      .copy = [](Tensor y, ConstTensor x) { for_each_index(x, [&](const Index& i) { at(y, i) = at(x, i); }); },
      .add = [](Tensor y, ConstTensor x) { for_each_index(x, [&](const Index& i) { at(y, i) += at(x, i); }); },
      .zero = [](Tensor x) { for_each_index(x, [&](const Index& i) { at(x, i) = 0; }); },
      .scan =
          [](Tensor out, ConstTensor in, ConstTensor decay, bool reverse) {
            const int64_t K = in.size(0), first = reverse ? K - 1 : 0, step = reverse ? -1 : 1;
            for_each_index(in.select(0, 0), [&](const Index& i) {
              at(out, {first, i[0], i[1], i[2]}) = 0;
              for (int64_t k = first; k + step >= 0 && k + step < K; k += step) {
                const Index here{k, i[0], i[1], i[2]};
                at(out, {k + step, i[0], i[1], i[2]}) = std::exp(at(decay, here)) * at(out, here) + at(in, here);
              }
            });
          },
  };
}

inline uint64_t bits(double x) { return std::bit_cast<uint64_t>(x); }

// --- What a rank sends and receives ---

struct Call {
  Collective op;
  int64_t received = 0;                                            // bytes from other ranks
  std::vector<std::pair<int, int64_t>> sends = {}, receives = {};  // of a send_recv group: peer, bytes
};

// Passes everything on and writes down what arrives, to the byte also where ranks' pieces differ.
class Recorder final : public Communicator {
 public:
  explicit Recorder(Communicator& inner) : inner_(inner) {}
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  const std::string& name() const override { return inner_.name(); }

  Work all_reduce(Tensor x, ReduceOp op) override {
    calls.push_back({.op = Collective::all_reduce});
    return inner_.all_reduce(x, op);
  }
  Work reduce_scatter(Tensor out, ConstTensor in, std::span<const int64_t> counts) override {
    calls.push_back({.op = Collective::reduce_scatter, .received = out.bytes() * (size() - 1)});
    return inner_.reduce_scatter(out, in, counts);
  }
  Work all_gather(Tensor out, ConstTensor in, std::span<const int64_t> counts) override {
    calls.push_back({.op = Collective::all_gather, .received = out.bytes() - in.bytes()});
    return inner_.all_gather(out, in, counts);
  }
  Work broadcast(Tensor x, int root) override {
    calls.push_back({.op = Collective::broadcast});
    return inner_.broadcast(x, root);
  }
  Work all_to_all(Tensor out, std::span<const int64_t> out_counts, ConstTensor in,
                  std::span<const int64_t> in_counts) override {
    const int64_t own = out_counts[static_cast<size_t>(rank())] * static_cast<int64_t>(size_of(out.dtype()));
    calls.push_back({.op = Collective::all_to_all, .received = out.bytes() - own});
    return inner_.all_to_all(out, out_counts, in, in_counts);
  }
  Work send_recv(std::span<const Message> messages) override {
    Call call{.op = Collective::send_recv};
    for (const Message& m : messages) {
      EXPECT_NE(m.peer, rank());
      if (m.recv.numel() > 0) call.receives.emplace_back(m.peer, m.recv.bytes());
      if (m.send.numel() > 0) call.sends.emplace_back(m.peer, m.send.bytes());
      call.received += m.recv.bytes();
    }
    calls.push_back(call);
    return inner_.send_recv(messages);
  }
  void barrier() override { inner_.barrier(); }
  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override {
    return inner_.split(color, key, name);
  }

  std::vector<Call> calls;

 private:
  Communicator& inner_;
};

}  // namespace tmamba
