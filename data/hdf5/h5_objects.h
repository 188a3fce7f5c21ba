// What is in an HDF5 file from a stranger, read here and not by the HDF5 library: its parser (1.10) writes over memory
// or stops the program on files made to do that. Of the format this knows what the library and h5py write by default
// for groups, datasets and attributes (superblock 0, 2 and 3; object headers 1 and 2), and no more; what else a file
// holds is refused by name when it is asked for. Only hard links are followed.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/hdf5/h5.h"
#include "data/hdf5/h5_bytes.h"

namespace tmamba::h5_detail {

enum class TypeClass : uint8_t { integer, real, text, other };

// An element type. `known` where it is one of H5Type.
struct FileType {
  TypeClass kind = TypeClass::other;
  int64_t bytes = 0;
  bool is_signed = false;
  std::optional<H5Type> known;
};

struct Extent {
  bool null = false;
  std::vector<int64_t> shape, most;  // sizes, and what they may grow to (-1: without end); empty: a scalar
};

enum class Storage : uint8_t { none, compact, contiguous, chunked, virtual_ };
enum class ChunkIndex : uint8_t { tree, single, fixed_array, extensible_array, other };

struct Layout {
  Storage storage = Storage::none;
  int64_t address = kUndefined;  // of the data, or of the index of chunks
  int64_t bytes = 0;             // contiguous: of the data; single chunk: stored
  std::vector<int64_t> chunk;    // sizes, with the element's bytes last
  ChunkIndex index = ChunkIndex::tree;
  uint32_t filter_mask = 0;  // single chunk
};

struct Filters {
  std::vector<int> ids;  // in the order they were applied on writing
  bool has(int id) const;
};
inline constexpr int kDeflate = 1, kShuffle = 2, kFletcher32 = 3;

struct Attribute {
  FileType type;
  Extent extent;
  std::vector<uint8_t> data;
};

enum class LinkKind : uint8_t { hard, soft, external, other };
struct Link {
  LinkKind kind = LinkKind::other;
  int64_t address = kUndefined;
};

// A group or a dataset, or something else.
struct Object {
  bool group = false, dataset = false;
  bool external_storage = false, dense_attributes = false, dense_links = false;
  std::map<std::string, Link> links;
  std::map<std::string, Attribute> attributes;
  FileType type;
  Extent extent;
  Layout layout;
  Filters filters;
};

class ReadFile {
 public:
  explicit ReadFile(const std::filesystem::path& path);
  const Source& source() const { return source_; }

  // Nothing where the path, or a step of it, is not there. Throws UserError where a step is no hard link.
  std::shared_ptr<const Object> find(const std::string& name) const;
  // Throws UserError where there is no such object.
  std::shared_ptr<const Object> object(const std::string& name, const char* kind) const;
  std::vector<std::string> datasets() const;

 private:
  std::shared_ptr<const Object> at(int64_t address) const;
  void list(const Object& group, const std::string& name, int depth, std::map<int64_t, int>& seen,
            std::vector<std::string>& out) const;

  Source source_;
  int64_t root_ = 0;
};

// A chunk of a dataset as it is stored.
struct Chunk {
  int64_t address = kUndefined;
  int64_t bytes = 0;
  uint32_t filter_mask = 0;  // of filters that were left out
};

// The chunks of a dataset in row-major order of their places, read from whichever index it has. `whole` is the bytes of
// a chunk, for those stored without filters.
std::vector<Chunk> read_chunks(const Source& source, const std::string& name, const Object& dataset, int64_t whole);

}  // namespace tmamba::h5_detail
