// Sharded checkpoints: a folder `step-00001000` of HDF5 files, one per writer, and `manifest.json`, which says which slice
// of which tensor lies where, with a checksum of every slice and of every file. No rank layout in it: any layout loads it
// by slices.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dist/communicator.h"
#include "kernels/base/tensor.h"

namespace tmamba {

// A rectangle of a logical tensor, in host memory. Tensors are 1-D or 2-D.
struct TensorSlice {
  std::string name;             // "model/embedding.weight", "optim/m/layers.0.mixer.q.weight", ...
  std::vector<int64_t> shape;   // of the logical tensor
  std::vector<int64_t> offset;  // where the rectangle starts
  ConstTensor data;             // the rectangle: sizes of the data, any row stride
};

struct SaveOptions {
  int64_t keep = 3;             // newest checkpoints to keep; 0 keeps all
  int64_t keep_every = 0;       // checkpoints of steps divisible by this are never deleted; 0: none
};

struct SaveReport {
  std::filesystem::path path;
  int64_t bytes = 0;
  double seconds = 0;
};

// Writes a checkpoint: all ranks of `comm` call it with the slices they own (together they cover every tensor once).
// Files are written under a temporary name, closed, fsynced; then the manifest; then one rename; then the folder's
// parent is fsynced and `latest` replaced. Throws on all ranks alike, leaving nothing visible, where any rank cannot
// write (disk full, say). `state` goes into the manifest: step, configuration, whatever the run needs to go on.
SaveReport save_checkpoint(Communicator& comm, const std::filesystem::path& checkpoints, int64_t step,
                           std::span<const TensorSlice> slices, const nlohmann::json& state, const SaveOptions& options);

struct StoredTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
};

// A checkpoint open for reading. Opening reads and checks the manifest alone: the schema, the sizes of the files, and that
// the slices cover every tensor exactly. Errors name the file and the tensor.
class CheckpointReader {
 public:
  explicit CheckpointReader(const std::filesystem::path& path);
  ~CheckpointReader();
  CheckpointReader(CheckpointReader&&) noexcept;

  const std::filesystem::path& path() const;
  int64_t step() const;
  const nlohmann::json& state() const;
  const std::vector<StoredTensor>& tensors() const;
  bool has(const std::string& name) const;
  // Fills the host tensor `out` with the rectangle of tensor `name` that starts at `offset`. Element types are converted
  // between float32, float64 and bfloat16. Every slice that is touched is verified against its checksum first; a
  // mismatch throws Error naming file, tensor and offset.
  void read(const std::string& name, std::span<const int64_t> offset, const Tensor& out) const;
  // Checks every file hash and slice checksum. Returns the problems found, one line each; none means whole.
  std::vector<std::string> verify() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Folders of whole-looking checkpoints (a manifest is there) in `checkpoints`, oldest first.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& checkpoints);

// The newest checkpoint that verifies. A damaged one is renamed to `NAME.damaged` after `on_damage(path, problem)` was
// called, and the one before it is tried. Called on one rank.
std::optional<std::filesystem::path> newest_checkpoint(
    const std::filesystem::path& checkpoints,
    const std::function<void(const std::filesystem::path&, const std::string&)>& on_damage);

}  // namespace tmamba
