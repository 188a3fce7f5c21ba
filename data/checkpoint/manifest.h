// The manifest of a checkpoint: which slice of which tensor lies where, with a checksum of every slice and every file.
// Written last, it is what makes a checkpoint whole; read first, it is checked as bytes from a stranger.
//
// The file is JSON with four members and a seal:
//   "format": "transmamba-checkpoint", "version": 1, "step": 1000,
//   "state": anything the run wants back,
//   "files": [{"name": "rank-00000.h5", "bytes": 4096, "sha256": "64 hexadecimal digits"}, ...],
//   "tensors": [{"name": "model/norm.weight", "dtype": "float32", "shape": [64], "slices": [
//       {"file": 0, "dataset": "/model/norm.weight", "position": 2048, "offset": [0], "shape": [64], "crc32c": "8
//       digits"}]}],
//   "sha256": of all bytes of this file before the comma that precedes this member
// `file` counts in "files". `position` is where in the file the slice's bytes start: contiguous, row-major,
// little-endian.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.h"

namespace tmamba {

inline constexpr const char* kManifestName = "manifest.json";

// A rectangle of a tensor, and where its bytes are.
struct StoredSlice {
  size_t file = 0;       // in Manifest::files
  std::string dataset;   // absolute path inside the HDF5 file
  int64_t position = 0;  // of the first byte in the file
  std::vector<int64_t> offset;
  std::vector<int64_t> shape;
  uint32_t crc = 0;  // CRC32C of the bytes
};

struct ManifestTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::vector<StoredSlice> slices;
};

struct ManifestFile {
  std::string name;
  int64_t bytes = 0;
  std::string sha256;
};

struct Manifest {
  int64_t step = 0;
  nlohmann::json state;
  std::vector<ManifestFile> files;
  std::vector<ManifestTensor> tensors;
};

// "[128, 0]" and "0a1b2c3d": how messages show sizes and checksums.
std::string brackets(std::span<const int64_t> numbers);
std::string hex8(uint32_t value);

// Product of the sizes times the element size; throws Error where a size is below 1, there are not 1 or 2 sizes, or the
// product does not fit 62 bits.
int64_t checked_bytes(const std::vector<int64_t>& shape, DType dtype);

// Throws Error saying what is wrong with a tensor's name: empty, too long, characters that are not printable ASCII, or
// "", "." or ".." between slashes.
void check_tensor_name(const std::string& name);

// Throws Error naming the tensor and the rectangles unless the slices cover every element of it exactly once.
void check_cover(const ManifestTensor& tensor);

// check_cover() of each, and that the names are proper, each used once, and none the folder of another.
void check_tensors(const std::vector<ManifestTensor>& tensors);

// Throws Error unless everything fits together: names, sizes, covers, and slices inside their files without overlap.
void check_manifest(const Manifest& manifest);

// Throws Error where JSON cannot hold the state and give it back: NaN, bytes that are not UTF-8, nesting without end.
void check_state(const nlohmann::json& state);

// `body`, a JSON object without its closing brace, and the seal behind it.
std::string seal_manifest(const std::string& body);

// The manifest as text, sealed. Throws as check_state() does.
std::string manifest_text(const Manifest& manifest);

// Reads manifest_text() back, and checks it. Throws Error saying what is wrong, without the file's name, and UserError
// where it is whole, but of a version that this program does not know.
Manifest parse_manifest(std::string_view text);

}  // namespace tmamba
