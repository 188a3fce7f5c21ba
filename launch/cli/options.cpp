#include "launch/cli/options.h"

#include <algorithm>
#include <climits>
#include <utility>

#include "kernels/base/check.h"

namespace tmamba {

namespace {

using Kind = Option::Kind;
using Options = std::vector<Option>;

Option flag(const std::string& name, const std::string& help) { return {.name = name, .help = help}; }
Option integer(const std::string& name, Limits limits, const std::string& help) {
  return {.name = name, .kind = Kind::integer, .help = help, .limits = limits};
}
Option number(const std::string& name, Limits limits, const std::string& help) {
  return {.name = name, .kind = Kind::number, .help = help, .limits = limits};
}
Option text(const std::string& name, const std::string& help) {
  return {.name = name, .kind = Kind::text, .help = help};
}
Option choice(const std::string& name, const Choices& choices, const std::string& help) {
  return {.name = name, .kind = Kind::text, .help = help, .choices = choices};
}
// Of a file or directory that exists.
Option path(const std::string& name, const std::string& help) {
  return {.name = name, .kind = Kind::path, .help = help};
}

constexpr double kMostRanks = 1 << 20;
const Limits kSeed{}, kCount{1, 1e6};

Option set_option(const std::string& example) {
  return text("set", str("override a configuration key: --set ", example)).repeatable();
}
Option device_option(const std::string& otherwise) {
  return choice("device", {"cpu", "cuda"}, str("device to compute on; default: ", otherwise));
}
Option seed_option(const std::string& of) { return integer("seed", kSeed, str("seed of ", of)).with_default("0"); }
Option tokenizer_option() { return text("tokenizer", "\"bytes\" or a tokenizer file").with_default("bytes"); }

VerbOptions train_options() {
  return {
      "train",
      "Trains a model. Started by mpirun or srun, the ranks share the work by the keys of [parallel]. The run\n"
      "resumes from the latest complete checkpoint of its run directory. SIGINT, SIGTERM, SIGHUP, SIGUSR1 or a file\n"
      "STOP in the run directory: the run saves at the next step boundary and stops with exit code 85. A file SAVE:\n"
      "it saves and continues. Under Open MPI's mpirun use STOP, or kill -USR1 of mpirun, which forwards it to all\n"
      "ranks: on SIGINT (Ctrl-C), SIGTERM and SIGHUP it kills them a second later. One attempt at a time trains in\n"
      "a run directory: another job waits up to 30 s for the heartbeat of the one before. Exit code 93: that one is\n"
      "alive, or took over later, or three attempts in a row made no newer checkpoint. --json prints the run's\n"
      "summary as JSON at the end.",
      {path("config", "configuration of the run").required()},
      {set_option("train.lr=3e-4"),
       text("compare", "NAME=BITS: add a row to the final table, bits per byte of another method on the same text")
           .repeatable(),
       flag("check",
            "make the checks that need no allocation (configuration, data, layout on these ranks, memory), print "
            "the effective configuration and stop"),
       flag("take-over",
            "take the run directory over from an attempt that still trains in it: that one ends with exit code 93")}};
}

// Options that eval and generate share.
Options model_options() {
  return {text("schedule", "another TransPoint schedule than in training: [0, \"1/4\"]"), device_option("the run's"),
          set_option("train.dtype=float32")};
}

VerbOptions eval_options() {
  Options options{path("data", "token file; default: the run's validation sets"),
                  integer("seq-len", {1, 1e9}, "another sequence length than in training"),
                  integer("batch", {1, kMostRanks}, "sequences at a time").with_default("8"),
                  integer("sequences", {}, "evaluate on this many; 0: all").with_default("0")};
  for (Option& option : model_options()) options.push_back(std::move(option));
  return {"eval",
          "Loss and bits per byte of a checkpoint, or of the latest one of a run directory, on token files.",
          {path("checkpoint", "checkpoint or run directory").required()},
          options};
}

VerbOptions generate_options() {
  Options options{text("prompt", "prompt; empty: a new document").with_default("The ").or_empty(),
                  integer("tokens", {1, 1e9}, "maximum number of tokens to generate").with_default("256"),
                  number("temperature", {0, 100}, "sampling temperature; 0: greedy").with_default("0.8"),
                  integer("top-k", {}, "sample from the k most likely tokens; 0: from all").with_default("0"),
                  seed_option("sampling"),
                  integer("count", kCount, "number of texts").with_default("1"),
                  path("tokenizer", "tokenizer file; default: the one beside the training data")};
  for (Option& option : model_options()) options.push_back(std::move(option));
  return {"generate",
          "Generates text from a checkpoint, or from the latest one of a run directory. Under mpirun or srun\n"
          "the texts are spread over the ranks.",
          {path("checkpoint", "checkpoint or run directory").required()},
          options};
}

// How prepare and tokenizer train read text.
Options corpus_options() {
  return {choice("format", {"auto", "text", "jsonl"},
                 "auto: JSON lines if the text begins as a JSON object or the file is named .jsonl, .ndjson or .json; "
                 "text: any bytes")
              .with_default("auto"),
          text("field", "JSON lines: the field that holds the text").with_default("text"),
          choice("on-error", {"stop", "skip"},
                 "JSON lines that cannot be read: stop, or skip them and report their number and the first ten")
              .with_default("stop"),
          integer("max-errors", {}, "stop after skipping this many").with_default("1000")};
}

VerbOptions prepare_options() {
  Options options{
      text("output,o", "directory to write").required(),
      tokenizer_option(),
      number("held-out", {0, 0.5}, "fraction of the text for validation").with_default("0.01"),
      text(
          "separator",
          "split plain text into documents at this text (\\n, \\r, \\t, \\\\ and \\xHH are escape sequences); default: "
          "one document per file")
          .or_empty(),
      seed_option("the choice of validation text"),
      flag("overwrite", "replace another data set in the directory")};
  for (Option& option : corpus_options()) options.push_back(std::move(option));
  return {"prepare",
          "Tokenizes text files, JSON lines and gzip files of either, recognised by their content, into the HDF5\n"
          "token files train.h5 and valid.h5, with the tokenizer beside them. Inputs are streamed. A data set that\n"
          "was already prepared from the same inputs and options is left unchanged.",
          {path("file", "input file").required().repeatable()},
          options};
}

VerbOptions tokenizer_options() {
  Options options{text("output,o", "file to write").required().only({"train"}),
                  integer("vocab", {1, 1 << 24}, "number of tokens, at least 261").with_default("4096").only({"train"}),
                  choice("type", {"bpe", "unigram"}, "kind of tokenizer").with_default("bpe").only({"train"}),
                  integer("max-bytes", {1, 1e15}, "train on at most this many bytes of text, sampled from all files")
                      .with_default("67108864")
                      .only({"train"}),
                  seed_option("that sample").only({"train"}),
                  flag("verbose", "show SentencePiece's own log").only({"train"}),
                  tokenizer_option().only({"encode", "decode"})};
  for (const Option& option : corpus_options()) options.push_back(option.only({"train"}));
  return {"tokenizer",
          "train   trains a lossless SentencePiece tokenizer on text files: --vocab N --output FILE\n"
          "encode  text files to token ids: --tokenizer FILE\n"
          "decode  token ids to text: --tokenizer FILE\n"
          "A FILE - is standard input.",
          {choice("action", {"train", "encode", "decode"}, "what to do").required(),
           path("file", "input file").required().repeatable()},
          options};
}

VerbOptions plan_options() {
  return {
      "plan",
      "Predicts a run without ranks, GPU or data: FLOPs beside the paper's, memory per rank, the sequence\n"
      "layout drawn per rank and layer, every exchange with its bytes, step time and MFU; and ranks the\n"
      "layouts of --ranks ranks by predicted step time. Times follow from a few measured rates of a machine,\n"
      "which `transmamba bench ops --save-machine FILE` measures. Also time and device hours of the whole run, the\n"
      "size of a checkpoint, and the network assumed.",
      {path("config", "configuration of the run").required()},
      {set_option("parallel.sp=8"),
       integer("ranks", {0, kMostRanks},
               "rank the layouts of this many ranks; parallel.dp = 0 uses as many as tp and sp leave. 0: those of the "
               "configuration's layout")
           .with_default("0"),
       integer("top", kCount, "how many layouts to show").with_default("10"),
       text("machine",
            "h200, cpu, or a machine file (JSON of measured rates); default: that of run.device, which a run plans "
            "with"),
       flag("print-machine", "print the machine's rates as JSON, to measure and edit, and stop"),
       integer("vocab", {1, INT_MAX}, "vocabulary, if neither the configuration nor the data determine it"),
       text("save", "write the plan (every message of every rank) to this JSON file, for --set run.plan=FILE"),
       flag("check", "verify that every send has its receive and nothing is missing")}};
}

VerbOptions checkpoint_options() {
  return {
      "checkpoint",
      "A and B are checkpoints, or run directories, which stand for their latest complete checkpoint.\n\n"
      "ls RUN            lists the checkpoints of a run directory; exit code 1 if one cannot be opened\n"
      "inspect A         prints the tensors, step and configuration of a checkpoint\n"
      "verify A          reads all data and compares all checksums; exit code 1 if something is damaged\n"
      "diff A B          prints where two checkpoints differ; exit code 1 if they do\n"
      "prune RUN         verifies the latest checkpoints and removes older ones (--keep, --keep-every, --dry-run)\n"
      "reshard A DIR     writes the checkpoint into directory DIR, in another number of files (--writers)\n"
      "export A FILE     writes one FILE.h5 or FILE.safetensors, and config.json beside it (--weights)\n"
      "import FILE DIR   writes a bit-identical checkpoint of such a file into directory DIR",
      {choice("action", {"ls", "inspect", "verify", "diff", "prune", "reshard", "export", "import"}, "what to do")
           .required(),
       path("path", "checkpoint, run directory or exported file").required(),
       text("second", "the other checkpoint, or what to write")
           .required()
           .only({"diff", "reshard", "export", "import"})},
      {integer("writers", {0, 99999}, "number of files; 0: files of at most 1 GiB").with_default("0").only({"reshard"}),
       integer("keep", {1, 1e9}, "latest checkpoints to keep").with_default("3").only({"prune"}),
       integer("keep-every", {}, "also keep those of steps divisible by this; 0: none")
           .with_default("0")
           .only({"prune"}),
       flag("dry-run", "only print what would be removed").only({"prune"}),
       flag("weights", "without the optimizer state").only({"export"})}};
}

VerbOptions bench_options() {
  return {
      "bench",
      "step  times a training step (forward, backward, gradient reduction, clipping, AdamW) on random tokens; under\n"
      "      mpirun on any mesh, with the exposed communication, measured and predicted by the planner\n"
      "ops   times the step of one rank op by op: ms per step, GFLOP/s, GB/s, and the fraction of the roofline\n"
      "comm  times every collective between ranks, by size; bench comm --help prints its options\n"
      "The roofline is a GEMM (2048^3, on a GPU 8192^3) and a copy, measured in the same run on the same device.",
      {choice("action", {"ops", "step", "comm"}, "what to time").required(),
       path("config", "configuration; default: bench's own")},
      {set_option("model.dim=512"), integer("steps", kCount, "steps to time; the median is reported").with_default("5"),
       integer("micro-batches", kCount, "micro-batches per step").with_default("1").only({"step"}),
       flag("no-roof", "do not measure the roofline").only({"step"}),
       text("io", "also time reading a batch from a token file and writing a checkpoint, below this directory")
           .only({"step"}),
       text("save-machine", "write the measured rates to this file, for `transmamba plan --machine FILE`")
           .only({"ops"}),
       integer("threads", {0, 4096}, "CPU threads; 0: all").with_default("0"), device_option("the configuration's")}};
}

VerbOptions bench_comm_options() {
  return {
      "bench comm",
      "Measures time and bandwidth of every collective, by size, along each axis of the mesh; start it by mpirun or\n"
      "srun. Sizes are those of the whole tensor; times are medians of the slowest rank's. Bus bandwidth (busbw, as\n"
      "in nccl-tests) counts the bytes per link of a ring: 2 (n-1)/n of the size for all_reduce, all of it for\n"
      "send_recv, (n-1)/n for the others. \"uneven\": shards of different sizes, as in ZeRO.",
      {path("config", "configuration; default: bench's own")},
      {set_option("parallel.tp=2"), device_option("the configuration's"),
       integer("min-bytes", {1, 1e12}, "smallest size").with_default("1024"),
       integer("max-bytes", {1, 1e12}, "largest size; default: 64 MiB on CPUs, 1 GiB on GPUs")}};
}

VerbOptions doctor_options() {
  return {
      "doctor",
      "Checks a job before it trains; start it like the training, by mpirun or srun. Prints a table of ranks with\n"
      "their hosts, GPUs, cores, NUMA nodes (cores/GPU) and nearest network adapters (\"!\" marks a GPU or a set of\n"
      "cores shared by ranks); the settings of MPI and NCCL in effect; the bus bandwidth of all-reduce, all-gather\n"
      "and send-recv; and probes the file system of FOLDER, the run directory: fsync, rename over a file,\n"
      "locks, free space. Exit code 1 if there is a problem.",
      {text("folder", "run directory, or the one that it will be made in")},
      {number("seconds", {0, 86400}, "approximate time for the bandwidth sweep; 0: skip it").with_default("10"),
       choice("device", {"auto", "cpu", "cuda"}, "device to sweep; auto: cuda if any rank sees a GPU")
           .with_default("auto")}};
}

VerbOptions scale_options() {
  return {
      "scale",
      "Runs scaling studies (strong or weak): measures every combination of layout, number of ranks and sequence\n"
      "length several times, by mpirun or srun from this process or as SLURM jobs. Completed repeats are kept: a\n"
      "stopped study resumes. Writes the measurements to study.json and study.csv, and the predictions of the fitted\n"
      "cost model for more ranks to study-model.csv; `transmamba report` draws them. Run it outside mpirun.",
      {path("study", "study file (TOML)").repeatable()},
      {text("dir", "directory of the results; overrides study.dir"),
       integer("repeats", {1, 10000}, "repeats of each point; overrides study.repeats"),
       choice("launcher", {"mpirun", "srun", "slurm"}, "how ranks are started; overrides launch.launcher"),
       path("site", "site file of jobs; default: slurm.site, else the one that TRANSMAMBA_SITE names"),
       integer("only-ranks", {1, kMostRanks}, "measure only the points with this number of ranks"),
       flag("list", "print the points and how many of their repeats are done, and exit"),
       flag("summary", "measure nothing; summarize the results so far"),
       flag("dry-run", "with --launcher slurm: write the job scripts without submitting them"),
       path("compare", "directory of another run of the same study to compare with"),
       flag("keys", "print the keys of a study file with their defaults, and exit")}};
}

VerbOptions report_options() {
  return {"report",
          "Writes a self-contained HTML page (no network, no other files).\n"
          "For a run, or several overlaid: training curves, goodput and attempts, the layout of a sequence, samples,\n"
          "events, configuration; a run may still be in progress. For scaling studies (transmamba scale): scaling\n"
          "curves, step time breakdown, and the cost model's predictions. --json also prints the figures.",
          {path("run", "run directory or directory of a study").required().repeatable()},
          {text("output,o", "file to write; default: RUN/report.html, or ./report.html for several runs")}};
}

VerbOptions submit_options() {
  return {
      "submit",
      "Writes the SLURM job script of a training run (job.sbatch in its run directory) and submits it. Before that it\n"
      "checks that layout, batch and memory fit the nodes, that the data exist, and that SLURM accepts the job. The\n"
      "job saves before its time limit and is requeued until the run is done. The site is described in one file: see\n"
      "cluster/site.env.",
      {path("config", "configuration of the run").required()},
      {integer("nodes", {1, kMostRanks}, "nodes of the job").required(),
       integer("ranks-per-node", {1, 4096}, "ranks per node; default: SITE_RANKS_PER_NODE, else one per GPU"),
       path("site", "site file; default: the value of TRANSMAMBA_SITE"), set_option("train.lr=3e-4"),
       text("name", "name of the job, to which a hash of the run directory is added; default: the directory's name"),
       text("time", "time limit of a job in SLURM's notation; default: SITE_TIME"),
       integer("array", {1, 10000},
               "submit an array of this many tasks, run one after the other, instead of requeueing"),
       integer("chain", {1, 10000}, "submit this many jobs, each waiting for the one before, instead of requeueing"),
       flag("dry-run", "print the job script without submitting it")}};
}

VerbOptions explain_options() {
  return {"explain",
          "Prints the meaning, the default and the valid values of every configuration key, or of one key.",
          {text("key", "a key, or the name of a list of tables")},
          {}};
}

}  // namespace

Option Option::with_default(const std::string& text) const {
  Option changed = *this;
  changed.value = text;
  return changed;
}
Option Option::repeatable() const {
  Option changed = *this;
  changed.repeated = true;
  return changed;
}
Option Option::required() const {
  Option changed = *this;
  changed.needed = true;
  return changed;
}
Option Option::or_empty() const {
  Option changed = *this;
  changed.may_be_empty = true;
  return changed;
}
Option Option::only(const Choices& of) const {
  Option changed = *this;
  changed.actions = of;
  return changed;
}

std::string VerbOptions::usage() const {
  std::string text = name;
  for (const Option& argument : arguments) {
    std::string word = argument.long_name();
    std::transform(word.begin(), word.end(), word.begin(), [](char c) { return static_cast<char>(c - 'a' + 'A'); });
    if (argument.name == "action") {
      word = joined(argument.choices);
      for (size_t at = 0; (at = word.find(", ", at)) != std::string::npos;) word.replace(at, 2, "|");
    }
    if (argument.repeated) word += "...";
    const bool always = argument.needed && argument.actions.empty();
    text += always ? " " + word : " [" + word + "]";
  }
  for (const Option& option : options) {
    if (option.needed && option.actions.empty()) text += str(" --", option.long_name(), " ...");
  }
  return text + " [options]";
}

const std::vector<VerbOptions>& all_verb_options() {
  static const std::vector<VerbOptions> all{
      train_options(),      eval_options(),   generate_options(),   prepare_options(), tokenizer_options(),
      plan_options(),       bench_options(),  bench_comm_options(), doctor_options(),  scale_options(),
      checkpoint_options(), report_options(), submit_options(),     explain_options()};
  return all;
}

const VerbOptions& options_of(const std::string& verb) {
  const std::vector<VerbOptions>& all = all_verb_options();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const VerbOptions& options) { return options.name == verb; });
  if (found == all.end()) throw Error(str("no options are declared for the verb ", verb));
  return *found;
}

}  // namespace tmamba
