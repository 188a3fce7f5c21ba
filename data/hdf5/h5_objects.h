// A parser for untrusted HDF5 files. The HDF5 library is not used for them, because its parser (1.10) corrupts memory
// or aborts on crafted files. This one supports what the library and h5py write by default for groups, datasets and
// attributes: superblock versions 0, 2 and 3 and object header versions 1 and 2. Other features are refused by name
// when an object that uses them is opened. Only hard links are followed.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/hdf5/h5.h"
#include "data/hdf5/h5_bytes.h"

namespace tmamba::h5_detail {

enum class TypeClass : uint8_t { fixed_point, floating_point, string, other };

struct Datatype {
  TypeClass kind = TypeClass::other;
  int64_t bytes = 0;
  bool is_signed = false;
  std::optional<H5Type> known;  // nullopt if H5Type has no such type
};

struct Dataspace {
  bool null = false;
  std::vector<int64_t> shape;      // empty: a scalar
  std::vector<int64_t> max_shape;  // sizes that the dimensions may grow to; -1: unlimited
};

enum class Storage : uint8_t { none, compact, contiguous, chunked, virtual_ };
enum class ChunkIndex : uint8_t { btree, single_chunk, fixed_array, extensible_array, other };

struct DataLayout {
  Storage storage = Storage::none;
  int64_t address = kUndefined;  // of the data, or of the chunk index
  int64_t bytes = 0;             // contiguous: of the data; single chunk: stored bytes, or -1 for those of a full chunk
  std::vector<int64_t> chunk;    // sizes in elements, then the bytes of an element
  ChunkIndex index = ChunkIndex::btree;
  uint32_t filter_mask = 0;  // of a single chunk
};

struct FilterPipeline {
  std::vector<int> ids;  // in the order in which writing applied them
  bool has(int id) const;
};
inline constexpr int kDeflate = 1, kShuffle = 2, kFletcher32 = 3;

struct Attribute {
  Datatype type;
  Dataspace dataspace;
  std::vector<uint8_t> data;
};

enum class LinkKind : uint8_t { hard, soft, external, other };
struct Link {
  LinkKind kind = LinkKind::other;
  int64_t address = kUndefined;
};

struct Object {
  bool group = false, dataset = false;  // never both; neither for a committed datatype and the like
  bool external_storage = false, dense_attributes = false, dense_links = false;
  std::map<std::string, Link> links;
  std::map<std::string, Attribute> attributes;
  Datatype type;
  Dataspace dataspace;
  DataLayout layout;
  FilterPipeline filters;
};

class ReadFile {
 public:
  explicit ReadFile(const std::filesystem::path& path);
  const Source& source() const { return source_; }

  // The object at this path; null if it does not exist. Throws UserError if a component of the path is not a hard link.
  std::shared_ptr<const Object> find(const std::string& name) const;
  // As find, but throws UserError "has no KIND NAME" if it does not exist.
  std::shared_ptr<const Object> object(const std::string& name, const char* kind) const;
  // Full names of all datasets, sorted.
  std::vector<std::string> datasets() const;

 private:
  std::shared_ptr<const Object> at(int64_t address) const;
  // Appends the datasets in `group`. `seen` maps the addresses of visited groups to their depth.
  void list(const Object& group, const std::string& name, int depth, std::map<int64_t, int>& seen,
            std::vector<std::string>& out) const;

  Source source_;
  int64_t root_ = 0;
};

// Where a chunk is stored.
struct Chunk {
  int64_t address = kUndefined;  // kUndefined: never written
  int64_t bytes = 0;             // stored bytes, after filters
  uint32_t filter_mask = 0;      // bit i: filter i of the pipeline was skipped
};

// All chunks of a dataset in row-major order, from its chunk index. `chunk_bytes` is the size of a decoded chunk.
// Throws UserError if the index is damaged or of an unsupported type.
std::vector<Chunk> read_chunks(const Source& source, const std::string& name, const Object& dataset,
                               int64_t chunk_bytes);

}  // namespace tmamba::h5_detail
