// Times of ops per step, reported by `bench ops` and run.profile = "ops".
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "kernels/ops/timed_ops.h"

namespace tmamba {

// One object per op, the slowest first: op, calls and ms per step, gflops, gb_per_s.
nlohmann::json op_rows(const TimedOps& timed, int64_t steps);
// Returns the rows as a table; every line ends with a newline. A fraction_of_roof in the rows is the last column.
std::string op_table(const nlohmann::json& rows);

}  // namespace tmamba
