#include "launch/config/config.h"

#include <gtest/gtest.h>

#include "kernels/base/check.h"
#include "launch/state/config_change.h"

namespace tmamba {
namespace {

TEST(Config, WhatIsPrintedReadsBackTheSame) {
  const RunConfig config = parse_config(
      "[model]\ndim = 48\nheads = 4\nlayers = 2\nffn = 64\nschedule = [0, \"1/3\", 7]\n[train]\nlr = 1e-3\nbetas = "
      "[0.8, 0.9]\nsample_prompt = \"a \\\"b\\\"\\n\"\n",
      "x.toml", {"train.min_lr=3e-5", "run.dir=runs/a b"});
  const std::string text = to_toml(config);
  const RunConfig again = parse_config(text, "again", {});
  EXPECT_EQ(again.model.dim, 48);
  EXPECT_EQ(again.model.schedule, config.model.schedule);
  EXPECT_EQ(again.train.lr, 1e-3);
  EXPECT_EQ(again.train.min_lr, 3e-5);
  EXPECT_EQ(again.train.optimizer.betas, config.train.optimizer.betas);
  EXPECT_EQ(again.train.sample_prompt, "a \"b\"\n");
  EXPECT_EQ(again.run.dir, "runs/a b");
  EXPECT_NE(text.find("dim = 48  # x.toml:2"), std::string::npos) << text;
  EXPECT_NE(text.find("min_lr = 3e-05  # --set"), std::string::npos) << text;
  EXPECT_NE(text.find("conv = 4  # default"), std::string::npos) << text;
}

TEST(Config, TextsOfAnyKindAreStoredAndReadBack) {
  const std::string odd = "\x01\x1b\x7f\r\"\\ caf\xC3\xA9", accents = "\xC3\xA9t\xC3\xA9 = \"x\"";
  const RunConfig config = parse_config("[run]\ndir = \"\\u0001\\u001b\\u007f\\r\\\"\\\\ caf\xC3\xA9\"\n", "x.toml",
                                        {"train.sample_prompt=" + accents});
  EXPECT_EQ(config.run.dir, odd);
  EXPECT_EQ(config.train.sample_prompt, accents);
  const RunConfig again =
      parse_config("[model]\ndim = 8\n" + to_toml(config).substr(to_toml(config).find("[run]")), "again", {});
  EXPECT_EQ(again.run.dir, odd);
  EXPECT_THROW(parse_config("", "x.toml", {"run.dir=\xFF"}), UserError);
  // Letters of any language in comments and in quotes of every kind.
  const RunConfig quoted = parse_config(
      "# \xC3\xA9\n[run]\ndir = \"\"\"\xC3\xA9\\\"\"\"\"  # \xC3\xA9\n[data]\ntrain = '''\xC3\xA9''''\nvalid = "
      "'\\'\n[train]\nsteps = 3\n",
      "x.toml", {});
  EXPECT_EQ(quoted.run.dir, "\xC3\xA9\"");
  EXPECT_EQ(quoted.data.train, "\xC3\xA9'");
  EXPECT_EQ(quoted.data.valid, "\\");
  EXPECT_EQ(quoted.train.steps, 3);
}

// Every key with one letter dropped, doubled or exchanged is refused, and the key meant is the one named.
TEST(Config, MistypedKeysNameTheNearest) {
  int tried = 0, named = 0;
  std::string section;
  for (const char* key :
       {"model.dim",          "model.heads",      "model.layers",          "model.schedule",   "model.converter",
        "data.train",         "data.seq_len",     "data.tokenizer",        "train.steps",      "train.global_batch",
        "train.micro_batch",  "train.warmup",     "train.weight_decay",    "train.eval_every", "train.sample_prompt",
        "parallel.transport", "checkpoint.every", "checkpoint.keep_every", "run.device",       "run.log_every"}) {
    const std::string name = key;
    const size_t leaf = name.find('.') + 1;
    for (size_t i = leaf; i < name.size(); ++i) {
      std::vector<std::string> mistakes = {name.substr(0, i) + name[i] + name.substr(i),
                                           name.substr(0, i) + name.substr(i + 1)};
      if (i + 1 < name.size()) mistakes.push_back(name.substr(0, i) + name[i + 1] + name[i] + name.substr(i + 2));
      for (const std::string& mistake : mistakes) {
        if (mistake == name || mistake.ends_with('.')) continue;
        try {
          parse_config("", "x.toml", {mistake + "=1"});
          ADD_FAILURE() << mistake << " was accepted";
        } catch (const UserError& error) {
          ++tried;
          named += std::string(error.what()).find("did you mean " + name + "?") != std::string::npos;
        }
      }
    }
  }
  EXPECT_GT(tried, 400);
  EXPECT_GE(named, tried * 95 / 100) << named << " of " << tried;
}

TEST(Config, MistakesNameFileLineAndKey) {
  auto message = [](const std::string& text) -> std::string {
    try {
      validate(parse_config(text, "x.toml", {}));
    } catch (const UserError& error) {
      return error.what();
    }
    return "accepted";
  };
  auto says = [&](const std::string& text, const std::string& part) {
    EXPECT_NE(message(text).find(part), std::string::npos) << message(text);
  };
  says("[model]\ndim = \"wide\"\n", "x.toml:2: model.dim must be an integer");
  says("[model]\nconv = 9\n", "x.toml:2: model.conv = 9 is out of range");
  says("[train]\n\nbetas = [0.9]\n", "x.toml:3: train.betas");
  says("[model]\nschedule = [0, true]\n", "x.toml:2: model.schedule");
  says("[modle]\ndim = 4\n", "did you mean model.dim?");
  says("dim = 4\n", "x.toml:1: unknown key dim; did you mean model.dim?");
  says("[model]\ndim = 4\ndim = 5\n", "x.toml:3");
  says("[model\n", "x.toml:1");
}

// The message that a canonical run of 128 tokens in 16 units of 8 is refused with, changed by `overrides`.
std::string canonical_refusal(const std::vector<std::string>& overrides) {
  const RunConfig config = parse_config(
      "[model]\ndim = 8\nheads = 2\nlayers = 2\nffn = 8\nchunk = 4\nschedule = [0]\n[data]\ntrain = \"t.h5\"\n"
      "seq_len = 128\n[train]\nsteps = 1\ndtype = \"float64\"\n[run]\ndir = \"r\"\ncanonical = 16\n",
      "x.toml", overrides);
  try {
    validate(config);
  } catch (const UserError& error) {
    return error.what();
  }
  return str("accepted, grain ", config.grain());
}

TEST(Config, CanonicalRunsAreCheckedAtOnce) {
  EXPECT_EQ(canonical_refusal({}), "accepted, grain 16");
  EXPECT_EQ(canonical_refusal({"parallel.sp=2", "parallel.fold=4"}), "accepted, grain 2");
  EXPECT_EQ(canonical_refusal({"run.canonical=0", "train.dtype=float32", "parallel.sp=3"}), "accepted, grain 1");
  const std::vector<std::pair<std::vector<std::string>, std::string>> refused{
      {{"train.dtype=float32"}, "train.dtype = \"float64\""},
      {{"run.device=cuda"}, "run.device = \"cpu\""},
      {{"parallel.tp=2"}, "needs parallel.tp = 1"},
      {{"parallel.sp=3", "parallel.fold=2"},
       "must be a multiple of parallel.sp * parallel.fold = 3 * 2, and the same in "
       "all runs to be compared; 18 is one"},
      {{"run.canonical=64"}, "set run.canonical to a divisor of 32"},
      {{"run.canonical=12"}, "set run.canonical to a divisor of 32"},
      {{"data.seq_len=130"}, "data.seq_len = 130"}};
  for (const auto& [overrides, message] : refused) {
    const std::string got = canonical_refusal(overrides);
    EXPECT_NE(got.find(message), std::string::npos) << overrides[0] << ": " << got;
    EXPECT_NE(got.find("run.canonical = "), std::string::npos) << got;
  }
}

TEST(ConfigChange, AModelIsAnotherByWhatItsWeightsMean) {
  const std::string text = "[model]\nlayers = 4\nschedule = [0, \"1/2\"]\n[data]\nseq_len = 64\n";
  const auto of = [&](const std::vector<std::string>& overrides) { return parse_config(text, "x.toml", overrides); };
  const RunConfig was = of({});
  EXPECT_EQ(text_of(model_changes(was, of({"model.layers=2", "model.converter=zero"}))),
            "model.layers 2, was 4; model.converter \"zero\", was \"exact\"");
  EXPECT_EQ(text_of(model_changes(was, of({"model.schedule=[0, 32]"}))), "model.schedule [0, 32], was [0, \"1/2\"]");
  // The same schedule, and what only rounds or begins otherwise.
  EXPECT_TRUE(model_changes(was, of({"model.schedule=[0, \"1/2\", 0, \"1/2\"]", "model.chunk=8", "model.init_std=1.0"}))
                  .empty());
  EXPECT_EQ(
      text_of(training_changes(was, of({"data.seq_len=128", "train.lr=1e-3", "parallel.tp=2", "run.log_every=7"}))),
      "data.seq_len 128, was 64; train.lr 0.001, was 0.00025");
  EXPECT_TRUE(training_changes(was, was).empty());
}

}  // namespace
}  // namespace tmamba
