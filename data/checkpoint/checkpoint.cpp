#include "data/checkpoint/checkpoint.h"

#include <chrono>
#include <exception>
#include <map>
#include <nlohmann/json.hpp>

#include "data/checkpoint/checkpoint_file.h"
#include "data/checkpoint/checkpoint_folder.h"
#include "data/checkpoint/manifest.h"
#include "data/checkpoint/slice_relay.h"
#include "data/io/fs.h"
#include "dist/comm/collective_guard.h"
#include "kernels/base/clock.h"

namespace tmamba {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// The message that a rank sends to rank 0 about its slices. `written` is null before they are written.
json announce(int64_t step, std::span<const TensorSlice> slices, const RankFile* written) {
  json list = json::array();
  for (size_t i = 0; i < slices.size(); ++i) {
    const StoredSlice slice = written ? written->slices[i] : describe(slices[i]);
    list.push_back({slices[i].name, name_of(slices[i].data.dtype()), slices[i].shape, slice.offset, slice.shape,
                    slice.dataset, slice.position, slice.crc});
  }
  json out = {{"step", step}, {"slices", std::move(list)}};
  if (written) out["file"] = {written->file.name, written->file.bytes, written->file.sha256};
  return out;
}

StoredSlice slice_from(const json& entry, size_t file) {
  return {.file = file,
          .dataset = entry.at(5),
          .position = entry.at(6),
          .offset = entry.at(3),
          .shape = entry.at(4),
          .crc = entry.at(7)};
}

// A slice that another rank has announced, with null data.
TensorSlice remote_slice(const json& entry) {
  const std::vector<int64_t> sizes = entry.at(4);
  const DType dtype = dtype_named(entry.at(1));
  return {.name = entry.at(0),
          .shape = entry.at(2),
          .offset = entry.at(3),
          .data = sizes.size() == 1 ? ConstTensor(nullptr, {sizes[0]}, dtype)
                                    : ConstTensor(nullptr, {sizes[0], sizes[1]}, dtype)};
}

// Merges the ranks' announcements. Tensors are sorted by name, so the manifest does not depend on the layout.
Manifest assemble(const std::vector<std::string>& announcements) {
  Manifest manifest;
  std::map<std::string, ManifestTensor> tensors;
  for (size_t rank = 0; rank < announcements.size(); ++rank) {
    const json announced = json::parse(announcements[rank]);
    const int64_t step = announced.at("step");
    if (rank == 0) manifest.step = step;
    if (step != manifest.step) {
      throw Error(str("rank 0 saves step ", manifest.step, ", but rank ", rank, " saves step ", step));
    }
    if (announced.contains("file")) {
      const json& file = announced.at("file");
      manifest.files.push_back({file.at(0), file.at(1), file.at(2)});
    }
    for (const json& entry : announced.at("slices")) {
      const std::string name = entry.at(0);
      const DType dtype = dtype_named(entry.at(1));
      const std::vector<int64_t> shape = entry.at(2);
      ManifestTensor& tensor = tensors.try_emplace(name, ManifestTensor{name, dtype, shape, {}}).first->second;
      if (tensor.dtype != dtype || tensor.shape != shape) {
        throw Error(str("tensor ", name, " on rank ", rank, " is ", name_of(dtype), " ", entry.at(2).dump(),
                        ", but on a lower rank ", name_of(tensor.dtype), " ", json(tensor.shape).dump()));
      }
      tensor.slices.push_back(slice_from(entry, manifest.files.empty() ? 0 : manifest.files.size() - 1));
    }
  }
  for (auto& [name, tensor] : tensors) manifest.tensors.push_back(std::move(tensor));
  return manifest;
}

void check_request(int64_t step, std::span<const TensorSlice> slices, const json& state, const SaveOptions& options) {
  if (step < 0) throw Error(str("cannot save the negative step ", step));
  if (options.keep < 0 || options.keep_every < 0) {
    throw UserError(str("checkpoint.keep = ", options.keep, " and checkpoint.keep_every = ", options.keep_every,
                        " must not be negative"));
  }
  for (const TensorSlice& slice : slices) check_slice(slice);
  check_state(state);
}

// Removes the temporary folder of a failed save. Errors are ignored: the next save removes left-overs.
void discard(CollectiveGuard& guard, const fs::path& temporary) {
  std::error_code ignored;
  if (guard.is_root()) fs::remove_all(temporary, ignored);
}

}  // namespace

