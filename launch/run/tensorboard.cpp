#include "launch/run/tensorboard.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>

#include "data/io/crc32c.h"
#include "data/io/fs.h"
#include "kernels/base/check.h"

namespace tmamba {

namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "events.out.tfevents.";
// Longer than any record written here: a damaged length must not allocate all memory.
constexpr uint64_t kLongestRecord = 1 << 26;

// --- protobuf's wire format

enum Wire : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  return out + static_cast<char>(value);
}

std::string key(uint32_t field, Wire wire) { return varint(uint64_t{field} << 3 | wire); }

template <class T>
std::string little_endian(T value) {
  std::string out(sizeof value, '\0');
  std::memcpy(out.data(), &value, sizeof value);  // every supported machine is little-endian
  return out;
}

std::string int_field(uint32_t field, int64_t value) {
  return key(field, kVarint) + varint(static_cast<uint64_t>(value));
}
std::string double_field(uint32_t field, double value) { return key(field, kFixed64) + little_endian(value); }
std::string float_field(uint32_t field, float value) { return key(field, kFixed32) + little_endian(value); }
std::string bytes_field(uint32_t field, const std::string& value) {
  return key(field, kBytes) + varint(value.size()) + value;
}

// --- the messages; the names are those of the .proto files

std::string event(double wall_time, int64_t step, const std::string& what) {
  return double_field(1, wall_time) + int_field(2, step) + what;
}
std::string file_version(const std::string& version) { return bytes_field(3, version); }
std::string summary(const std::string& values) { return bytes_field(5, values); }
std::string session_start() { return bytes_field(7, int_field(1, 1)); }

std::string scalar_value(const std::string& tag, double value) {
  return bytes_field(1, bytes_field(1, tag) + float_field(2, static_cast<float>(value)));
}

std::string text_value(const std::string& tag, const std::string& text) {
  constexpr int64_t dt_string = 7;
  const std::string metadata = bytes_field(1, bytes_field(1, "text"));  // plugin_data.plugin_name
  const std::string shape = bytes_field(2, int_field(1, 1));            // one dimension, of size 1
  const std::string tensor = int_field(1, dt_string) + bytes_field(2, shape) + bytes_field(8, text);
  return bytes_field(1, bytes_field(1, tag) + bytes_field(8, tensor) + bytes_field(9, metadata));
}

// --- records

uint32_t masked_crc(const std::string& data) {
  const uint32_t crc = crc32c(0, data.data(), data.size());
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

// Reads the record at the position of `in`; none at the end, or where the record is truncated or damaged.
std::optional<std::string> next_record(std::istream& in) {
  std::string head(12, '\0'), tail(4, '\0');
  if (!in.read(head.data(), 12)) return std::nullopt;
  uint64_t length = 0;
  std::memcpy(&length, head.data(), sizeof length);
  if (head.substr(8) != little_endian(masked_crc(head.substr(0, 8))) || length > kLongestRecord) return std::nullopt;
  std::string data(static_cast<size_t>(length), '\0');
  if (!in.read(data.data(), static_cast<std::streamsize>(length)) || !in.read(tail.data(), 4)) return std::nullopt;
  return tail == little_endian(masked_crc(data)) ? std::optional(data) : std::nullopt;
}

// The step of an Event that this class wrote: its second field, after 9 bytes of wall time.
int64_t step_of(const std::string& record) {
  uint64_t value = 0;
  size_t at = 10;
  for (int shift = 0; at < record.size() && shift < 64; shift += 7) {
    const auto byte = static_cast<unsigned char>(record[at++]);
    value |= uint64_t{byte & 0x7Fu} << shift;
    if (byte < 0x80) return static_cast<int64_t>(value);
  }
  return 0;
}

// Truncates a file before its first record of a later step than `step`, or that is incomplete.
void cut_after(const fs::path& file, int64_t step) {
  std::ifstream in(file, std::ios::binary);
  std::streamoff kept = 0;
  while (const auto record = next_record(in)) {
    const bool ours = record->size() > 10 && (*record)[0] == 0x09 && (*record)[9] == 0x10;
    if (ours && step_of(*record) > step) break;
    kept = in.tellg();
  }
  std::error_code error;
  if (kept == 0 && fs::file_size(file, error) > 0) {
    std::fprintf(stderr, "%s: not an event file of TensorBoard; it is left unchanged\n", file.c_str());
    return;
  }
  fs::resize_file(file, static_cast<uintmax_t>(kept), error);
  if (error) {
    throw UserError(str(file.string(), ": cannot remove the steps that will be repeated: ", error.message(),
                        "; make it writable, or turn run.tensorboard off"));
  }
}

// The time in the name of a file; TensorBoard reads files in the order of their names.
int64_t time_of(const fs::path& file) {
  const std::string name = file.filename().string();
  const size_t digits = std::strlen(kPrefix);
  int64_t time = 0;
  for (size_t i = digits; i < name.size() && i < digits + 10 && name[i] >= '0' && name[i] <= '9'; ++i)
    time = 10 * time + (name[i] - '0');
  return time;
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

std::string tfrecord(const std::string& data) {
  const std::string length = little_endian(uint64_t{data.size()});
  return length + little_endian(masked_crc(length)) + data + little_endian(masked_crc(data));
}

TensorBoardLog::TensorBoardLog(const fs::path& folder, int64_t step) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw UserError(str("run.dir: cannot create ", folder.string(), ": ", error.message()));
  const double now = seconds_now();
  auto stamp = static_cast<int64_t>(now);
  for (const fs::path& file : folder_entries(folder)) {
    if (file.filename().string().rfind(kPrefix, 0) != 0) continue;
    cut_after(file, step);
    stamp = std::max(stamp, time_of(file) + 1);
  }
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  char name[400];
  std::snprintf(name, sizeof name, "%s%010lld.%s.%d", kPrefix, static_cast<long long>(stamp), host.data(), getpid());
  file_ = folder / name;
  log_ = LineLog(file_);
  log_.append_whole(tfrecord(event(now, 0, file_version("brain.Event:2"))));
  if (step > 0) log_.append_whole(tfrecord(event(now, step + 1, session_start())));
}

void TensorBoardLog::scalars(int64_t step, double time, const std::vector<std::pair<std::string, double>>& values) {
  std::string all;
  for (const auto& [tag, value] : values) all += scalar_value(tag, value);
  if (!all.empty()) log_.append_whole(tfrecord(event(time, step, summary(all))));
}

void TensorBoardLog::text(int64_t step, double time, const std::string& tag, const std::string& text) {
  log_.append_whole(tfrecord(event(time, step, summary(text_value(tag, text)))));
}

}  // namespace tmamba
