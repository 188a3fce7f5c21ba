#include "launch/config/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/base/check.h"
#include "launch/config/key_table.h"
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
  EXPECT_NE(text.find("min_lr = 3e-5  # --set"), std::string::npos) << text;
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

TEST(Config, NumbersAreTheShortestTextThatReadsBack) {
  const std::vector<std::pair<double, std::string>> texts{{0.8, "0.8"},
                                                          {10, "10.0"},
                                                          {3e-4, "3e-4"},
                                                          {2.5e-5, "2.5e-5"},
                                                          {1e-8, "1e-8"},
                                                          {0.001, "0.001"},
                                                          {600, "600.0"},
                                                          {10000, "10000.0"},
                                                          {1e18, "1e18"},
                                                          {-2.5e-10, "-2.5e-10"},
                                                          {0.1, "0.1"},
                                                          {0, "0.0"},
                                                          {1.0 / 3, "0.3333333333333333"}};
  for (const auto& [number, text] : texts) EXPECT_EQ(text_of(number), text);
  for (double x = 1e-300; x < 1e300; x *= 3.7) {
    const RunConfig config = parse_config("[train]\nminutes = " + text_of(x), "x.toml", {});
    EXPECT_EQ(config.train.minutes, x);
  }
}

// What throws a UserError with this text, or "accepted".
template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

const std::string kTwoSets =
    "[data]\ntrain = \"t.h5\"\nvalid = \"v.h5\"\n\n[[data.validation]]\nname = \"books\"\npath = \"b.h5\"\n"
    "[[data.validation]]\npath = \"c.h5\"\nname = \"code-2\"\n[train]\nsteps = 3\n"
    "[model]\ndim = 8\nheads = 2\nlayers = 2\nffn = 8\nschedule = [0]\n";

TEST(NamedTables, HaveOriginsAndOverridesAndReadBack) {
  const RunConfig config = parse_config(kTwoSets, "x.toml", {"data.validation.books.path=other books.h5"});
  ASSERT_EQ(config.data.validation.size(), 2u);
  EXPECT_EQ(config.train.steps, 3);
  const std::vector<ValidationSet> sets = validation_sets(config.data);
  ASSERT_EQ(sets.size(), 3u);
  EXPECT_EQ(sets[0].name + " " + sets[0].path, "valid v.h5");
  EXPECT_EQ(sets[1].name + " " + sets[1].path, "books other books.h5");
  EXPECT_EQ(sets[2].name + " " + sets[2].path, "code-2 c.h5");
  const std::string text = to_toml(config);
  EXPECT_NE(text.find("\n[[data.validation]]\nname = \"books\"  # x.toml:6\npath = \"other books.h5\"  # --set\n\n"
                      "[[data.validation]]\nname = \"code-2\"  # x.toml:10\npath = \"c.h5\"  # x.toml:9\n\n[train]\n"),
            std::string::npos)
      << text;
  const auto values = [](const RunConfig& c) {
    std::string all;
    for (const KeyValue& value : config_values(c)) all += value.name + "=" + value.text + "\n";
    return all;
  };
  EXPECT_EQ(values(parse_config(text, "again", {})), values(config));
  EXPECT_NE(values(config).find("data.validation.code-2.path=\"c.h5\"\n"), std::string::npos);
  // --set replaces the whole list.
  const RunConfig replaced = parse_config(kTwoSets, "x.toml", {"data.validation=[{name = \"n\", path = \"p\"}]"});
  ASSERT_EQ(replaced.data.validation.size(), 1u);
  EXPECT_EQ(replaced.origin.at("data.validation.n.path"), "--set");
  EXPECT_FALSE(replaced.origin.contains("data.validation.books.path"));
  EXPECT_TRUE(parse_config(kTwoSets, "x.toml", {"data.validation=[]"}).data.validation.empty());
}

TEST(NamedTables, AreExplained) {
  const std::string list = explain_keys("data.validation");
  for (const char* part : {"data.validation ", "data.validation.name", "data.validation.path", "valid_loss/NAME",
                           "data.validation.NAME.KEY=VALUE"}) {
    EXPECT_NE(list.find(part), std::string::npos) << list;
    EXPECT_NE(explain_keys().find(part), std::string::npos);
  }
  for (const char* key : {"data.validation.path", "data.validation.books.path"}) {
    EXPECT_EQ(explain_keys(key).find("data.validation.path"), 0u) << explain_keys(key);
    EXPECT_EQ(explain_keys(key).find("required"), std::string::npos) << explain_keys(key);
  }
}

