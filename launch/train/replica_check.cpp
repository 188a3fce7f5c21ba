#include "launch/train/replica_check.h"

#include <map>

#include "data/io/sha256.h"
#include "kernels/base/buffer.h"
#include "model/optimizer.h"

namespace tmamba {

namespace {

// The first half of the SHA-256 of all parameters, without the padding between them.
uint64_t hash_of(const ParameterTable& table, const Tensor& params) {
  Sha256 sha;
  for (const OwnedRows& all : all_rows(table)) {
    const Tensor rows = Optimizer::rows_of(params, all);
    if (rows.device() == Device::cpu) {
      sha.add(rows.raw(), static_cast<size_t>(rows.bytes()));
      continue;
    }
    const Buffer host(static_cast<size_t>(rows.bytes()), Device::cpu);
    copy_blocking(host.tensor({rows.numel()}, rows.dtype()), rows.view({rows.numel()}));
    sha.add(host.data(), host.bytes());
  }
  return std::stoull(sha.hex().substr(0, 16), nullptr, 16);
}

}  // namespace

void check_replicas(Communicator& world, const MeshShape& shape, const std::vector<std::string>& hosts,
                    const ParameterTable& table, const Tensor& params, int64_t step) {
  int64_t own = static_cast<int64_t>(hash_of(table, params));
  std::vector<int64_t> hashes(static_cast<size_t>(world.size())), ones(hashes.size(), 1);
  world.all_gather(Tensor(hashes.data(), {world.size()}, DType::i64), Tensor(&own, {1}, DType::i64), ones).wait();
  std::string different;
  int most = 0, of = shape.zero();
  for (int tp = 0; tp < shape.tp; ++tp) {
    std::map<int64_t, int> votes;
    for (int rank = tp; rank < world.size(); rank += shape.tp) ++votes[hashes[static_cast<size_t>(rank)]];
    if (votes.size() == 1) continue;
    int64_t usual = 0;
    int count = 0;
    for (const auto& [hash, n] : votes) {
      if (n > count) usual = hash, count = n;
    }
    most = std::max(most, count);
    for (int rank = tp; rank < world.size(); rank += shape.tp) {
      // Without a majority it is unknown which replica is right: all are named.
      if (2 * count > of && hashes[static_cast<size_t>(rank)] == usual) continue;
      different += str(different.empty() ? "" : ", ", "rank ", rank, " on ", hosts[static_cast<size_t>(rank)]);
    }
  }
  if (different.empty()) return;
  throw Error(str("step ", step, ": the weights of ", different, " differ from those of the other replicas",
                  2 * most > of ? "" : " (there is no majority, so any of these may be wrong)",
                  ". A device or its memory may be faulty: exclude that host, and resume from a checkpoint written "
                  "before the last check that passed"));
}

}  // namespace tmamba
