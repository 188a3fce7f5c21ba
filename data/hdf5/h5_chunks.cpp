// Chunk indexes. H5Format::earliest has a version-1 B-tree. Later formats have no index for a single chunk, a fixed
// array for datasets of fixed size and an extensible array for datasets whose first dimension is unlimited.
#include <algorithm>
#include <bit>

#include "data/hdf5/h5_objects.h"

namespace tmamba::h5_detail {

namespace {

class ChunkReader {
 public:
  ChunkReader(const Source& source, const std::string& name, const Object& dataset, int64_t chunk_bytes)
      : source_(source), name_(name), dataset_(dataset), layout_(dataset.layout), chunk_bytes_(chunk_bytes) {
    const auto& shape = dataset.dataspace.shape;
    int64_t count = 1;
    for (size_t i = 0; i < shape.size(); ++i) {
      counts_.push_back(ceil_div(shape[i], layout_.chunk[i]));
      // Array indexes number the chunks of the maximum shape.
      const int64_t max_size = dataset.dataspace.max_shape[i];
      max_counts_.push_back(max_size < 0 || i == 0 ? counts_.back() : (max_size - 1) / layout_.chunk[i] + 1);
      count *= counts_.back();
    }
    chunks_.resize(static_cast<size_t>(count));
  }

  std::vector<Chunk> read() {
    if (layout_.address != kUndefined) {
      switch (layout_.index) {
        case ChunkIndex::btree:
          read_tree(layout_.address, -1);
          break;
        case ChunkIndex::single_chunk:
          chunks_.at(0) = {layout_.address, layout_.bytes < 0 ? chunk_bytes_ : layout_.bytes, layout_.filter_mask};
          break;
        case ChunkIndex::fixed_array:
          read_fixed_array();
          break;
        case ChunkIndex::extensible_array:
          read_extensible_array();
          break;
        case ChunkIndex::other:
          break;
      }
    }
    return std::move(chunks_);
  }

 private:
  [[noreturn]] void refuse(const std::string& problem) const {
    source_.refuse(str("dataset ", name_, ": the chunk index ", problem, kDamagedAdvice));
  }

  // --- Version-1 B-tree ---

  // `parent_level` is -1 for the root.
  void read_tree(int64_t address, int parent_level) {
    constexpr const char* kWhat = "a node of a chunk B-tree";
    if (address == kUndefined) refuse("contains an undefined address");
    if (++nodes_ > source_.bytes() / 24) refuse("is a loop");
    const auto head = source_.read(address, 24, kWhat);
    Cursor cursor(source_, kWhat, head);
    cursor.expect("TREE", 1);  // node type 1: chunks
    const int level = cursor.u8(), entries = cursor.u16();
    if (parent_level >= 0 && level != parent_level - 1) {
      cursor.damaged(str("has level ", level, " below level ", parent_level));
    }
    const auto rank = static_cast<int64_t>(counts_.size());
    const int64_t key = 8 + 8 * (rank + 1);
    const auto body = source_.read(address + 24, entries * (key + 8) + key, kWhat);
    Cursor rows(source_, kWhat, body);
    for (int i = 0; i < entries; ++i) {
      Chunk chunk;
      chunk.bytes = rows.u32();
      chunk.filter_mask = rows.u32();
      int64_t index = 0;
      bool inside = true;
      for (size_t d = 0; d < counts_.size(); ++d) {
        const int64_t offset = rows.size();
        if (offset % layout_.chunk[d] != 0)
          rows.damaged(str("has a chunk at offset ", offset, ", not a multiple of ", layout_.chunk[d]));
        inside = inside && offset / layout_.chunk[d] < counts_[d];
        if (inside) index = index * counts_[d] + offset / layout_.chunk[d];
      }
      rows.skip(8);
      chunk.address = rows.address();
      if (level > 0) {
        read_tree(chunk.address, level);
      } else if (inside) {  // chunks outside are left over from before the dataset shrank
        put(index, chunk);
      }
    }
  }