TEST(NamedTables, MistakesNameFileLineAndKey) {
  const auto says = [](const std::string& text, const std::vector<std::string>& overrides, const std::string& part) {
    const std::string message = message_of([&] { parse_config(text, "x.toml", overrides); });
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  const std::string begin = "[[data.validation]]\nname = \"a\"\npath = \"a.h5\"\n";
  says(begin + begin, {}, "x.toml:5: data.validation.name = \"a\" is already taken by the entry at x.toml:2");
  says("[[data.validation]]\npath = \"a.h5\"\n", {}, "x.toml:1: this [[data.validation]] has no name");
  says("[[data.validation]]\nname = \"a.b\"\n", {}, "x.toml:2: data.validation.name = \"a.b\" must be 1 to 64 letters");
  says("[[data.validation]]\nname = 3\n", {}, "x.toml:2: data.validation.name must be a string");
  says("[[data.validation]]\nname = \"a\"\n", {}, "data.validation.a.path must be given");
  says(begin + "pth = \"b\"\n", {},
       "x.toml:4: unknown key data.validation.a.pth; did you mean data.validation.a.path?");
  says("[data.validation]\npath = \"x\"\n", {}, "x.toml:1: data.validation must be a list of tables");
  says("[[data.validaton]]\nname = \"a\"\n", {}, "unknown key data.validaton; did you mean data.validation?");
  says(begin, {"data.validation.b.path=x"}, "[[data.validation]] has no entry named \"b\"; entries: a");
  says(begin, {"data.validation.a.pth=x"}, "did you mean data.validation.a.path?");
  says("", {"data.validation.b.path=x"}, "it has no entries");
  says(begin, {"data.validation=x"}, "data.validation must be a list of tables");
  says(begin + "[data]\nvalid = \"v.h5\"\n", {}, "accepted");
  says("[data]\nvalid = \"v.h5\"\n[[data.validation]]\nname = \"valid\"\npath = \"x\"\n", {}, "remove one");
}

// Keys of any type and rule in a list of a test's own.
TEST(NamedTables, TakeKeysOfEveryKind) {
  struct Phase {
    std::string name;
    int64_t steps = 7;
    double lr = 0.5;
    DType dtype = DType::f32;
  };
  std::vector<Phase> phases;
  int64_t seed = 1;
  KeyTable keys;
  keys.named_tables("train.phase", phases, "phases", [](KeyTable& entry, Phase& phase) {
    entry.key("steps", phase.steps, Limits{1, 100}, Resume::fixed, "steps");
    entry.key("lr", phase.lr, Limits{0, 10}, Resume::changes_numbers, "rate");
    entry.key("dtype", phase.dtype, std::vector{DType::f32, DType::f64}, Resume::free, "type");
  });
  keys.key("train.seed", seed, Limits{}, Resume::free, "seed");
  Origins origins;
  keys.read_text("[[train.phase]]\nname = \"a\"\n[[train.phase]]\nname = \"b\"\nlr = 1\n", "p.toml", origins);
  keys.override_by("train.phase.a.dtype=float64", origins);
  keys.override_by("train.phase.b.steps=9", origins);
  ASSERT_EQ(phases.size(), 2u);
  EXPECT_EQ(phases[0].dtype, DType::f64);
  EXPECT_EQ(phases[1].steps, 9);
  EXPECT_EQ(
      keys.to_toml(origins),
      "[train]\nseed = 1  # default\n\n[[train.phase]]\nname = \"a\"  # p.toml:2\nsteps = 7  # default\nlr = 0.5  # "
      "default\ndtype = \"float64\"  # --set\n\n[[train.phase]]\nname = \"b\"  # p.toml:4\nsteps = 9  # --set\nlr = "
      "1.0  # p.toml:5\ndtype = \"float32\"  # default\n");
  EXPECT_EQ(keys.values()[2].name, "train.phase.a.lr");
  EXPECT_EQ(keys.values()[2].resume, Resume::changes_numbers);
  EXPECT_NE(message_of([&] { keys.override_by("train.phase.a.steps=101", origins); }).find("out of range"),
            std::string::npos);
  EXPECT_NE(message_of([&] { keys.override_by("train.phase.a.dtype=int8", origins); }).find("\"float32\", \"float64\""),
            std::string::npos);
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
       "all runs to be compared; for example 18"},
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
            "model.layers 4 -> 2, model.converter \"exact\" -> \"zero\"");
  EXPECT_EQ(text_of(model_changes(was, of({"model.schedule=[0, 32]"}))), "model.schedule [0, \"1/2\"] -> [0, 32]");
  // The same schedule, and what only rounds or begins otherwise.
  EXPECT_TRUE(model_changes(was, of({"model.schedule=[0, \"1/2\", 0, \"1/2\"]", "model.chunk=8", "model.init_std=1.0"}))
                  .empty());
  EXPECT_EQ(
      text_of(training_changes(was, of({"data.seq_len=128", "train.lr=1e-3", "parallel.tp=2", "run.log_every=7"}))),
      "data.seq_len 64 -> 128, train.lr 2.5e-4 -> 0.001");
  EXPECT_TRUE(training_changes(was, was).empty());
  // Every model key is fixed but the two that rounding alone tells apart or only a beginning needs.
  for (const KeyValue& key : config_values(was)) {
    const bool model = key.name.starts_with("model.") && key.name != "model.chunk" && key.name != "model.init_std";
    EXPECT_EQ(key.resume == Resume::fixed, model) << key.name;
  }
}

}  // namespace
}  // namespace tmamba
