// The verbs of the program. Each parses its own arguments and returns the exit code.
#pragma once

#include <string>
#include <vector>

namespace tmamba {

using Arguments = std::vector<std::string>;

int train_verb(const Arguments& arguments);
int eval_verb(const Arguments& arguments);
int generate_verb(const Arguments& arguments);
int prepare_verb(const Arguments& arguments);
int tokenizer_verb(const Arguments& arguments);
int plan_verb(const Arguments& arguments);
int checkpoint_verb(const Arguments& arguments);
int bench_verb(const Arguments& arguments);
// `bench comm`; its arguments follow.
int bench_comm(const Arguments& arguments);
int doctor_verb(const Arguments& arguments);
int scale_verb(const Arguments& arguments);
int report_verb(const Arguments& arguments);
int submit_verb(const Arguments& arguments);
int explain_verb(const Arguments& arguments);

}  // namespace tmamba