  void put(int64_t index, const Chunk& chunk) {
    Chunk& slot = chunks_[static_cast<size_t>(index)];
    if (slot.address != kUndefined) refuse(str("has chunk ", index, " twice"));
    slot = chunk;
  }

  // --- Fixed and extensible arrays ---

  // Reads the array's entry for chunk `number` of the maximum shape; skips chunks outside the current shape.
  void read_entry(int64_t number, Cursor& cursor, int64_t entry_bytes, bool filtered) {
    Chunk chunk;
    chunk.address = cursor.address();
    chunk.bytes = chunk_bytes_;
    if (filtered) {
      chunk.bytes = cursor.size(static_cast<size_t>(entry_bytes - 12));
      chunk.filter_mask = cursor.u32();
    }
    if (chunk.address == kUndefined) return;
    int64_t index = 0, stride = 1;
    for (size_t d = counts_.size(); d-- > 0;) {
      const int64_t at = d == 0 ? number : number % max_counts_[d];
      if (at >= counts_[d]) return;
      index += at * stride;
      stride *= counts_[d];
      if (d > 0) number /= max_counts_[d];
    }
    put(index, chunk);
  }

  // Client 0 has entries of one address, client 1 (filtered chunks) of an address, a size and a filter mask.
  static void check_entry_bytes(const Cursor& cursor, int client_id, int64_t entry_bytes) {
    if (client_id == 0 ? entry_bytes != 8 : client_id != 1 || entry_bytes < 13 || entry_bytes > 20) {
      cursor.damaged(str("has client ", client_id, " with entries of ", entry_bytes, " bytes"));
    }
  }

  void read_fixed_array() {
    constexpr const char* kWhat = "a fixed array of chunks";
    const auto head = source_.read(layout_.address, 28, kWhat);
    Cursor cursor(source_, kWhat, head);
    cursor.expect("FAHD", 0);
    const int client_id = cursor.u8();
    const int64_t entry_bytes = cursor.u8();
    const int page_bits = cursor.u8();
    const int64_t entries = cursor.size(), block = cursor.address();
    cursor.expect_checksum();
    check_entry_bytes(cursor, client_id, entry_bytes);
    if (block == kUndefined) return;
    if (page_bits > 32 || entries > source_.bytes() / 8) {
      cursor.damaged(str("has ", entries, " entries in pages of 2^", page_bits, ", more than fit in the file"));
    }
    const int64_t page = int64_t{1} << page_bits, pages = entries > page ? ceil_div(entries, page) : 0;
    const int64_t bitmap = ceil_div(pages, 8), prefix = 14 + bitmap;
    const auto body = source_.read(block, prefix + (pages == 0 ? entries * entry_bytes : 0) + 4, kWhat);
    Cursor rows(source_, kWhat, body);
    rows.expect("FADB", 0);
    if (rows.u8() != client_id || rows.address() != layout_.address) rows.damaged("belongs to another header");
    const uint8_t* used = rows.take(static_cast<size_t>(bitmap));
    for (int64_t i = 0; pages == 0 && i < entries; ++i) read_entry(i, rows, entry_bytes, client_id == 1);
    rows.expect_checksum();
    int64_t at = block + prefix + 4;
    for (int64_t i = 0; i < pages; ++i) {
      const int64_t count = std::min(page, entries - i * page);
      const bool filled = (used[i / 8] >> (7 - i % 8) & 1) != 0;
      if (filled) read_page(kWhat, at, i * page, count, entry_bytes, client_id == 1);
      at += count * entry_bytes + 4;
    }
  }

  void read_page(const char* what, int64_t position, int64_t first, int64_t count, int64_t entry_bytes, bool filtered) {
    const auto bytes = source_.read(position, count * entry_bytes + 4, what);
    Cursor rows(source_, what, bytes);
    for (int64_t k = 0; k < count; ++k) read_entry(first + k, rows, entry_bytes, filtered);
    rows.expect_checksum();
  }

