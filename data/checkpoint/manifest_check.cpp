// Checks of a manifest, for those being written and those from untrusted files.
#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "data/checkpoint/manifest.h"

namespace tmamba {

namespace {

constexpr size_t kMaxName = 512;
constexpr size_t kMaxDatasetName = kMaxName + 64;  // a tensor's name and an offset

// A slice as rows [row, row_end) x columns [column, column_end); a 1-D tensor is one row.
struct Rectangle {
  int64_t row, row_end, column, column_end;
  const StoredSlice* slice;
};

std::string place(const StoredSlice& slice) {
  return str("the slice ", brackets(slice.shape), " at ", brackets(slice.offset));
}

Rectangle rectangle_of(const ManifestTensor& tensor, const StoredSlice& slice) {
  const size_t dims = tensor.shape.size();
  if (slice.offset.size() != dims || slice.shape.size() != dims) {
    throw Error(str("tensor ", tensor.name, " ", brackets(tensor.shape), ": ", place(slice), " has another rank"));
  }
  for (size_t i = 0; i < dims; ++i) {
    // Subtractions only: sums of numbers from a file may overflow.
    if (slice.offset[i] < 0 || slice.shape[i] < 1 || slice.offset[i] > tensor.shape[i] ||
        slice.shape[i] > tensor.shape[i] - slice.offset[i]) {
      throw Error(
          str("tensor ", tensor.name, " ", brackets(tensor.shape), ": ", place(slice), " is outside the tensor"));
    }
  }
  const size_t last = dims - 1;
  const int64_t row = dims == 2 ? slice.offset[0] : 0, rows = dims == 2 ? slice.shape[0] : 1;
  return {row, row + rows, slice.offset[last], slice.offset[last] + slice.shape[last], &slice};
}

[[noreturn]] void throw_overlap(const ManifestTensor& tensor, const Rectangle& a, const Rectangle& b) {
  throw Error(str("tensor ", tensor.name, " ", brackets(tensor.shape), ": ", place(*a.slice), " and ", place(*b.slice),
                  " overlap"));
}

// Sweep line over the rows: `active` are the rectangles that contain the current row, ordered by column.
void check_no_overlap(const ManifestTensor& tensor, std::vector<Rectangle> rectangles) {
  std::sort(rectangles.begin(), rectangles.end(), [](const Rectangle& a, const Rectangle& b) {
    return std::tie(a.row, a.column) < std::tie(b.row, b.column);
  });
  std::vector<const Rectangle*> by_end;
  for (const Rectangle& rectangle : rectangles) by_end.push_back(&rectangle);
  std::sort(by_end.begin(), by_end.end(), [](auto* a, auto* b) { return a->row_end < b->row_end; });

  std::map<int64_t, const Rectangle*> active;  // by first column
  size_t ended = 0;
  for (const Rectangle& rectangle : rectangles) {
    for (; ended < by_end.size() && by_end[ended]->row_end <= rectangle.row; ++ended) {
      active.erase(by_end[ended]->column);
    }
    const auto next = active.lower_bound(rectangle.column);
    if (next != active.end() && next->first < rectangle.column_end) throw_overlap(tensor, *next->second, rectangle);
    if (next != active.begin()) {
      const Rectangle* before = std::prev(next)->second;
      if (before->column_end > rectangle.column) throw_overlap(tensor, *before, rectangle);
    }
    active.emplace(rectangle.column, &rectangle);
  }
}

bool is_hex(const std::string& text, size_t digits) {
  return text.size() == digits &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

void check_files(const std::vector<ManifestFile>& files) {
  std::set<std::string> names;
  for (const ManifestFile& file : files) {
    // No path separators and no hidden files.
    const bool plain = !file.name.empty() && file.name.size() <= 64 && file.name[0] != '.' &&
                       std::all_of(file.name.begin(), file.name.end(), [](char c) {
                         return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                                c == '-' || c == '_' || c == '.';
                       });
    if (!plain || !file.name.ends_with(".h5")) throw Error("a file name is not allowed: it must be plain, NAME.h5");
    if (!names.insert(file.name).second) throw Error(str("file ", file.name, " is listed twice"));
    if (file.bytes < 1) throw Error(str("file ", file.name, " cannot have ", file.bytes, " bytes"));
    if (!is_hex(file.sha256, 64))
      throw Error(str("file ", file.name, " has a SHA-256 that is not 64 hexadecimal digits"));
  }
}

void check_path(const std::string& path, const char* what, size_t max_bytes) {
  if (path.empty()) throw Error(str("a ", what, " has an empty name"));
  if (path.size() > max_bytes)
    throw Error(str("a ", what, "'s name has ", path.size(), " characters, more than ", max_bytes));
  if (!std::all_of(path.begin(), path.end(), [](char c) { return c > ' ' && c < 0x7F; })) {
    throw Error(str("a ", what, "'s name contains characters that are not printable ASCII"));
  }
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") {
      throw Error(str(what, " name \"", path, "\" has an empty component, \".\" or \"..\" between slashes"));
    }
    begin = end + 1;
  }
}

struct Extent {
  int64_t begin, end;
  const ManifestTensor* tensor;
};

// Slices must be inside their files and disjoint, so that a small file cannot claim to contain large tensors.
void check_extents(const Manifest& manifest) {
  std::vector<std::vector<Extent>> extents(manifest.files.size());
  for (const ManifestTensor& tensor : manifest.tensors) {
    for (const StoredSlice& slice : tensor.slices) {
      if (slice.file >= manifest.files.size()) {
        throw Error(str("tensor ", tensor.name, ": slice in file ", slice.file, ", but there are ",
                        manifest.files.size(), " files"));
      }
      const int64_t bytes = checked_bytes(slice.shape, tensor.dtype);
      const ManifestFile& file = manifest.files[slice.file];
      if (slice.position < 0 || slice.position > file.bytes || bytes > file.bytes - slice.position) {
        throw Error(str("tensor ", tensor.name, ": ", place(slice), " does not fit ", file.name, ", which has ",
                        file.bytes, " bytes"));
      }
      extents[slice.file].push_back({slice.position, slice.position + bytes, &tensor});
    }
  }
  for (size_t i = 0; i < extents.size(); ++i) {
    auto& of_file = extents[i];
    if (of_file.empty()) throw Error(str("file ", manifest.files[i].name, " contains no tensor"));
    std::sort(of_file.begin(), of_file.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
    for (size_t k = 1; k < of_file.size(); ++k) {
      if (of_file[k].begin < of_file[k - 1].end) {
        throw Error(str("tensors ", of_file[k - 1].tensor->name, " and ", of_file[k].tensor->name,
                        " claim the same bytes of ", manifest.files[i].name));
      }
    }
  }
}

}  // namespace

std::string brackets(std::span<const int64_t> numbers) {
  std::string text;
  for (int64_t number : numbers) text += str(text.empty() ? "" : ", ", number);
  return str("[", text, "]");
}

int64_t checked_bytes(const std::vector<int64_t>& shape, DType dtype) {
  if (shape.empty() || shape.size() > 2) throw Error(str("a tensor has 1 or 2 sizes, not ", shape.size()));
  int64_t bytes = static_cast<int64_t>(size_of(dtype));
  for (int64_t size : shape) {
    if (size < 1) throw Error(str("the sizes ", brackets(shape), " are not all positive"));
    if (size > (int64_t{1} << 62) / bytes) throw Error(str("the sizes ", brackets(shape), " are too large"));
    bytes *= size;
  }
  return bytes;
}

void check_tensor_name(const std::string& name) { check_path(name, "tensor", kMaxName); }

void check_cover(const ManifestTensor& tensor) {
  const int64_t width = static_cast<int64_t>(size_of(tensor.dtype));
  const int64_t elements = checked_bytes(tensor.shape, tensor.dtype) / width;
  std::vector<Rectangle> rectangles;
  rectangles.reserve(tensor.slices.size());
  for (const StoredSlice& slice : tensor.slices) rectangles.push_back(rectangle_of(tensor, slice));
  check_no_overlap(tensor, rectangles);
  // The slices are inside the tensor and disjoint, so this sum cannot exceed `elements`.
  int64_t covered = 0;
  for (const StoredSlice& slice : tensor.slices) covered += checked_bytes(slice.shape, tensor.dtype) / width;
  if (covered != elements) {
    throw Error(str("tensor ", tensor.name, " ", brackets(tensor.shape), ": the slices leave a hole, ",
                    elements - covered, " of ", elements, " elements are missing"));
  }
}

void check_tensors(const std::vector<ManifestTensor>& tensors) {
  std::set<std::string> names;
  for (const ManifestTensor& tensor : tensors) {
    check_tensor_name(tensor.name);
    if (!names.insert(tensor.name).second) throw Error(str("tensor ", tensor.name, " is listed twice"));
    check_cover(tensor);
  }
  // Tensors "a" and "a/b" would need a dataset and a group of the same name.
  for (const std::string& name : names) {
    for (size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
      if (names.count(name.substr(0, slash))) {
        throw Error(str("tensor ", name.substr(0, slash), " has the name of the directory of tensor ", name));
      }
    }
  }
}

void check_manifest(const Manifest& manifest) {
  if (manifest.step < 0) throw Error(str("the step is ", manifest.step));
  check_files(manifest.files);
  check_tensors(manifest.tensors);
  std::set<std::pair<size_t, std::string>> datasets;
  for (const ManifestTensor& tensor : manifest.tensors) {
    for (const StoredSlice& slice : tensor.slices) {
      if (slice.dataset.empty() || slice.dataset[0] != '/') {
        throw Error(str("tensor ", tensor.name, ": dataset \"", slice.dataset, "\" is not an absolute path"));
      }
      check_path(slice.dataset.substr(1), "dataset", kMaxDatasetName);
      if (!datasets.emplace(slice.file, slice.dataset).second) {
        throw Error(str("dataset ", slice.dataset, " is listed twice for one file"));
      }
    }
  }
  check_extents(manifest);
}

}  // namespace tmamba
