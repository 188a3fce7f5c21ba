// class TensorBoardLog: event files for TensorBoard, in its own format: TFRecord frames with masked CRC32C around Event
// messages in protobuf's wire format (tensorflow/core/util/event.proto, framework/summary.proto). Each start of a run
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
  // Steps after `step` that earlier files hold are cut off their ends, as are records that a crash left half-written,
  // and the new file begins with a mark that makes a TensorBoard which reads along forget them too: each step stands
  // in a curve once. A file that is no event file is left alone and named on standard error. Throws UserError where
  // the folder cannot be written in.
  TensorBoardLog(const std::filesystem::path& folder, int64_t step);

  // Scalars of one step; "loss" and so on are their tags.
  void scalars(int64_t step, double time, const std::vector<std::pair<std::string, double>>& values);
  void text(int64_t step, double time, const std::string& tag, const std::string& text);

  const std::filesystem::path& file() const { return file_; }

 private:
  std::filesystem::path file_;
  LineLog log_;
};

// A TFRecord: length, its checksum, the data, its checksum.
std::string tfrecord(const std::string& data);

}  // namespace tmamba