  // The header of an extensible array.
  struct ExtensibleArray {
    int client_id = 0;
    int64_t entry_bytes = 0;
    int max_bits = 0;                // bits of the largest entry number
    int64_t index_entries = 0;       // entries in the index block
    int64_t min_block_entries = 0;   // entries of the smallest data block
    int64_t min_block_pointers = 0;  // data block addresses of the smallest secondary block
    int64_t page_entries = 0;        // data blocks with more entries are paged
    int64_t offset_bytes() const { return (max_bits + 7) / 8; }
  };

  void read_extensible_array() {
    constexpr const char* kWhat = "an extensible array of chunks";
    for (size_t d = 1; d < counts_.size(); ++d) {
      if (dataset_.dataspace.max_shape[d] < 0) {
        source_.refuse(str("dataset ", name_, ": dimension ", d, " is unlimited; only the first one may be"));
      }
    }
    const auto head = source_.read(layout_.address, 72, kWhat);
    Cursor cursor(source_, kWhat, head);
    cursor.expect("EAHD", 0);
    ExtensibleArray g;
    g.client_id = cursor.u8();
    g.entry_bytes = cursor.u8();
    g.max_bits = cursor.u8();
    g.index_entries = cursor.u8();
    g.min_block_entries = cursor.u8();
    g.min_block_pointers = cursor.u8();
    const int page_bits = cursor.u8();
    cursor.skip(6 * 8);
    const int64_t block = cursor.address();
    cursor.expect_checksum();
    check_entry_bytes(cursor, g.client_id, g.entry_bytes);
    const auto power = [](int64_t x) { return x > 0 && (x & (x - 1)) == 0; };
    if (!power(g.min_block_entries) || !power(g.min_block_pointers) || g.min_block_pointers < 2 || page_bits > 32 ||
        g.max_bits > 62 || g.max_bits < std::countr_zero(static_cast<uint64_t>(g.min_block_entries))) {
      cursor.damaged(str("has impossible block sizes (", g.min_block_entries, " entries, ", g.min_block_pointers,
                         " pointers, 2^", page_bits, " per page, ", g.max_bits, " bits)"));
    }
    g.page_entries = int64_t{1} << page_bits;
    if (block != kUndefined) read_index_block(g, block);
  }

  void read_index_block(const ExtensibleArray& g, int64_t address) {
    constexpr const char* kWhat = "the index block of an extensible array of chunks";
    const int supers = 1 + g.max_bits - std::countr_zero(static_cast<uint64_t>(g.min_block_entries));
    const int direct = std::min(supers, 2 * std::countr_zero(static_cast<uint64_t>(g.min_block_pointers)));
    const int64_t direct_blocks = 2 * (g.min_block_pointers - 1);
    const auto bytes =
        source_.read(address, 14 + g.index_entries * g.entry_bytes + 8 * (direct_blocks + supers - direct) + 4, kWhat);
    Cursor cursor(source_, kWhat, bytes);
    start_block(g, cursor, "EAIB");
    int64_t first = 0;
    for (; first < g.index_entries; ++first) read_entry(first, cursor, g.entry_bytes, g.client_id == 1);
    std::vector<int64_t> blocks, tables;
    for (int64_t i = 0; i < direct_blocks; ++i) blocks.push_back(cursor.address());
    for (int i = direct; i < supers; ++i) tables.push_back(cursor.address());
    cursor.expect_checksum();
    size_t next = 0;
    const int64_t places = max_entries();
    for (int u = 0; u < supers && first < places; ++u) {
      const int64_t count = int64_t{1} << (u / 2), length = (int64_t{1} << ((u + 1) / 2)) * g.min_block_entries;
      if (u >= direct) {
        const int64_t table = tables[static_cast<size_t>(u - direct)];
        if (table != kUndefined) read_super_block(g, table, first, count, length);
      } else {
        for (int64_t i = 0; i < count && next < blocks.size(); ++i, ++next) {
          if (blocks[next] != kUndefined) read_data_block(g, blocks[next], first + i * length, length, nullptr, 0);
        }
      }
      first += count * length;
    }
  }

