// Connects the parameter table with ZeRO: gradient buckets for the reducer, and the rows that the optimizer of a rank
// owns.
#pragma once

#include <vector>

#include "dist/zero/grad_reducer.h"
#include "model/optimizer.h"
#include "model/parameters.h"

namespace tmamba {

// One bucket per bucket of the table: its parameters as blocks of rows of the flat buffer, owned in the units that the
// optimizer asks for.
std::vector<Bucket> reduction_buckets(const ParameterTable& table, const OptimizerOptions& optimizer);

// The rows that the optimizer of a rank of the zero axis updates, bucket by bucket.
std::vector<OwnedRows> owned_rows(const ParameterTable& table, const OptimizerOptions& optimizer,
                                  const ZeroSharding& sharding, int zero_rank);

// The summed gradients of this rank's owned rows, in the same order, each in the shape of its rows.
std::vector<Tensor> owned_gradients(const ParameterTable& table, const GradReducer& reducer, const Tensor& grads);

}  // namespace tmamba
