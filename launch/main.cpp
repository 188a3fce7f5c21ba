#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>

#include "kernels/base/check.h"
#include "launch/verbs.h"

namespace {

struct Verb {
  const char* name;
  int (*run)(const tmamba::Arguments&);
  const char* summary;
};

constexpr std::array kVerbs{
    Verb{"train", tmamba::train_verb, "train a model; resumes by itself (mpirun, srun or alone)"},
    Verb{"eval", tmamba::eval_verb, "loss and bits per byte of a checkpoint on a token file"},
    Verb{"generate", tmamba::generate_verb, "text from a checkpoint"},
    Verb{"prepare", tmamba::prepare_verb, "text or JSONL to HDF5 token files"},
    Verb{"tokenizer", tmamba::tokenizer_verb, "train a tokenizer; encode and decode text"},
    Verb{"plan", tmamba::plan_verb, "cost of a run before it runs: FLOPs, memory, layout, exchanges, predicted time"},
    Verb{"checkpoint", tmamba::checkpoint_verb, "list, inspect and verify checkpoints"},
    Verb{"bench", tmamba::bench_verb, "time ops, whole steps and exchanges beside the machine's own rates"},
    Verb{"doctor", tmamba::doctor_verb, "where ranks run and what their links and file system do (mpirun or srun)"},
    Verb{"scale", tmamba::scale_verb, "run scaling studies: strong and weak, by mpirun or as SLURM jobs"},
    Verb{"report", tmamba::report_verb, "a page about a run or several: curves, lost time, layout, samples"},
    Verb{"submit", tmamba::submit_verb, "write the SLURM job script of a run, check it and submit it"},
    Verb{"explain", tmamba::explain_verb, "what configuration keys mean, with their defaults"},
};

void print_usage(std::FILE* out) {
  std::fprintf(out, "usage: transmamba VERB ...   (transmamba VERB --help shows its options)\n\n");
  for (const Verb& verb : kVerbs) std::fprintf(out, "  %-11s %s\n", verb.name, verb.summary);
  std::fprintf(out,
               "\nexit codes: 0 done, 1 failed, 2 bad usage, configuration or data, 85 saved and stopped on a signal, "
               "93 not to be "
               "started again\n");
}

}  // namespace

int main(int argc, char** argv) {
  const tmamba::Arguments arguments(argv + std::min(argc, 2), argv + argc);
  const std::string name = argc > 1 ? argv[1] : "";
  if (name == "--help" || name == "-h" || name == "help") {
    print_usage(stdout);
    return 0;
  }
  const auto verb = std::find_if(kVerbs.begin(), kVerbs.end(), [&](const Verb& v) { return name == v.name; });
  if (verb == kVerbs.end()) {
    if (!name.empty()) std::fprintf(stderr, "transmamba: there is no verb \"%s\"\n", name.c_str());
    print_usage(stderr);
    return 2;
  }
  try {
    return verb->run(arguments);
  } catch (const tmamba::UserError& error) {
    std::fprintf(stderr, "transmamba %s: %s\n", verb->name, error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "transmamba %s: %s\n", verb->name, error.what());
    return 1;
  }
}
