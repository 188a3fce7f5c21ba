#include "data/checkpoint/tensor_source.h"

#include <algorithm>
#include <memory>

#include "data/checkpoint/checkpoint_file.h"
#include "data/checkpoint/checkpoint_folder.h"
#include "data/checkpoint/manifest.h"
#include "data/io/crc32c.h"
#include "data/io/fs.h"

namespace tmamba {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int64_t kBlockBytes = int64_t{64} << 20;
constexpr int64_t kFileBytes = int64_t{1} << 30;

int64_t row_bytes(const StoredTensor& tensor) { return checked_bytes(tensor.shape, tensor.dtype) / tensor.shape[0]; }

// `rows` rows of a tensor of this type and row size, at `data`.
Tensor rows_at(void* data, const StoredTensor& tensor, int64_t rows) {
  return tensor.shape.size() == 1 ? Tensor(data, {rows}, tensor.dtype)
                                  : Tensor(data, {rows, tensor.shape[1]}, tensor.dtype);
}

struct RowSlice {
  const StoredTensor* tensor;
  int64_t row, rows;
};

// Splits the concatenated tensors into `writers` parts of equal bytes, to within a row.
std::vector<std::vector<RowSlice>> divide(const TensorSource& source, int64_t writers) {
  std::vector<std::vector<RowSlice>> parts(static_cast<size_t>(writers));
  const double total = static_cast<double>(source.bytes());
  int64_t before = 0;
  for (const StoredTensor& tensor : source.tensors) {
    const int64_t width = row_bytes(tensor);
    for (int64_t row = 0; row < tensor.shape[0];) {
      const int64_t at = before + row * width;
      const auto part = std::min<int64_t>(
          static_cast<int64_t>(static_cast<double>(at) / total * static_cast<double>(writers)), writers - 1);
      const double part_end = total * static_cast<double>(part + 1) / static_cast<double>(writers);
      const int64_t end = part + 1 == writers
                              ? tensor.shape[0]
                              : std::clamp<int64_t>(static_cast<int64_t>((part_end - static_cast<double>(before)) /
                                                                         static_cast<double>(width)),
                                                    row + 1, tensor.shape[0]);
      parts[static_cast<size_t>(part)].push_back({&tensor, row, end - row});
      row = end;
    }
    before += tensor.shape[0] * width;
  }
  return parts;
}

// Reads one part, writes it as one file and adds it to the manifest.
void write_part(const TensorSource& source, const std::vector<RowSlice>& part, const fs::path& file,
                Manifest& manifest) {
  std::vector<TensorSlice> slices;
  std::vector<std::unique_ptr<char[]>> memory;
  for (const RowSlice& slice : part) {
    const StoredTensor& tensor = *slice.tensor;
    memory.push_back(std::make_unique<char[]>(static_cast<size_t>(slice.rows * row_bytes(tensor))));
    const Tensor rows = rows_at(memory.back().get(), tensor, slice.rows);
    source.read(tensor.name, slice.row, rows);
    std::vector<int64_t> offset(tensor.shape.size(), 0);
    offset[0] = slice.row;
    slices.push_back({tensor.name, tensor.shape, offset, rows});
  }
  RankFile written = write_rank_file(file, slices, false);
  for (size_t i = 0; i < part.size(); ++i) {
    written.slices[i].file = manifest.files.size();
    const size_t index = static_cast<size_t>(part[i].tensor - source.tensors.data());
    manifest.tensors[index].slices.push_back(std::move(written.slices[i]));
  }
  manifest.files.push_back(std::move(written.file));
}

// Verifies the written bytes: combines the CRCs of each tensor's slices, which are ordered by row, and compares the
// result with the source's.
void check_sums(const TensorSource& source, const Manifest& manifest) {
  for (const ManifestTensor& tensor : manifest.tensors) {
    const auto expected = source.crc.find(tensor.name);
    if (expected == source.crc.end()) continue;
    uint32_t crc = 0;
    for (const StoredSlice& slice : tensor.slices) {
      const auto bytes = static_cast<uint64_t>(checked_bytes(slice.shape, tensor.dtype));
      crc = crc32c_detail::multiply(crc32c_detail::zero_bytes_factor(bytes), crc) ^ slice.crc;
    }
    if (crc == expected->second) continue;
    throw DamagedCheckpoint(str(source.path.string(), ": tensor ", tensor.name, ": its bytes have CRC32C ", hex8(crc),
                                ", expected ", hex8(expected->second), ": the file is damaged"));
  }
}

}  // namespace

int64_t TensorSource::bytes() const {
  int64_t bytes = 0;
  for (const StoredTensor& tensor : tensors) bytes += checked_bytes(tensor.shape, tensor.dtype);
  return bytes;
}

void each_block(const TensorSource& source, const StoredTensor& tensor,
                const std::function<void(int64_t row, const Tensor& block)>& f) {
  const int64_t width = row_bytes(tensor), block_rows = std::max<int64_t>(1, kBlockBytes / width);
  std::vector<char> memory(static_cast<size_t>(std::min(block_rows, tensor.shape[0]) * width));
  for (int64_t row = 0; row < tensor.shape[0]; row += block_rows) {
    const Tensor block = rows_at(memory.data(), tensor, std::min(block_rows, tensor.shape[0] - row));
    source.read(tensor.name, row, block);
    f(row, block);
  }
}

TensorSource source_of(const CheckpointReader& reader) {
  return {.path = reader.path(),
          .step = reader.step(),
          .state = reader.state(),
          .tensors = reader.tensors(),
          .read = [&reader](const std::string& name, int64_t row, const Tensor& out) {
            std::vector<int64_t> offset(static_cast<size_t>(out.dims()), 0);
            offset[0] = row;
            reader.read(name, offset, out);
          }};
}

fs::path write_checkpoint(const TensorSource& source, const fs::path& checkpoints, int64_t writers) {
  const std::string nonce = random_nonce();
  const fs::path folder = fs::absolute(checkpoints), final_path = folder / checkpoint_name(source.step),
                 temporary = folder / temporary_name(source.step, nonce);
  if (fs::exists(fs::symlink_status(final_path))) {
    throw UserError(str(final_path.string(), ": exists; give another directory, or remove it first"));
  }
  if (writers == 0) writers = std::max<int64_t>(1, ceil_div(source.bytes(), kFileBytes));
  Manifest manifest{.step = source.step, .state = source.state, .files = {}, .tensors = {}};
  for (const StoredTensor& tensor : source.tensors) {
    manifest.tensors.push_back({tensor.name, tensor.dtype, tensor.shape, {}});
  }
  make_folders(folder);
  make_folder(temporary);
  try {
    const auto parts = divide(source, writers);
    for (const auto& part : parts) {
      if (part.empty()) continue;
      write_part(source, part, temporary / rank_file_name(static_cast<int>(manifest.files.size())), manifest);
    }
    check_sums(source, manifest);
    check_manifest(manifest);
    write_text_durably(temporary / kManifestName, manifest_text(manifest));
    sync_folder(temporary);
    publish_checkpoint(temporary, final_path, nonce);
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
  return final_path;
}

}  // namespace tmamba
