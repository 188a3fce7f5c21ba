// Times of ops per step, as `bench ops` and run.profile = "ops" report them.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "kernels/ops/timed_ops.h"

namespace tmamba {

// One object an op, the longest first: op, calls and ms per step, gflops, gb_per_s.
nlohmann::json op_rows(const TimedOps& timed, int64_t steps);
// They as a table, every line ended; where rows have a fraction_of_roof it is the last column.
std::string op_table(const nlohmann::json& rows);

}  // namespace tmamba
