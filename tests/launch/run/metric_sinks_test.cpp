// TensorBoard and Prometheus files of a run, read by code that is independent of the writers.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>

#include "data/io/fs.h"
#include "kernels/base/check.h"
#include "launch/run/prometheus.h"
#include "launch/run/tensorboard.h"
#include "tests/launch/killed_run.h"
#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

// CRC-32C bit by bit, from its definition.
uint32_t slow_crc32c(const std::string& data) {
  uint32_t crc = ~0u;
  for (unsigned char byte : data) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
  }
  return ~crc;
}

uint32_t number_at(const std::string& data, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= static_cast<uint32_t>(static_cast<unsigned char>(data.at(at + i))) << 8 * i;
  return value;
}

bool right_crc(const std::string& data, uint32_t stored) {
  const uint32_t rotated = stored - 0xA282EAD8u, crc = rotated << 15 | rotated >> 17;
  return crc == slow_crc32c(data);
}

std::vector<std::string> records_of(const std::string& file) {
  std::vector<std::string> records;
  for (size_t at = 0; at < file.size();) {
    const uint64_t length = number_at(file, at) | static_cast<uint64_t>(number_at(file, at + 4)) << 32;
    if (!right_crc(file.substr(at, 8), number_at(file, at + 8))) throw std::runtime_error("checksum of a length");
    records.push_back(file.substr(at + 12, length));
    if (records.back().size() != length) throw std::runtime_error("cut short");
    if (!right_crc(records.back(), number_at(file, at + 12 + length))) throw std::runtime_error("checksum of data");
    at += 16 + length;
  }
  return records;
}

// The fields of a message: number -> raw value (varints as 8 bytes).
std::multimap<uint32_t, std::string> fields_of(const std::string& message) {
  std::multimap<uint32_t, std::string> fields;
  size_t at = 0;
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<unsigned char>(message.at(at++));
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < message.size()) {
    const uint64_t key = varint();
    size_t bytes = 0;
    switch (key & 7) {
      case 0: {
        const uint64_t value = varint();
        fields.insert({static_cast<uint32_t>(key >> 3), std::string(reinterpret_cast<const char*>(&value), 8)});
        continue;
      }
      case 1:
        bytes = 8;
        break;
      case 2:
        bytes = varint();
        break;
      case 5:
        bytes = 4;
        break;
      default:
        throw std::runtime_error("unknown wire type");
    }
    if (at + bytes > message.size()) throw std::runtime_error("field cut short");
    fields.insert({static_cast<uint32_t>(key >> 3), message.substr(at, bytes)});
    at += bytes;
  }
  return fields;
}

template <class T>
T as(const std::string& raw) {
  T value{};
  if (raw.size() != sizeof value) throw std::runtime_error("a field of another size");
  std::memcpy(&value, raw.data(), sizeof value);
  return value;
}

struct Decoded {
  double time = 0;
  int64_t step = 0;
  std::string version;
  bool session_start = false;
  std::map<std::string, float> scalars;
  std::map<std::string, std::string> texts;
};

Decoded decode(const std::string& record) {
  Decoded event;
  const auto fields = fields_of(record);
  event.time = as<double>(fields.find(1)->second);
  if (fields.count(2)) event.step = as<int64_t>(fields.find(2)->second);
  if (fields.count(3)) event.version = fields.find(3)->second;
  if (fields.count(7)) event.session_start = as<int64_t>(fields_of(fields.find(7)->second).find(1)->second) == 1;
  if (!fields.count(5)) return event;
  for (const auto& [number, value] : fields_of(fields.find(5)->second)) {
    EXPECT_EQ(number, 1u);
    const auto parts = fields_of(value);
    const std::string tag = parts.find(1)->second;
    if (parts.count(2)) event.scalars[tag] = as<float>(parts.find(2)->second);
    if (!parts.count(8)) continue;
    const auto tensor = fields_of(parts.find(8)->second);
    EXPECT_EQ(as<int64_t>(tensor.find(1)->second), 7);  // DT_STRING
    EXPECT_EQ(fields_of(fields_of(parts.find(9)->second).find(1)->second).find(1)->second, "text");
    event.texts[tag] = tensor.find(8)->second;
  }
  return event;
}

std::vector<Decoded> decode_file(const fs::path& file) {
  std::vector<Decoded> events;
  for (const std::string& record : records_of(read_file(file))) events.push_back(decode(record));
  return events;
}

TEST(TensorBoard, RecordsHaveTheChecksumsOfTheFormat) {
  // The checksum of the empty string, masked: a constant of the format.
  const std::string empty = tfrecord("");
  ASSERT_EQ(empty.size(), 16u);
  EXPECT_EQ(number_at(empty, 12), 0xA282EAD8u);
  EXPECT_EQ(slow_crc32c("123456789"), 0xE3069283u);
  for (size_t bytes : {1u, 8u, 127u, 128u, 100000u}) {
    const std::string data(bytes, 'x');
    EXPECT_EQ(records_of(tfrecord(data)), std::vector<std::string>{data});
  }
}

