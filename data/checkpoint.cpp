#include "data/checkpoint.h"

#include <chrono>
#include <map>
#include <nlohmann/json.hpp>

#include "data/checkpoint_crew.h"
#include "data/checkpoint_file.h"
#include "data/checkpoint_folder.h"
#include "data/fs.h"
#include "data/manifest.h"

namespace tmamba {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// What a rank tells rank 0 about its slices. `written` is null before they are written.
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

// Puts the ranks' announcements together, tensors in the order of their names whoever holds them.
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
                        ", on a rank before it ", name_of(tensor.dtype), " ", json(tensor.shape).dump()));
      }
      tensor.slices.push_back(slice_from(entry, manifest.files.empty() ? 0 : manifest.files.size() - 1));
    }
  }
  for (auto& [name, tensor] : tensors) manifest.tensors.push_back(std::move(tensor));
  return manifest;
}

void check_request(int64_t step, std::span<const TensorSlice> slices, const json& state, const SaveOptions& options) {
  if (step < 0) throw Error(str("cannot save step ", step));
  if (options.keep < 0 || options.keep_every < 0) throw UserError("a number of checkpoints to keep is negative");
  for (const TensorSlice& slice : slices) check_slice(slice);
  check_state(state);
}

// Writes manifest.json into the temporary folder, then makes the folder visible.
void commit(const fs::path& temporary, const fs::path& final_path, const Manifest& manifest, const std::string& nonce) {
  check_manifest(manifest);
  write_text_durably(temporary / kManifestName, manifest_text(manifest));
  sync_folder(temporary);
  publish_checkpoint(temporary, final_path, nonce);
}

// Everything between the agreement to save and the visible checkpoint; returns its bytes (on rank 0).
int64_t write_all(Crew& crew, const fs::path& temporary, const fs::path& final_path, const std::string& file_name,
                  const std::string& nonce, std::span<const TensorSlice> slices, const json& state, int64_t step) {
  std::optional<RankFile> written;
  crew.first_does([&] {
    make_folders(temporary.parent_path());
    recover_set_aside(temporary.parent_path());
    make_folder(temporary);
  });
  crew.together([&] {
    if (slices.empty()) return;
    written = write_rank_file(temporary / file_name, slices);
    sync_folder(temporary);
  });
  const auto announcements = crew.gather(announce(step, slices, written ? &*written : nullptr).dump());
  int64_t bytes = 0;
  crew.first_does([&] {
    Manifest manifest = assemble(announcements);
    manifest.state = state;
    for (const ManifestFile& file : manifest.files) bytes += file.bytes;
    commit(temporary, final_path, manifest, nonce);
  });
  return bytes;
}

}  // namespace

SaveReport save_checkpoint(Communicator& comm, const fs::path& checkpoints, int64_t step,
                           std::span<const TensorSlice> slices, const json& state, const SaveOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  Crew crew(comm);
  crew.together([&] {
    if (checkpoints.empty()) throw UserError("no folder for checkpoints is given");
    check_request(step, slices, state, options);
  });
  // A hole or an overlap is found before anything is written.
  const auto announcements = crew.gather(announce(step, slices, nullptr).dump());
  crew.first_does([&] { check_tensors(assemble(announcements).tensors); });

  const std::string nonce = crew.from_first(crew.first() ? random_nonce() : "");
  const fs::path folder = fs::absolute(checkpoints);
  const fs::path temporary = folder / temporary_name(step, nonce), final_path = folder / checkpoint_name(step);
  json report;
  try {
    report["bytes"] = write_all(crew, temporary, final_path, rank_file_name(comm.rank()), nonce, slices, state, step);
  } catch (...) {
    // All ranks have come here and closed their files.
    std::error_code ignored;  // what cannot be removed now is a left-over that the next save removes
    if (crew.first()) fs::remove_all(temporary, ignored);
    throw;
  }
  if (crew.first()) report["warnings"] = tidy_checkpoints(final_path, options, nonce);
  const auto seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report["seconds"] = seconds;
  report = json::parse(crew.from_first(report.dump(-1, ' ', false, json::error_handler_t::replace)));
  return {final_path, report.at("bytes"), report.at("seconds"), report.at("warnings")};
}

}  // namespace tmamba
