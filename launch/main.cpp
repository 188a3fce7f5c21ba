#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>

#include "kernels/base/check.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/suggest.h"
#include "launch/cli/version.h"
#include "launch/verbs.h"

namespace {

struct Verb {
  const char* name;
  int (*run)(const tmamba::Arguments&);
  const char* summary;
};

constexpr std::array kVerbs{
    Verb{"train", tmamba::train_verb, "train a model; resumes automatically (mpirun, srun or a single process)"},
    Verb{"eval", tmamba::eval_verb, "loss and bits per byte of a checkpoint on validation data"},
    Verb{"generate", tmamba::generate_verb, "generate text from a checkpoint"},
    Verb{"prepare", tmamba::prepare_verb, "tokenize text or JSONL into HDF5 token files"},
    Verb{"tokenizer", tmamba::tokenizer_verb, "train a tokenizer; encode and decode text"},
    Verb{"plan", tmamba::plan_verb, "predict a run: FLOPs, memory, layout, exchanges, time per step"},
    Verb{"checkpoint", tmamba::checkpoint_verb, "list, inspect, verify, compare, prune and convert checkpoints"},
    Verb{"bench", tmamba::bench_verb, "time ops, steps and exchanges, beside the rates measured on this machine"},
    Verb{"doctor", tmamba::doctor_verb, "check where ranks run, their links and the file system (mpirun or srun)"},
    Verb{"scale", tmamba::scale_verb, "run strong and weak scaling studies, by mpirun or as SLURM jobs"},
    Verb{"report", tmamba::report_verb, "write an HTML page about runs: curves, goodput, layout, samples"},
    Verb{"submit", tmamba::submit_verb, "write, check and submit the SLURM job script of a run"},
    Verb{"explain", tmamba::explain_verb, "explain configuration keys and their defaults"},
};

void print_usage(std::FILE* out) {
  std::fprintf(out, "usage: transmamba VERB ...   (transmamba VERB --help shows its options)\n\n");
  for (const Verb& verb : kVerbs) std::fprintf(out, "  %-11s %s\n", verb.name, verb.summary);
  std::fprintf(out, "\n  --version   version, commit and libraries of this build (--json: as JSON)\n\nexit codes:\n");
  for (const tmamba::ExitMeaning& exit : tmamba::kExitCodes) std::fprintf(out, "  %-11d %s\n", exit.code, exit.meaning);
}

std::string meant(const std::string& name) {
  std::vector<std::string> names;
  for (const Verb& verb : kVerbs) names.emplace_back(verb.name);
  const std::string near = tmamba::nearest(name, names);
  return near.empty() ? "" : "; did you mean " + near + "?";
}

}  // namespace

int main(int argc, char** argv) {
  const tmamba::Arguments arguments(argv + std::min(argc, 2), argv + argc);
  const std::string name = argc > 1 ? argv[1] : "";
  if (name == "--help" || name == "-h" || name == "help") {
    print_usage(stdout);
    return tmamba::kDone;
  }
  if (name == "--version") {
    const bool json = !arguments.empty() && arguments.front() == "--json";
    std::printf("%s", json ? (tmamba::build_json().dump(2) + "\n").c_str() : tmamba::build_text().c_str());
    return tmamba::kDone;
  }
  const auto verb = std::find_if(kVerbs.begin(), kVerbs.end(), [&](const Verb& v) { return name == v.name; });
  if (verb == kVerbs.end()) {
    if (!name.empty()) std::fprintf(stderr, "transmamba: unknown verb \"%s\"%s\n", name.c_str(), meant(name).c_str());
    print_usage(stderr);
    return tmamba::kBadInput;
  }
  try {
    return verb->run(arguments);
  } catch (const tmamba::UserError& error) {
    std::fprintf(stderr, "transmamba %s: %s\n", verb->name, error.what());
    return tmamba::kBadInput;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "transmamba %s: %s\n", verb->name, error.what());
    return tmamba::kFailed;
  }
}