TEST(TensorBoard, ScalarsAndTextsReadBack) {
  const fs::path folder = enter_test_folder("tensorboard") / "logs";
  TensorBoardLog log(folder, 0);
  log.scalars(1, 1.7e9, {{"train/loss", 2.5}, {"train/lr", 1e-3}});
  log.scalars(int64_t{1} << 40, 1.7e9 + 1, {{"train/loss", std::nan("")}});
  log.text(3, 1.7e9 + 2, "sample", "Heart <b>\xC3\xBC");
  const std::vector<Decoded> events = decode_file(log.file());
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0].version, "brain.Event:2");
  EXPECT_EQ(events[1].step, 1);
  EXPECT_EQ(events[1].time, 1.7e9);
  EXPECT_EQ(events[1].scalars, (std::map<std::string, float>{{"train/loss", 2.5f}, {"train/lr", 1e-3f}}));
  EXPECT_EQ(events[2].step, int64_t{1} << 40);
  EXPECT_TRUE(std::isnan(events[2].scalars.at("train/loss")));
  EXPECT_EQ(events[3].texts.at("sample"), "Heart <b>\xC3\xBC");
  EXPECT_NE(log.file().filename().string().find("tfevents"), std::string::npos);
}

TEST(TensorBoard, AnAttemptTruncatesWhatIsRepeated) {
  const fs::path folder = enter_test_folder("tensorboard-cut") / "logs";
  fs::path first_file;
  {
    TensorBoardLog first(folder, 0);
    for (int64_t step = 1; step <= 10; ++step) first.scalars(step, 1e9, {{"x", static_cast<double>(step)}});
    first_file = first.file();
  }
  // A crash truncated its last record; a file of another program is beside it.
  fs::resize_file(first_file, fs::file_size(first_file) - 3);
  std::ofstream(folder / "events.out.tfevents.0000000001.other") << "something else";
  std::ofstream(folder / "notes.txt") << "mine";
  TensorBoardLog second(folder, 6);
  second.scalars(7, 1e9, {{"x", 70}});
  EXPECT_LT(first_file.filename().string(), second.file().filename().string());  // in the order they are read
  const std::vector<Decoded> events = decode_file(first_file);
  ASSERT_EQ(events.size(), 7u);
  EXPECT_EQ(events.back().step, 6);
  const std::vector<Decoded> later = decode_file(second.file());
  ASSERT_EQ(later.size(), 3u);
  EXPECT_TRUE(later[1].session_start);
  EXPECT_EQ(later[1].step, 7);
  EXPECT_EQ(later[2].scalars.at("x"), 70);
  EXPECT_EQ(read_file(folder / "events.out.tfevents.0000000001.other"), "something else");
  EXPECT_EQ(read_file(folder / "notes.txt"), "mine");
  // Any damaged byte: the records before it remain, no wrong value is read and nothing throws.
  const std::string whole = read_file(first_file);
  for (size_t at = 0; at < whole.size(); at += 7) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x20);
    std::ofstream(first_file, std::ios::binary) << damaged;
    const fs::path scratch = folder.parent_path() / "scratch";
    fs::remove_all(scratch);
    fs::create_directories(scratch);
    fs::copy_file(first_file, scratch / first_file.filename());
    TensorBoardLog third(scratch, 6);
    const std::string cut = read_file(scratch / first_file.filename());
    EXPECT_LE(cut.size(), whole.size());
    if (cut.size() == whole.size()) continue;  // the damage is in its first record: it was left as it is
    EXPECT_NO_THROW(records_of(cut)) << "byte " << at;
  }
}

TEST(TensorBoard, TheCurvesOfAKilledRunDoNotDouble) {
  const KilledRun& run = killed_run();
  ASSERT_EQ(run.code, 85) << run.output;
  std::map<std::string, std::vector<std::pair<int64_t, float>>> curves;
  std::vector<fs::path> files;
  int sessions = 0, samples = 0;
  for (const fs::path& file : folder_entries(run.folder / "run/tensorboard")) {  // sorted, as TensorBoard reads them
    files.push_back(file);
    for (const Decoded& event : decode_file(file)) {
      sessions += event.session_start;
      samples += static_cast<int>(event.texts.count("sample"));
      for (const auto& [tag, value] : event.scalars) curves[tag].push_back({event.step, value});
    }
  }
  EXPECT_EQ(files.size(), 2u);
  EXPECT_EQ(sessions, 1);
  EXPECT_GE(samples, 3);
  std::vector<std::pair<int64_t, float>> losses, held_out;
  for (const nlohmann::json& line : metrics(run.folder / "run")) {
    if (line.contains("loss")) losses.push_back({line["step"], line["loss"].get<float>()});
    if (line.contains("valid_loss")) held_out.push_back({line["step"], line["valid_loss"].get<float>()});
  }
  EXPECT_EQ(curves["train/loss"], losses);
  EXPECT_EQ(curves["valid/loss"], held_out);
  for (const char* tag :
       {"train/lr", "train/grad_norm", "train/bits_per_byte", "speed/tokens_per_s", "time/compute_ms", "memory/bytes"})
    EXPECT_EQ(curves[tag].size(), losses.size()) << tag;
}

