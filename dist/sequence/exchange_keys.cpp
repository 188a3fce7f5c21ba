// Keys and values of the attention prefix, and their gradients.
//
// A rank that needs keys of another rank's segment needs those of its complete attention part, because its own last
// query is in a later segment. So attention parts are sent completely or not at all.
#include <utility>
#include <vector>

#include "dist/comm/collective_args.h"
#include "dist/sequence/exchange.h"
#include "dist/sequence/exchange_staging.h"
#include "kernels/base/trace_range.h"

namespace tmamba {

namespace {

// The rows of a segment's attention part in its owner's local tensor, and the rows of a range in the tensor of the
// needed keys.
template <class View>
View local_part(const LayerLayout& layer, const Segment& s, const View& local_BPHD) {
  const TokenRange part = layer.attention_part(s);
  return part.empty() ? View() : local_BPHD.slice(1, s.local_begin, part.size());
}
template <class View>
View needed_part(const TokenRange& part, const View& needed_BSHD) {
  return part.empty() ? View() : needed_BSHD.slice(1, part.begin, part.size());
}

}  // namespace

void SequenceExchange::check_keys(const char* verb, const LayerLayout& layer, const ConstKeysAndValues& needed,
                                  const ConstKeysAndValues& local) const {
  const char* const names[] = {"k", "v"};
  const ConstTensor& k_BPHD = local[0];
  TM_CHECK(k_BPHD.dims() == 4, verb, ": keys of the local prefix tokens are [B, P, H, D], got ", k_BPHD.shape());
  int64_t local_tokens = 0;
  for (const Segment& s : segments()) local_tokens += layer.attention_part(s).size();
  const int64_t end = layer.keys_needed(rank()).end;
  for (size_t i = 0; i < 2; ++i) {
    const int64_t B = k_BPHD.size(0), H = k_BPHD.size(2), D = k_BPHD.size(3);
    check_sizes(verb, str(names[i], " of the local prefix tokens").c_str(), local[i], {B, local_tokens, H, D});
    if (end == 0) continue;
    check_sizes(verb, str(names[i], " of the tokens needed").c_str(), needed[i], {B, end, H, D});
    TM_CHECK(needed[i].dtype() == k_BPHD.dtype() && local[i].dtype() == k_BPHD.dtype(), verb,
             ": keys and values have different types");
  }
}

Pending SequenceExchange::gather_keys(Arena& scratch, const LayerLayout& layer, KeyTransport transport, Tensor k_BSHD,
                                      Tensor v_BSHD, ConstTensor k_BPHD, ConstTensor v_BPHD) {
  const TraceRange trace("gather_keys");
  const KeysAndValues needed{k_BSHD, v_BSHD};
  const ConstKeysAndValues local{k_BPHD, v_BPHD};
  check_keys("gather_keys", layer, {k_BSHD, v_BSHD}, local);
  const Staging staging(scratch, ops_);
  for (const Segment& s : segments()) {
    for (size_t i = 0; i < 2; ++i) {
      staging.copy(needed_part(layer.attention_part(s), needed[i]), local_part(layer, s, local[i]));
    }
  }
  if (!layer.exchanges_keys()) return {};
  return transport == KeyTransport::gather ? all_gather_keys(staging, layer, needed, local)
                                           : cast_keys(staging, layer, needed, local);
}

Pending SequenceExchange::cast_keys(Staging staging, const LayerLayout& layer, const KeysAndValues& needed,
                                    const ConstKeysAndValues& local) {
  MessageGroup group(staging, sp_);
  for (const Segment& s : layout_.segments()) {
    for (size_t i = 0; i < 2; ++i) {
      if (s.rank != rank()) {
        group.receive(s.rank, needed_part(layer.keys_needed(rank(), s), needed[i]));
        continue;
      }
      const std::vector<int> receivers = layer.key_receivers(s);
      if (receivers.empty()) continue;
      const ConstTensor part = staging.contiguous(local_part(layer, s, local[i]));  // one copy for all receivers
      for (int to : receivers) group.send(to, part);
    }
  }
  return std::move(group).start();
}

std::vector<int64_t> SequenceExchange::prefix_counts(const LayerLayout& layer, const ConstTensor& k_BPHD) const {
  std::vector<int64_t> counts(static_cast<size_t>(layout_.ranks()));
  for (const Segment& s : layout_.segments()) {
    counts[static_cast<size_t>(s.rank)] +=
        2 * k_BPHD.size(0) * layer.attention_part(s).size() * k_BPHD.size(2) * k_BPHD.size(3);
  }
  return counts;
}

namespace {

// Calls f(segment, 0 for keys or 1 for values, its slice of `flat`) for the attention parts of all segments, by rank.
template <class F>
void for_each_prefix_slice(const SequenceLayout& layout, const LayerLayout& layer, const Tensor& flat,
                           const ConstTensor& like_BPHD, F f) {
  FlatCursor cursor(flat);
  for (int r = 0; r < layout.ranks(); ++r) {
    for (const Segment& s : layout.segments_of(r)) {
      const int64_t tokens = layer.attention_part(s).size();
      if (tokens == 0) continue;
      for (size_t i = 0; i < 2; ++i) {
        f(s, i, cursor.next({like_BPHD.size(0), tokens, like_BPHD.size(2), like_BPHD.size(3)}));
      }
    }
  }
}

}  // namespace

Pending SequenceExchange::all_gather_keys(Staging staging, const LayerLayout& layer, const KeysAndValues& needed,
                                          const ConstKeysAndValues& local) {
  const std::vector<int64_t> counts = prefix_counts(layer, local[0]);
  const Tensor flat = staging.take({shard_begin(counts, layout_.ranks())}, local[0].dtype());
  for_each_prefix_slice(layout_, layer, flat, local[0], [&](const Segment& s, size_t i, const Tensor& slice) {
    if (s.rank == rank()) staging.copy(slice, local_part(layer, s, local[i]));
  });
  const Tensor own = flat_slice(flat, shard_begin(counts, rank()), counts[static_cast<size_t>(rank())]);
  const auto unpack = [=, this, like_BPHD = local[0]] {
    for_each_prefix_slice(layout_, layer, flat, like_BPHD, [&](const Segment& s, size_t i, const Tensor& slice) {
      const TokenRange part = layer.keys_needed(rank(), s);
      if (s.rank != rank() && !part.empty()) staging.copy(needed_part(part, needed[i]), slice);
    });
  };
  return start_one(
      staging, [this, flat, own, counts] { return sp_.all_gather(flat, own, counts); }, unpack);
}

Pending SequenceExchange::return_key_gradients(Arena& scratch, const LayerLayout& layer, KeyTransport transport,
                                               Tensor dk_BPHD, Tensor dv_BPHD, ConstTensor dk_BSHD,
                                               ConstTensor dv_BSHD) {
  const TraceRange trace("return_key_gradients");
  const KeysAndValues local{dk_BPHD, dv_BPHD};
  const ConstKeysAndValues found{dk_BSHD, dv_BSHD};
  check_keys("return_key_gradients", layer, found, {dk_BPHD, dv_BPHD});
  const Staging staging(scratch, ops_);
  if (layer.exchanges_keys()) {
    return transport == KeyTransport::gather ? reduce_key_gradients(staging, layer, local, found)
                                             : cast_key_gradients(staging, layer, local, found);
  }
  for (const Segment& s : segments()) {
    for (size_t i = 0; i < 2; ++i) {
      staging.copy(local_part(layer, s, local[i]), needed_part(layer.attention_part(s), found[i]));
    }
  }
  return {};
}

Pending SequenceExchange::cast_key_gradients(Staging staging, const LayerLayout& layer, const KeysAndValues& local,
                                             const ConstKeysAndValues& found) {
  struct Sum {
    Tensor place;
    std::vector<ConstTensor> terms;  // in rank order
  };
  MessageGroup group(staging, sp_);
  std::vector<Sum> sums;
  for (const Segment& s : layout_.segments()) {
    for (size_t i = 0; i < 2; ++i) {
      const ConstTensor own = needed_part(layer.keys_needed(rank(), s), found[i]);
      if (s.rank != rank()) {
        group.send(s.rank, own);
        continue;
      }
      Sum sum{.place = local_part(layer, s, local[i]), .terms = {}};
      for (int from = 0; from < layout_.ranks(); ++from) {
        if (layer.keys_needed(from, s).empty()) continue;
        sum.terms.push_back(from == rank() ? own : group.receive_beside(from, sum.place));
      }
      sums.push_back(std::move(sum));
    }
  }
  return std::move(group).start([staging, sums = std::move(sums)] {
    for (const Sum& sum : sums) {
      for (size_t t = 0; t < sum.terms.size(); ++t) {
        if (t == 0) {
          staging.copy(sum.place, sum.terms[t]);
        } else {
          staging.add(sum.place, sum.terms[t]);
        }
      }
    }
  });
}

Pending SequenceExchange::reduce_key_gradients(Staging staging, const LayerLayout& layer, const KeysAndValues& local,
                                               const ConstKeysAndValues& found) {
  const std::vector<int64_t> counts = prefix_counts(layer, local[0]);
  const Tensor flat = staging.take({shard_begin(counts, layout_.ranks())}, local[0].dtype());
  for_each_prefix_slice(layout_, layer, flat, local[0], [&](const Segment& s, size_t i, const Tensor& slice) {
    const TokenRange part = layer.keys_needed(rank(), s);
    if (part.empty()) {
      staging.zero(slice);
    } else {
      staging.copy(slice, needed_part(part, found[i]));
    }
  });
  const Tensor own = flat_slice(flat, shard_begin(counts, rank()), counts[static_cast<size_t>(rank())]);
  const auto unpack = [=, this, like_BPHD = ConstTensor(local[0])] {
    for_each_prefix_slice(layout_, layer, flat, like_BPHD, [&](const Segment& s, size_t i, const Tensor& slice) {
      if (s.rank == rank()) staging.copy(local_part(layer, s, local[i]), slice);
    });
  };
  return start_one(
      staging, [this, flat, own, counts] { return sp_.reduce_scatter(own, flat, counts); }, unpack);
}

}  // namespace tmamba
