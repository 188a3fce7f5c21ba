// Sharded checkpoints: a folder `step-00001000` of HDF5 files, one per writer, and `manifest.json`, which lists the
// location and checksum of every tensor slice and the checksum of every file. A checkpoint does not depend on the
// parallel layout that wrote it: any layout loads the slices it needs.
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

// A rectangular slice of a logical tensor, in host memory. Tensors are 1-D or 2-D.
struct TensorSlice {
  std::string name;             // "model/embedding.weight", "optim/m/layers.0.mixer.q.weight", ...
  std::vector<int64_t> shape;   // of the logical tensor
  std::vector<int64_t> offset;  // of the slice in the logical tensor
  ConstTensor data;             // the slice, with any row stride
};

struct SaveOptions {
  int64_t keep = 3;        // number of latest checkpoints to keep; 0 keeps all
  int64_t keep_every = 0;  // never delete checkpoints of steps divisible by this; 0: no such rule
  // Checks before writing that the ranks' slices cover every tensor exactly once. The check runs in any case before the
  // checkpoint becomes visible, so ranks that always save the same slices need the early one only for the first save.
  bool check_slices_first = true;
  // The ranks of a host, of which the first writes for all (`checkpoint.writers = "node"`); null: every rank writes its
  // own file. Its shared memory is used by a SliceRelay. Must outlive the save.
  HostGroup* host = nullptr;
  // Called on rank 0 right before the checkpoint is renamed to its final name; if it throws, the save fails and nothing
  // becomes visible.
  std::function<void()> before_publish = {};
};

struct SaveReport {
  std::filesystem::path path;
  int64_t bytes = 0;  // of all files of the checkpoint
  double seconds = 0;
  // Problems after the checkpoint became complete and visible, such as an old one that could not be removed; one line
  // each.
  std::vector<std::string> warnings;
};

// Writes a checkpoint. Collective: all ranks of `comm` call it with the slices they own, which together cover every
// tensor exactly once. The files are written and fsynced in a temporary folder, then the manifest, then the folder is
// renamed, its parent is fsynced and `latest` is replaced. Rank 0's `state` is stored in the manifest: any JSON the run
// needs to resume, such as configuration and data position. A checkpoint of the same step is replaced atomically, and
// left-overs of crashed saves are removed. Throws on all ranks, leaving nothing visible, if a rank cannot write (for
// example because the disk is full) or if the slices leave a hole or overlap. Only one save per folder may run at a
// time. All ranks return the same report.
SaveReport save_checkpoint(Communicator& comm, const std::filesystem::path& checkpoints, int64_t step,
                           std::span<const TensorSlice> slices, const nlohmann::json& state,
                           const SaveOptions& options);

// The same save in steps, so that it can run concurrently with training. Every rank calls, in this order:
//
//   constructor   collective; checks the request and creates the temporary folder
//   write()       writes this rank's file; on any thread, without communication
//   agree()       collective, after write() has returned here; throws on all ranks if a rank could not write
//   commit()      on rank 0 writes the manifest, renames the folder and applies the retention; on any thread, without
//                 communication
//   report()      collective, after commit() has returned on rank 0; throws on all ranks if it failed
//
// If any of them throws, nothing is visible and the temporary folder is removed. The slices' data must not change
// between the constructor and the end of write(); the communicator must outlive this object.
class CheckpointSave {
 public:
  CheckpointSave(Communicator& comm, const std::filesystem::path& checkpoints, int64_t step,
                 std::vector<TensorSlice> slices, const nlohmann::json& state, const SaveOptions& options);
  ~CheckpointSave();
  CheckpointSave(const CheckpointSave&) = delete;
  CheckpointSave& operator=(const CheckpointSave&) = delete;

  // These store exceptions, which agree() and report() throw.
  void write() noexcept;
  void commit() noexcept;
  void agree();
  SaveReport report();
  // From another thread: makes write() stop soon with an error.
  void cancel() { cancelled_ = true; }

 private:
  struct Impl;
  std::atomic<bool> cancelled_{false};
  std::unique_ptr<Impl> impl_;
};

// Checks that every rank (with `host`: every host's writer) can write `bytes` bytes per rank to the folder: creates the
// folder and the files of a save, allocates the space and removes them again. Collective; throws on all ranks as a save
// would.
void try_checkpoint_space(Communicator& comm, const std::filesystem::path& checkpoints, int64_t bytes,
                          HostGroup* host = nullptr);

// The checkpoint lacks bytes or has other bytes than were written. what() names the file and, if known, the tensor.
class DamagedCheckpoint : public Error {
 public:
  using Error::Error;
};

struct StoredTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
};

// When a reader opens the tensor files to check their sizes: all of them in the constructor, or each on first use. The
// latter spares the file system when thousands of ranks open a checkpoint of thousands of files.
enum class FileCheck : uint8_t { at_once, when_read };

// A checkpoint open for reading, treated as untrusted input. Opening reads the manifest and checks its schema, the
// sizes of the files, and that the slices cover every tensor exactly. Tensor bytes are read at the positions that the
// manifest lists, without an HDF5 parser. Throws DamagedCheckpoint if the checkpoint is damaged, UserError if the
// folder is not a checkpoint or has another format version, and FileError (data/io/fs.h) if a system call fails.
// Thread-safe.
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
  // Bytes of all tensor files.
  int64_t bytes() const;
  // Fills the host tensor `out` (any row stride) with the slice of tensor `name` that starts at `offset` and has out's
  // sizes. Converts between float32, float64 and bfloat16, rounding to nearest. The first read from a stored slice
  // reads all of it and verifies its checksum; a mismatch throws DamagedCheckpoint naming file, tensor and offset, and
  // leaves `out` undefined.
  void read(const std::string& name, std::span<const int64_t> offset, const Tensor& out) const;
  // Verifies every file's hash and every slice's checksum. Returns the problems, one line each; empty if the checkpoint
  // is complete and undamaged. Checks only the files with index % parts == part, so that ranks can divide the work.
  // Uses all cores.
  std::vector<std::string> verify(int64_t part = 0, int64_t parts = 1) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Folders in `checkpoints` that have a checkpoint's name and a manifest, oldest first. Does not verify them.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& checkpoints);

// The first problem that makes a checkpoint unusable: its manifest is damaged or is of another step than the folder's
// name, or bytes fail their checksum. Empty if it is complete. Verifies all files, or those of `part` of `parts` (see
// CheckpointReader::verify). Other failures throw, as in CheckpointReader.
std::string damage_of(const std::filesystem::path& path, int64_t part = 0, int64_t parts = 1);

// The latest complete checkpoint; nullopt if there is none. A damaged one is renamed to `NAME.damaged`, after rank 0
// has called `on_damage(path, problem)`, and the one before it is tried. Failures other than damage (permissions, too
// many open files, a newer format version) throw and rename nothing. Collective: the ranks of `comm` share the work of
// verifying and return the same path.
std::optional<std::filesystem::path> latest_checkpoint(
    Communicator& comm, const std::filesystem::path& checkpoints,
    const std::function<void(const std::filesystem::path&, const std::string&)>& on_damage);

// The same on a single rank.
std::optional<std::filesystem::path> latest_checkpoint(
    const std::filesystem::path& checkpoints,
    const std::function<void(const std::filesystem::path&, const std::string&)>& on_damage);

}  // namespace tmamba
