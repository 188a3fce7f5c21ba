// class TensorBoardLog: writes event files in TensorBoard's own format: TFRecord frames with masked CRC32C around Event
// messages in protobuf's wire format (tensorflow/core/util/event.proto, framework/summary.proto). Each attempt of a run
// writes a file of its own.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "launch/cli/line_log.h"

namespace tmamba {

class TensorBoardLog {
 public:
  // Truncates earlier files after `step` and before records that a crash left incomplete. The new file begins with a
  // session start, which makes a TensorBoard that is reading drop the later steps too: a curve has each step once. A
  // file that is not an event file is left unchanged and named on standard error. Throws UserError where the directory
  // cannot be written in.
  TensorBoardLog(const std::filesystem::path& folder, int64_t step);

  // Writes the scalars of one step, as pairs of tag and value.
  void scalars(int64_t step, double time, const std::vector<std::pair<std::string, double>>& values);
  void text(int64_t step, double time, const std::string& tag, const std::string& text);

  const std::filesystem::path& file() const { return file_; }

 private:
  std::filesystem::path file_;
  LineLog log_;
};

// Returns a TFRecord: length, its checksum, the data, its checksum.
std::string tfrecord(const std::string& data);

}  // namespace tmamba