// Value of each metric; every line must be one of the exposition format.
std::map<std::string, double> scraped(const std::string& text) {
  std::map<std::string, double> values;
  std::map<std::string, std::string> types;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string a, b, c, d;
    if (line.rfind("# ", 0) == 0) {
      words >> a >> b >> c >> d;
      EXPECT_TRUE(b == "HELP" || b == "TYPE") << line;
      if (b == "TYPE") types[c] = d;
      continue;
    }
    const size_t brace = line.find('{'), end = line.rfind("} ");
    if (brace == std::string::npos || end == std::string::npos) {
      ADD_FAILURE() << line;
      continue;
    }
    const std::string name = line.substr(0, brace);
    EXPECT_TRUE(types.count(name)) << line;
    EXPECT_EQ(types[name] == "counter", name.size() > 6 && name.substr(name.size() - 6) == "_total") << line;
    EXPECT_TRUE(values.emplace(name, std::stod(line.substr(end + 2))).second) << "twice: " << line;
  }
  return values;
}

TEST(Prometheus, AKilledRunsFileHoldsItsLatestFigures) {
  const KilledRun& run = killed_run();
  ASSERT_EQ(run.code, 85) << run.output;
  const std::string text = read_file(run.folder / "run.prom");
  EXPECT_EQ(text.back(), '\n');
  const auto values = scraped(text);
  const nlohmann::json last = metrics(run.folder / "run").back();
  EXPECT_EQ(values.at("transmamba_running"), 0);
  EXPECT_EQ(values.at("transmamba_step"), last["step"].get<double>());
  EXPECT_EQ(values.at("transmamba_checkpoint_step"), last["step"].get<double>());
  EXPECT_EQ(values.at("transmamba_loss"), last["loss"].get<double>());
  EXPECT_NEAR(values.at("transmamba_step_seconds"), 1e-3 * last["step_ms"].get<double>(), 1e-9);
  EXPECT_EQ(values.at("transmamba_ranks"), 1);
  EXPECT_GT(values.at("transmamba_checkpoint_timestamp_seconds"), 1.7e9);
  for (const fs::path& entry : folder_entries(run.folder)) EXPECT_NE(entry.extension(), ".tmp") << entry;
}

TEST(Prometheus, OddNamesAndNumbersKeepTheFormat) {
  enter_test_folder("prometheus");
  PrometheusFile file("x.prom", "a \"b\\c\"\nd");
  file.metric({{"step", 5}, {"loss", nullptr}, {"grad_norm", INFINITY}, {"time", 5.0}, {"skipped", true}});
  file.event("checkpoint_failed", 6, {{"step", 5}});
  const std::string text = read_file("x.prom");
  EXPECT_NE(text.find("transmamba_loss{run=\"a \\\"b\\\\c\\\"\\nd\"} NaN\n"), std::string::npos) << text;
  EXPECT_NE(text.find("transmamba_gradient_norm{run=\"a \\\"b\\\\c\\\"\\nd\"} +Inf\n"), std::string::npos) << text;
  const auto values = scraped(text);
  EXPECT_EQ(values.at("transmamba_skipped_steps_total"), 1);
  EXPECT_EQ(values.at("transmamba_checkpoint_failures_total"), 1);
  EXPECT_THROW(PrometheusFile("missing/x.prom", "r"), UserError);
  // Removing the directory later does not end the run; the file is written again once the directory exists.
  fs::create_directories("there");
  PrometheusFile late("there/y.prom", "r");
  fs::remove_all("there");
  EXPECT_NO_THROW(late.event("checkpoint", 1, {{"step", 1}}));
  fs::create_directories("there");
  late.event("checkpoint", 2, {{"step", 2}});
  EXPECT_EQ(scraped(read_file("there/y.prom")).at("transmamba_checkpoint_step"), 2);
}

TEST(Prometheus, MistakesAreFoundBeforeTraining) {
  const KilledRun& run = killed_run();
  fs::current_path(run.folder);
  Outcome outcome = transmamba("train run.toml --check --set run.prometheus=metrics.txt");
  EXPECT_EQ(outcome.code, 2) << outcome.output;
  EXPECT_NE(outcome.output.find("must end in .prom"), std::string::npos) << outcome.output;
  outcome = transmamba("train run.toml --set run.dir=other --set run.prometheus=missing/x.prom");
  EXPECT_EQ(outcome.code, 2) << outcome.output;
  EXPECT_NE(outcome.output.find("missing/x.prom"), std::string::npos) << outcome.output;
}

}  // namespace
}  // namespace tmamba