struct CheckpointSave::Impl {
  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
  CollectiveGuard guard;
  int64_t step;
  std::vector<TensorSlice> slices;
  json state;
  SaveOptions options;
  std::string file_name, nonce;
  std::optional<SliceRelay> relay;  // if one rank writes for its host
  // On that rank: for each of `slices`, the rank of the host that owns it and its index there.
  std::vector<std::pair<int, int64_t>> origins;
  fs::path temporary, final_path;
  std::optional<RankFile> written;
  std::exception_ptr problem;  // from write() or commit()
  std::vector<std::string> announcements, warnings;
  int64_t bytes = 0;
  double seconds = 0;

  Impl(Communicator& comm, int64_t save_step, std::vector<TensorSlice> own, const json& run_state,
       const SaveOptions& save_options)
      : guard(comm),
        step(save_step),
        slices(std::move(own)),
        state(run_state),
        options(save_options),
        file_name(rank_file_name(comm.rank())) {}

  bool writes() const { return !relay || options.host->leads(); }

  // Appends the slices of the host's other ranks, with null data, to those of its leader. Collective within the host.
  void gather_host_slices() {
    relay.emplace(*options.host);
    relay->reset();
    CollectiveGuard host(options.host->ranks());
    const auto announced = host.gather(announce(step, slices, nullptr).dump());
    if (!options.host->leads()) return;
    for (size_t i = 0; i < slices.size(); ++i) origins.emplace_back(0, static_cast<int64_t>(i));
    for (size_t rank = 1; rank < announced.size(); ++rank) {
      const json list = json::parse(announced[rank]).at("slices");
      for (size_t i = 0; i < list.size(); ++i) {
        slices.push_back(remote_slice(list[i]));
        origins.emplace_back(static_cast<int>(rank), static_cast<int64_t>(i));
      }
    }
  }

  void write(const std::atomic<bool>& cancelled) {
    if (!writes()) return slices.empty() ? void() : relay->serve(slices, cancelled);
    const PullBytes pull = [&](size_t slice, char* out, size_t size) {
      relay->pull(origins[slice].first, origins[slice].second, out, size, cancelled);
    };
    if (!slices.empty()) {
      written = write_rank_file(temporary / file_name, slices, cancelled, pull);
      sync_folder(temporary);
    }
  }

  void commit() {
    Manifest manifest = assemble(announcements);
    manifest.state = state;
    for (const ManifestFile& file : manifest.files) bytes += file.bytes;
    check_manifest(manifest);
    write_text_durably(temporary / kManifestName, manifest_text(manifest));
    sync_folder(temporary);
    if (options.before_publish) options.before_publish();
    publish_checkpoint(temporary, final_path, nonce);
    warnings = tidy_checkpoints(final_path, options, nonce);
    seconds = seconds_since(start);
  }
};

