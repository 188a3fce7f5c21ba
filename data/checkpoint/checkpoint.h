// Sharded checkpoints: a folder `step-00001000` of HDF5 files, one per writer, and `manifest.json`, which says which
// slice of which tensor lies where, with a checksum of every slice and of every file. No rank layout in it: any layout
// loads it by slices.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/world/host_group.h"
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
  int64_t keep = 3;        // newest checkpoints to keep; 0 keeps all
  int64_t keep_every = 0;  // checkpoints of steps divisible by this are never deleted; 0: none
  // Whether the ranks' slices are held against each other before anything is written. They are in any case before the
  // checkpoint becomes visible; ranks that always save the same slices need it once.
  bool check_slices_first = true;
  // Ranks that share memory, of which the first writes for all (`checkpoint.writers = "node"`); null: every rank writes
  // its own file. The memory is that of a SliceRelay. Must outlive the save.
  HostGroup* host = nullptr;
  // Called on rank 0 right before the checkpoint gets its name; what it throws ends the save with nothing visible.
  std::function<void()> before_publish = {};
};

struct SaveReport {
  std::filesystem::path path;
  int64_t bytes = 0;  // of all files of the checkpoint
  double seconds = 0;
  // What failed after the checkpoint was whole and visible (an old one that could not be removed, say), one line each.
  std::vector<std::string> warnings;
};

// Writes a checkpoint: all ranks of `comm` call it with the slices they own (together they cover every tensor once).
// Files are written under a temporary name, closed, fsynced; then the manifest; then one rename; then the folder's
// parent is fsynced and `latest` replaced. Throws on all ranks alike, leaving nothing visible, where any rank cannot
// write (disk full, say) or the slices leave a hole or overlap. Rank 0's `state` goes into the manifest: configuration,
// data position, whatever the run needs to go on; anything that JSON can hold. A checkpoint of the same step is
// replaced in one step; left-overs of crashed saves are removed. One save at a time per folder. All ranks get the same
// report.
SaveReport save_checkpoint(Communicator& comm, const std::filesystem::path& checkpoints, int64_t step,
                           std::span<const TensorSlice> slices, const nlohmann::json& state,
                           const SaveOptions& options);

// The same save in pieces, for writing behind training. In this order, on every rank:
//
//   constructor   collective; what can be wrong is found, the temporary folder is there
//   write()       writes this rank's file; any thread, no communication
//   agree()       collective, when write() has returned here; throws on all ranks alike where one could not write
//   commit()      on rank 0: manifest, name, retention; any thread, no communication
//   report()      collective, when commit() has returned on rank 0; throws on all ranks alike where it failed
//
// Whatever is thrown, nothing is visible and the temporary folder is gone. The slices' data must not change from the
// constructor to the end of write(); the communicator must outlive all.
class CheckpointSave {
 public:
  CheckpointSave(Communicator& comm, const std::filesystem::path& checkpoints, int64_t step,
                 std::vector<TensorSlice> slices, const nlohmann::json& state, const SaveOptions& options);
  ~CheckpointSave();
  CheckpointSave(const CheckpointSave&) = delete;
  CheckpointSave& operator=(const CheckpointSave&) = delete;

  // Keep what goes wrong for agree() and report().
  void write() noexcept;
  void commit() noexcept;
  void agree();
  SaveReport report();
  // From another thread: write() gives up soon.
  void cancel() { cancelled_ = true; }

 private:
  struct Impl;
  std::atomic<bool> cancelled_{false};
  std::unique_ptr<Impl> impl_;
};

// Whether each rank (with `host`: for all of its host) could write `bytes` bytes to the folder now: makes the folder
// and the files of a save, takes the space and gives it back. Collective; throws on all ranks alike as a save would.
void try_checkpoint_space(Communicator& comm, const std::filesystem::path& checkpoints, int64_t bytes,
                          HostGroup* host = nullptr);

// Bytes that are missing, or are not those that were written. what() names the file and, where known, the tensor.
class DamagedCheckpoint : public Error {
 public:
  using Error::Error;
};

struct StoredTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
};

// When a reader looks at the files that hold tensors: at all of them when it is made, or at each when something in it
// is asked for, which spares the file system where thousands of ranks read a checkpoint of thousands.
enum class FileCheck : uint8_t { at_once, when_read };

// A checkpoint open for reading. Opening reads and checks the manifest alone: the schema, the sizes of the files, and
// that the slices cover every tensor exactly. The bytes are read by the manifest, not by the HDF5 library, so that a
// file made to attack the library does nothing. Throws DamagedCheckpoint; UserError where the folder is no checkpoint
// or is of another format version; FileError (data/io/fs.h) where the system refuses. May be read from several threads.
class CheckpointReader {
 public:
  explicit CheckpointReader(const std::filesystem::path& path, FileCheck check = FileCheck::at_once);
  ~CheckpointReader();
  CheckpointReader(CheckpointReader&&) noexcept;

  const std::filesystem::path& path() const;
  int64_t step() const;
  const nlohmann::json& state() const;
  // Sorted by name.
  const std::vector<StoredTensor>& tensors() const;
  bool has(const std::string& name) const;
  // Bytes of all files that hold tensors.
  int64_t bytes() const;
  // Fills the host tensor `out` (any row stride) with the rectangle of tensor `name` that starts at `offset`. Element
  // types are converted between float32, float64 and bfloat16, to the nearest number. A slice that is touched for the
  // first time is read whole and verified; a mismatch throws DamagedCheckpoint naming file, tensor and offset, and
  // leaves `out` undefined.
  void read(const std::string& name, std::span<const int64_t> offset, const Tensor& out) const;
  // Checks every file's hash and every slice's checksum. Returns the problems found, one line each; none means whole.
  // `part` of `parts` checks only its share of the files, so that ranks can divide the work. Uses all cores.
  std::vector<std::string> verify(int64_t part = 0, int64_t parts = 1) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Folders of whole-looking checkpoints (a manifest is there) in `checkpoints`, oldest first.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& checkpoints);

// Why a checkpoint in a folder of checkpoints cannot be used, the first problem alone: its manifest is damaged or that
// of another step than the folder's name says, or bytes are not those that were written. Empty where it is whole. Reads
// everything, or only `part` of `parts` of the files. What is no damage throws, as for CheckpointReader.
std::string damage_of(const std::filesystem::path& path, int64_t part = 0, int64_t parts = 1);

// The newest checkpoint that verifies. A damaged one is renamed to `NAME.damaged` after `on_damage(path, problem)` was
// called (on rank 0), and the one before it is tried. What is no damage - permissions, too many open files, a newer
// format version - throws and renames nothing. The ranks of `comm` share the work of verifying and all get the same
// answer.
std::optional<std::filesystem::path> newest_checkpoint(
    Communicator& comm, const std::filesystem::path& checkpoints,
    const std::function<void(const std::filesystem::path&, const std::string&)>& on_damage);

// The same, called on one rank.
std::optional<std::filesystem::path> newest_checkpoint(
    const std::filesystem::path& checkpoints,
    const std::function<void(const std::filesystem::path&, const std::string&)>& on_damage);

}  // namespace tmamba