  int64_t max_entries() const {
    int64_t places = 1;
    for (int64_t count : max_counts_) {
      if (__builtin_mul_overflow(places, count, &places)) refuse("has an impossible length");
    }
    return places;
  }

  void start_block(const ExtensibleArray& g, Cursor& cursor, const char* signature) {
    cursor.expect(signature, 0);
    if (cursor.u8() != g.client_id || cursor.address() != layout_.address) {
      cursor.damaged("belongs to another header");
    }
    if (++nodes_ > source_.bytes() / 14) refuse("is a loop");
  }

  void read_super_block(const ExtensibleArray& g, int64_t address, int64_t first, int64_t count, int64_t length) {
    constexpr const char* kWhat = "a secondary block of an extensible array of chunks";
    const int64_t bitmap = length > g.page_entries ? ceil_div(length / g.page_entries, 8) : 0;
    if (count > source_.bytes() / 8 || bitmap > source_.bytes()) refuse("is larger than the file");
    const auto bytes = source_.read(address, 14 + g.offset_bytes() + count * (bitmap + 8) + 4, kWhat);
    Cursor cursor(source_, kWhat, bytes);
    start_block(g, cursor, "EASB");
    cursor.skip(static_cast<size_t>(g.offset_bytes()));
    const uint8_t* used = cursor.take(static_cast<size_t>(count * bitmap));
    std::vector<int64_t> blocks;
    for (int64_t i = 0; i < count; ++i) blocks.push_back(cursor.address());
    cursor.expect_checksum();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t block = blocks[static_cast<size_t>(i)];
      if (block != kUndefined)
        read_data_block(g, block, first + i * length, length, used, i * (length / g.page_entries));
    }
  }

  // `used` has one bit per page of a secondary block's data blocks; the bits of this block begin at `first_page`. Null
  // if the block is not paged.
  void read_data_block(const ExtensibleArray& g, int64_t address, int64_t first, int64_t length, const uint8_t* used,
                       int64_t first_page) {
    constexpr const char* kWhat = "a data block of an extensible array of chunks";
    const bool paged = length > g.page_entries;
    if (length > source_.bytes() / 8) refuse("is larger than the file");
    const int64_t prefix = 14 + g.offset_bytes();
    const auto bytes = source_.read(address, prefix + (paged ? 0 : length * g.entry_bytes) + 4, kWhat);
    Cursor cursor(source_, kWhat, bytes);
    start_block(g, cursor, "EADB");
    cursor.skip(static_cast<size_t>(g.offset_bytes()));
    for (int64_t i = 0; !paged && i < length; ++i) read_entry(first + i, cursor, g.entry_bytes, g.client_id == 1);
    cursor.expect_checksum();
    if (!paged) return;
    for (int64_t i = 0; i < length / g.page_entries; ++i) {
      const int64_t page = first_page + i;
      if (used == nullptr || (used[page / 8] >> (7 - page % 8) & 1) == 0) continue;
      read_page(kWhat, address + prefix + 4 + i * (g.page_entries * g.entry_bytes + 4), first + i * g.page_entries,
                g.page_entries, g.entry_bytes, g.client_id == 1);
    }
  }

  const Source& source_;
  const std::string& name_;
  const Object& dataset_;
  const DataLayout& layout_;
  const int64_t chunk_bytes_;
  std::vector<int64_t> counts_;      // chunks along each dimension
  std::vector<int64_t> max_counts_;  // the same for the maximum shape; an unlimited dimension has its current count
  std::vector<Chunk> chunks_;
  int64_t nodes_ = 0;  // visited so far; more than fit in the file mean a loop
};

}  // namespace

std::vector<Chunk> read_chunks(const Source& source, const std::string& name, const Object& dataset,
                               int64_t chunk_bytes) {
  if (dataset.layout.index == ChunkIndex::other) {
    source.refuse(str("dataset ", name, " has a chunk index of an unsupported type; recreate it with HDF5's defaults"));
  }
  return ChunkReader(source, name, dataset, chunk_bytes).read();
}

}  // namespace tmamba::h5_detail
