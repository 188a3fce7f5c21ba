// The keys of a run's configuration. A new key is a member of a struct in config.h and an entry here.
#include "dist/sequence/transport.h"
#include "dist/zero/zero_sharding.h"
#include "launch/config/key_table.h"
#include "model/schedule.h"

namespace tmamba {

// Values with a form of their own. KeyTable finds these functions by their arguments.
static std::string text_of(const SaveEvery& x) { return x.automatic ? "\"auto\"" : text_of(x.steps); }
static std::string text_of(const std::vector<TransPoint>& x) {
  std::string out = "[";
  for (const TransPoint& p : x)
    out += (out.size() > 1 ? ", " : "") + (p.denominator ? quoted(to_string(p)) : to_string(p));
  return out + "]";
}

static std::string text_of(const Amount& x) {
  return x.unit == AmountUnit::of_run ? to_string(x) : quoted(to_string(x));
}
static void read(const Source& s, const toml::node& node, Amount& out, const Limits& limits) {
  if (node.is_string()) {
    try {
      out = parse_amount(node.as_string()->get());
    } catch (const UserError& error) {
      s.fail(str("= ", quoted(node.as_string()->get()), " ", error.what()));
    }
    return;
  }
  out.unit = AmountUnit::of_run;
  read(s, node, out.value, limits);
}

static void read(const Source& s, const toml::node& node, SaveEvery& out, const Limits& limits) {
  if (node.is_string() && node.as_string()->get() == "auto") {
    out = {.steps = 0, .automatic = true};
    return;
  }
  if (!node.is_integer()) s.fail("must be a number of steps, or \"auto\"");
  out.automatic = false;
  read(s, node, out.steps, limits);
}
static void read(const Source& s, const toml::node& node, std::vector<TransPoint>& out, const Limits&) {
  const toml::array* array = node.as_array();
  if (!array || array->empty()) s.fail("must be a list of TransPoints, for example [0, 128, \"1/4\"]");
  out.clear();
  for (const toml::node& entry : *array) {
    if (!entry.is_integer() && !entry.is_string())
      s.fail("has an entry that is neither tokens (512) nor a fraction (\"1/4\")");
    try {
      out.push_back(
          parse_transpoint(entry.is_string() ? entry.as_string()->get() : std::to_string(entry.as_integer()->get())));
    } catch (const UserError& error) {
      s.fail(str(": ", error.what()));
    }
  }
}

namespace {

constexpr auto kFixed = Resume::fixed, kChangesNumbers = Resume::changes_numbers, kFree = Resume::free;

Choices transport_choices() {
  Choices names{"auto"};
  for (const Transport& transport : all_transports()) names.push_back(name_of(transport));
  return names;
}

// model.chunk changes results by rounding only, model.init_std only how a run begins.
void add_model(KeyTable& k, ModelConfig& c) {
  k.key("model.vocab", c.vocab, Limits{0, 2147483648.0}, kFixed,
        "rows of the embedding; 0: the tokenizer's vocabulary");
  k.key("model.dim", c.dim, Limits{1, 1 << 20}, kFixed, "width of the residual stream");
  k.key("model.heads", c.heads, Limits{1, 1 << 16}, kFixed,
        "number of heads; dim / heads is the width of a head and of an SSM state");
  k.key("model.layers", c.layers, Limits{1, 1 << 16}, kFixed, "number of layers, each a sequence mixer and an MLP");
  k.key("model.ffn", c.ffn, Limits{1, 1 << 22}, kFixed, "inner width of the SwiGLU MLP");
  k.key(
      "model.schedule", c.schedule, Limits{}, kFixed,
      "TransPoints, cycled over the layers: tokens (512) or fractions (\"1/4\") of the sequence; a layer is attention "
      "before its TransPoint and an SSM after it");
  k.key("model.conv", c.conv, Limits{2, 8}, kFixed, "width of the causal convolution in tokens");
  k.key("model.chunk", c.chunk, Limits{1, 1024}, kFree, "tokens per chunk of the SSM scan");
  k.key("model.tied_head", c.tied_head, Limits{}, kFixed, "share the embedding's weight with the output head");
  k.key("model.z_gate", c.z_gate, Limits{}, kFixed, "gate the SSM output by SiLU(z)");
  k.key("model.converter", c.converter, std::vector{Converter::exact, Converter::zero}, kFixed,
        "SSM state at the TransPoint: exact (the Memory Converter's scan over the prefix) or zero");
  k.key("model.norm_eps", c.norm_eps, Limits{0, 1}, kFixed, "epsilon of every RMSNorm");
  k.key("model.rope_theta", c.rope_theta, Limits{1, 1e12}, kFixed, "base of the rotary position embedding");
  k.key("model.init_std", c.init_std, Limits{0, 10}, kFree, "standard deviation of the initial weights");
}

void add_data(KeyTable& k, DataConfig& c) {
  k.key("data.train", c.train, Limits{}, kChangesNumbers, "training token file, written by `transmamba prepare`");
  k.key("data.valid", c.valid, Limits{}, kFree,
        "validation token file; short for the first [[data.validation]], named \"valid\"");
  k.key("data.tokenizer", c.tokenizer, Limits{}, kFree,
        "\"bytes\" or a tokenizer file; empty: the tokenizer stored beside the token file");
  k.key("data.seq_len", c.seq_len, Limits{1, 1e9}, kChangesNumbers, "tokens per sequence");
  k.key("data.seed", c.seed, Limits{}, kChangesNumbers, "seed of the data order");
  k.key("data.changed", c.changed, std::vector{Changed::refuse, Changed::accept}, kFree,
        "when a token file has other contents than at the latest checkpoint: refuse to resume, or accept; accepted "
        "training data begins at its own start");
  k.named_tables("data.validation", c.validation,
                 "validation sets; losses are logged as valid_loss for the first, valid_loss/NAME for the others",
                 [](KeyTable& entry, ValidationSet& set) {
                   entry.key("path", set.path, Limits{}, kFree, "token file, written by `transmamba prepare`");
                 });
}

void add_optimization(KeyTable& k, TrainConfig& c) {
  k.key("train.steps", c.steps, Limits{}, kChangesNumbers,
        "optimizer steps to train; the learning-rate schedule counts steps");
  k.key("train.tokens", c.tokens, Limits{}, kChangesNumbers,
        "tokens to train, instead of train.steps; the learning-rate schedule counts tokens");
  k.key("train.minutes", c.minutes, Limits{}, kFree, "save and stop after this wall-clock time; 0: no limit");
  k.key("train.global_batch", c.global_batch, Limits{1, 1e9}, kChangesNumbers,
        "sequences per optimizer step over all ranks");
  k.key("train.micro_batch", c.micro_batch, Limits{}, kFree,
        "sequences per forward and backward pass on one rank; 0: all sequences of the rank in one pass");
  k.key("train.lr", c.lr, Limits{0, 10}, kChangesNumbers, "peak learning rate");
  k.key("train.min_lr", c.min_lr, Limits{0, 10}, kChangesNumbers, "learning rate at the end of the cosine decay");
  k.key("train.warmup", c.warmup, Limits{}, kChangesNumbers,
        "linear warm-up: a number of steps, or of tokens if train.tokens is given; or \"500 steps\", \"2e9 tokens\", "
        "\"1%\" of the run");
  k.key(
      "train.decay", c.decay, Limits{}, kChangesNumbers,
      "where the cosine decay ends, counted from the run's beginning, in the units of train.warmup; train.min_lr from "
      "there on");
  k.key("train.weight_decay", c.optimizer.weight_decay, Limits{0, 10}, kChangesNumbers,
        "decoupled weight decay, applied to matrices only");
  k.key("train.clip", c.clip, Limits{}, kChangesNumbers, "maximum global gradient norm; 0: no clipping");
  k.key("train.betas", c.optimizer.betas, Limits{0, 0.99999999}, kChangesNumbers,
        "decay rates of AdamW's first and second moment");
  k.key("train.eps", c.optimizer.eps, Limits{1e-30, 1}, kChangesNumbers, "epsilon of AdamW");
  k.key("train.dtype", c.dtype, std::vector{DType::f32, DType::f64, DType::bf16}, kChangesNumbers,
        "type of weights and activations; bfloat16 needs run.device = \"cuda\" and keeps float32 master weights");
  k.key("train.recompute", c.recompute, std::vector(kRecomputeLevels.begin(), kRecomputeLevels.end()), kFree,
        "activation checkpointing (recompute), what backward recomputes instead of saving: cheap (norms, convolution, "
        "gates), mlp (also the MLP's gate and up projections), all (everything except a layer's input and its "
        "attention outputs); results are bit-identical to none, unless parallel.transport = \"auto\" then selects "
        "another transport");
  k.key("train.seed", c.seed, Limits{}, kFree, "seed of the initial weights and of sampling");
}

void add_training(KeyTable& k, TrainConfig& c) {
  add_optimization(k, c);
  k.key("train.eval_every", c.eval_every, Limits{}, kFree,
        "steps between evaluations on the validation sets; 0: only at the end");
  k.key("train.eval_sequences", c.eval_sequences, Limits{}, kFree,
        "sequences per evaluation during training; 0: all; the final evaluation always uses all");
  k.key("train.sample_every", c.sample_every, Limits{}, kFree, "steps between text samples; 0: only at the end");
  k.key("train.sample_tokens", c.sample_tokens, Limits{1, 1e6}, kFree, "tokens per sample");
  k.key("train.sample_prompt", c.sample_prompt, Limits{}, kFree, "prompt of the samples");
  k.key("train.temperature", c.temperature, Limits{0, 100}, kFree, "sampling temperature; 0: greedy");
  k.key("train.max_skips", c.max_skips, Limits{1, 1e6}, kChangesNumbers,
        "after this many consecutive skipped steps, roll back to the latest checkpoint and leave out the data that led "
        "to them; stop if the run has rolled back to that checkpoint before");
  k.key("train.spike_window", c.spike_window, Limits{}, kChangesNumbers,
        "skip steps whose loss or gradient norm spikes above that of this many preceding steps; 0: never");
  k.key("train.spike_sigmas", c.spike_sigmas, Limits{}, kChangesNumbers,
        "threshold of a spike in standard deviations above the mean; 0: never");
  k.key("train.replica_check_every", c.replica_check_every, Limits{}, kFree,
        "steps between checks for silent data corruption: all data-parallel replicas must hold the same weights; 0: "
        "never");
}

void add_parallel(KeyTable& k, ParallelConfig& c) {
  k.key("parallel.tp", c.tp, Limits{1, 65536}, kFree,
        "tensor-parallel ranks; they also share the sequence between layers (Megatron's sequence parallelism)");
  k.key("parallel.sp", c.sp, Limits{1, 65536}, kFree,
        "sequence-parallel ranks (what Megatron calls context parallelism, CP)");
  k.key("parallel.dp", c.dp, Limits{0, 1048576}, kFree, "data-parallel ranks; 0: all remaining ranks");
  k.key("parallel.fold", c.fold, Limits{0, 64}, kFree,
        "segments per sequence rank, assigned in zigzag order (zigzag ring attention is fold 2); 0: the planner's "
        "fastest");
  k.key(
      "parallel.transport", c.transport, transport_choices(), kFree,
      "transport for sequence-parallel attention keys/values and SSM states. Keys: group_cast sends only the segments "
      "a rank attends to; gather all-gathers the prefix. States: all_gather gathers full states; sliced scans 1/R of "
      "each state per rank. head_parallel uses Ulysses-style all-to-all instead. auto: the planner selects one for "
      "each layer");
  k.key("parallel.zero", c.zero, Limits{0, ZeroSharding::kMaxStage}, kFree,
        "ZeRO stage: 0 replicates the optimizer state, 1 shards it, 2 also shards gradients");
}

void add_checkpoint(KeyTable& k, CheckpointConfig& c) {
  k.key("checkpoint.every", c.every, Limits{}, kFree,
        "steps between checkpoints; 0: only at the end and on a signal; \"auto\": the Young/Daly interval, from the "
        "measured save time and checkpoint.mtbf_hours");
  k.key("checkpoint.keep", c.keep, Limits{}, kFree, "latest checkpoints to keep; 0: all");
  k.key("checkpoint.keep_every", c.keep_every, Limits{}, kFree,
        "also keep the checkpoints of steps divisible by this; 0: none");
  k.key("checkpoint.async", c.async, Limits{}, kFree,
        "write asynchronously: training blocks only for the device-to-host copy; false: it waits for the disk");
  k.key(
      "checkpoint.writers", c.writers, std::vector{Writers::rank, Writers::node}, kFree,
      "who writes a checkpoint's files: every rank its own, or one rank of each node for all of it, which means fewer "
      "and larger files at thousands of ranks; the contents are the same");
  k.key("checkpoint.mtbf_hours", c.mtbf_hours, Limits{0.001, 1e9}, kFree,
        "mean time between failures of the whole job, for checkpoint.every = \"auto\"");
}

void add_run(KeyTable& k, RunSection& c) {
  k.key("run.dir", c.dir, Limits{}, kFree, "run directory: checkpoints, metrics, samples");
  k.key("run.device", c.device, std::vector{Device::cpu, Device::cuda}, kFree, "device to compute on");
  k.key("run.log_every", c.log_every, Limits{1, 1e9}, kFree, "steps between progress lines");
  k.key("run.hang_timeout", c.hang_timeout, Limits{}, kFree,
        "watchdog: seconds after which a collective that has not finished stops the job and names the stragglers; "
        "0: never");
  k.key("run.memory_limit", c.memory_limit, Limits{}, kFree,
        "GiB that a rank may use; a run that needs more is refused before it allocates; 0: the free memory of its "
        "device");
  k.key("run.plan", c.plan, Limits{}, kFree,
        "saved plan of the exchanges, from `transmamba plan --save` or another run's plan.json; empty: the planner "
        "makes one");
  k.key("run.profile", c.profile, std::vector{Profile::none, Profile::comm, Profile::ops}, kFree,
        "print at the end: comm (calls and bytes between ranks, beside the plan's) or ops (the time of every op)");
  k.key("run.tensorboard", c.tensorboard, Limits{}, kFree, "write TensorBoard event files into the run directory");
  k.key("run.prometheus", c.prometheus, Limits{}, kFree,
        "file NAME.prom for node_exporter's textfile collector, one per run, with the latest metrics; empty: none");
  k.key("run.measure_kernels", c.measure_kernels, Limits{}, kFree,
        "on a GPU, autotune kernels on first use; the selection determines the result's bits, so it is saved in the "
        "run directory and the user's cache");
  k.key("run.graph", c.graph, Limits{}, kFree,
        "on a GPU, capture a step as CUDA graphs and replay it, bit-identically; steps timed by run.profile = \"ops\" "
        "are not captured");
  k.key("run.threads", c.threads, Limits{0, 4096}, kFree,
        "CPU threads per rank; 0: the host's cores divided by its ranks");
  k.key(
      "run.peak_tflops", c.peak_tflops, Limits{}, kFree,
      "dense peak TFLOP/s of a rank's device in train.dtype, which the MFU is relative to; 0: that of its GPU, if the "
      "model is known");
  k.key("run.canonical", c.canonical, Limits{0, 1e6}, kFree,
        "test mode with bit-identical losses and parameters for every parallel.sp, fold, dp and zero: splits each "
        "sequence into this many units (cpu, float64, slow); 0: off");
}

}  // namespace

KeyTable keys_of(RunConfig& c) {
  KeyTable keys;
  add_model(keys, c.model);
  add_data(keys, c.data);
  add_training(keys, c.train);
  add_parallel(keys, c.parallel);
  add_checkpoint(keys, c.checkpoint);
  add_run(keys, c.run);
  return keys;
}

}  // namespace tmamba