CheckpointSave::CheckpointSave(Communicator& comm, const fs::path& checkpoints, int64_t step,
                               std::vector<TensorSlice> slices, const json& state, const SaveOptions& options)
    : impl_(std::make_unique<Impl>(comm, step, std::move(slices), state, options)) {
  CollectiveGuard& guard = impl_->guard;
  guard.on_all([&] {
    if (checkpoints.empty()) throw UserError("the path of the checkpoint directory is empty; give one");
    check_request(step, impl_->slices, state, options);
  });
  if (options.check_slices_first) {
    const auto announcements = guard.gather(announce(step, impl_->slices, nullptr).dump());
    guard.on_root([&] { check_tensors(assemble(announcements).tensors); });
  }
  // The broadcast below returns only after all ranks have reset their relay channels.
  if (options.host != nullptr) impl_->gather_host_slices();
  impl_->nonce = guard.broadcast(guard.is_root() ? random_nonce() : "");
  const fs::path folder = fs::absolute(checkpoints);
  impl_->temporary = folder / temporary_name(step, impl_->nonce);
  impl_->final_path = folder / checkpoint_name(step);
  guard.on_root([&] {
    make_folders(folder);
    recover_set_aside(folder);
    make_folder(impl_->temporary);
  });
}

CheckpointSave::~CheckpointSave() = default;

void CheckpointSave::write() noexcept {
  try {
    impl_->write(cancelled_);
  } catch (...) {
    impl_->problem = std::current_exception();
  }
  if (impl_->relay && impl_->options.host->leads()) impl_->relay->finish();
}

void CheckpointSave::agree() {
  CollectiveGuard& guard = impl_->guard;
  try {
    guard.on_all([&] {
      if (impl_->problem) std::rethrow_exception(impl_->problem);
    });
    const RankFile* written = impl_->written ? &*impl_->written : nullptr;
    const std::span<const TensorSlice> slices =
        impl_->writes() ? std::span<const TensorSlice>(impl_->slices) : std::span<const TensorSlice>();
    impl_->announcements = guard.gather(announce(impl_->step, slices, written).dump());
  } catch (...) {
    // on_all throws on all ranks, so every rank has closed its file.
    discard(guard, impl_->temporary);
    throw;
  }
}

void CheckpointSave::commit() noexcept {
  try {
    if (impl_->guard.is_root()) impl_->commit();
  } catch (...) {
    impl_->problem = std::current_exception();
  }
}

SaveReport CheckpointSave::report() {
  CollectiveGuard& guard = impl_->guard;
  try {
    guard.on_root([&] {
      if (impl_->problem) std::rethrow_exception(impl_->problem);
    });
  } catch (...) {
    discard(guard, impl_->temporary);
    throw;
  }
  json report = {{"bytes", impl_->bytes}, {"seconds", impl_->seconds}, {"warnings", impl_->warnings}};
  report = json::parse(guard.broadcast(report.dump(-1, ' ', false, json::error_handler_t::replace)));
  return {impl_->final_path, report.at("bytes"), report.at("seconds"), report.at("warnings")};
}

SaveReport save_checkpoint(Communicator& comm, const fs::path& checkpoints, int64_t step,
                           std::span<const TensorSlice> slices, const json& state, const SaveOptions& options) {
  CheckpointSave save(comm, checkpoints, step, {slices.begin(), slices.end()}, state, options);
  save.write();
  save.agree();
  save.commit();
  return save.report();
}

void try_checkpoint_space(Communicator& comm, const fs::path& checkpoints, int64_t bytes, HostGroup* host) {
  if (host != nullptr) {
    host->ranks().all_reduce(Tensor(&bytes, {1}, DType::i64), ReduceOp::sum).wait();
    if (!host->leads()) bytes = 0;
  }
  CollectiveGuard guard(comm);
  const std::string nonce = guard.broadcast(guard.is_root() ? random_nonce() : "");
  const fs::path folder = fs::absolute(checkpoints), temporary = folder / temporary_name(0, nonce);
  guard.on_root([&] {
    make_folders(folder);
    make_folder(temporary);
  });
  try {
    guard.on_all([&] {
      if (bytes > 0) try_space(temporary / rank_file_name(comm.rank()), bytes);
      if (guard.is_root()) write_text_durably(temporary / kManifestName, "{}\n");
    });
  } catch (...) {
    discard(guard, temporary);
    throw;
  }
  discard(guard, temporary);
}

}  // namespace tmamba
