// class ZeroSharding: what each ZeRO stage (parallel.zero; Rajbhandari et al., SC 2020) shards among the replicas, the
// ranks that hold the same parameters. Every rule that depends on the stage is a question to this class.
//
//   stage 0   Nothing is sharded: every replica reduces all gradients and updates all parameters.
//   stage 1   The optimizer state is sharded: a replica updates the rows it owns, then parameters are gathered.
//             Gradients are accumulated over the micro-batches of a step and reduced once.
//   stage 2   Gradients are sharded too: they are reduced after every micro-batch and accumulated for owned rows only.
//
// With one replica every stage is stage 0.
#pragma once

#include <string>
#include <vector>

#include "dist/zero/ownership.h"

namespace tmamba {

class ZeroSharding {
 public:
  static constexpr int kMaxStage = 2;
  // Why a stage is not valid; empty where it is.
  static std::string stage_problem(int64_t stage);

  // Throws UserError with stage_problem().
  ZeroSharding(int64_t stage, int64_t replicas);

  // Each replica keeps the optimizer state of its owned rows only, and parameters are gathered after an update.
  bool shards_optimizer() const { return stage_ == 1 || stage_ == 2; }
  // Each replica accumulates the reduced gradients of its owned rows only.
  bool shards_gradients() const { return stage_ == 2; }

  bool reduces_every_micro_batch() const { return shards_gradients(); }
  // Whether gradients are reduced after a micro-batch, which is the step's last one or not.
  bool reduces_after(bool last_micro_batch) const { return last_micro_batch || reduces_every_micro_batch(); }
  // Whether gradients are set to zero before a micro-batch, which is the step's first one or not.
  bool clears_gradients_before(bool first_micro_batch) const {
    return first_micro_batch || reduces_every_micro_batch();
  }
  // Reductions of every gradient in a step.
  int64_t reductions(int64_t micro_batches) const { return reduces_every_micro_batch() ? micro_batches : 1; }
  // Terms of the sums over replicas that a step adds up for one gradient.
  int64_t summands(int64_t micro_batches) const { return replicas_ * reductions(micro_batches); }

  // Replicas that own different rows.
  int64_t owners() const { return shards_optimizer() ? replicas_ : 1; }
  // Whether this replica counts its owned rows in the gradient norm and saves them: of replicas that own the same rows,
  // the first one.
  bool represents_owned(int zero_rank) const { return shards_optimizer() || zero_rank == 0; }

  // The elements of a bucket's range that each replica owns, padding included.
  std::vector<Slice> slices(const Bucket& bucket) const;
  Slice slice(const Bucket& bucket, int zero_rank) const;
  // The rows that a replica owns.
  std::vector<OwnedRowBlock> owned(const Bucket& bucket, int zero_rank) const;
  // Elements of the gradient buffers that a replica needs beside the gradients of a micro-batch: the sums of its owned
  // rows, and the sums of one micro-batch before they are added to those.
  int64_t extra_gradient_elements(const Bucket& bucket, int zero_rank) const;

 private:
  int64_t stage_;  // 0 with one replica
  int64_t replicas_;
};

}  // namespace tmamba
