// The indexes of chunks: a B-tree in files of the first format; in later ones one chunk without an index, an array for
// sizes that are fixed, and an array in blocks of growing size for a first dimension that may grow.
#include <algorithm>
#include <bit>

#include "data/hdf5/h5_objects.h"

namespace tmamba::h5_detail {

namespace {

class ChunkReader {
 public:
  ChunkReader(const Source& source, const std::string& name, const Object& dataset, int64_t whole)
      : source_(source), name_(name), dataset_(dataset), layout_(dataset.layout), whole_(whole) {
    const auto& shape = dataset.extent.shape;
    int64_t count = 1;
    for (size_t i = 0; i < shape.size(); ++i) {
      counts_.push_back(ceil_div(shape[i], layout_.chunk[i]));
      // Arrays number the chunks of the sizes that a dimension may grow to.
      const int64_t most = dataset.extent.most[i];
      places_.push_back(most < 0 || i == 0 ? counts_.back() : (most - 1) / layout_.chunk[i] + 1);
      count *= counts_.back();
    }
    chunks_.resize(static_cast<size_t>(count));
  }

  std::vector<Chunk> read() {
    if (layout_.address != kUndefined) {
      switch (layout_.index) {
        case ChunkIndex::tree:
          read_tree(layout_.address, -1);
          break;
        case ChunkIndex::single:
          chunks_.at(0) = {layout_.address, layout_.bytes < 0 ? whole_ : layout_.bytes, layout_.filter_mask};
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
    source_.refuse(str("dataset ", name_, ": the index of its chunks ", problem, "; is it damaged?"));
  }

  // --- B-tree

  void read_tree(int64_t address, int above) {
    constexpr const char* kWhat = "a tree of chunks";
    if (address == kUndefined) refuse("points nowhere");
    if (++nodes_ > source_.bytes() / 24) refuse("is a loop");
    const auto head = source_.read(address, 24, kWhat);
    Cursor cursor(source_, kWhat, head);
    cursor.expect("TREE", 1);  // of chunks
    const int level = cursor.u8(), entries = cursor.u16();
    if (above >= 0 && level != above - 1) cursor.damaged("has a node of a wrong level");
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
        if (offset % layout_.chunk[d] != 0) rows.damaged("has a chunk between two places");
        inside = inside && offset / layout_.chunk[d] < counts_[d];
        if (inside) index = index * counts_[d] + offset / layout_.chunk[d];
      }
      rows.skip(8);
      chunk.address = rows.address();
      if (level > 0) {
        read_tree(chunk.address, level);
      } else if (inside) {  // else of a part that was cut off
        put(index, chunk);
      }
    }
  }

  void put(int64_t index, const Chunk& chunk) {
    Chunk& place = chunks_[static_cast<size_t>(index)];
    if (place.address != kUndefined) refuse("has a chunk twice");
    place = chunk;
  }

  // --- arrays

  // Puts the chunk number `place` of an array; those outside of the dataset are left out.
  void put_place(int64_t place, Cursor& cursor, int64_t width, bool filtered) {
    Chunk chunk;
    chunk.address = cursor.address();
    chunk.bytes = whole_;
    if (filtered) {
      chunk.bytes = cursor.size(static_cast<size_t>(width - 12));
      chunk.filter_mask = cursor.u32();
    }
    if (chunk.address == kUndefined) return;
    int64_t index = 0, stride = 1;
    for (size_t d = counts_.size(); d-- > 0;) {
      const int64_t at = d == 0 ? place : place % places_[d];
      if (at >= counts_[d]) return;
      index += at * stride;
      stride *= counts_[d];
      if (d > 0) place /= places_[d];
    }
    put(index, chunk);
  }

  // The width of an entry, by whether chunks are filtered.
  static void check_width(const Cursor& cursor, int client, int64_t width) {
    if (client == 0 ? width != 8 : client != 1 || width < 13 || width > 20) cursor.damaged("has impossible entries");
  }

  void read_fixed_array() {
    constexpr const char* kWhat = "an array of chunks";
    const auto head = source_.read(layout_.address, 28, kWhat);
    Cursor cursor(source_, kWhat, head);
    cursor.expect("FAHD", 0);
    const int client = cursor.u8();
    const int64_t width = cursor.u8();
    const int page_bits = cursor.u8();
    const int64_t entries = cursor.size(), block = cursor.address();
    cursor.expect_checksum();
    check_width(cursor, client, width);
    if (block == kUndefined) return;
    if (page_bits > 32 || entries > source_.bytes() / 8) cursor.damaged("has an impossible length");
    const int64_t page = int64_t{1} << page_bits, pages = entries > page ? ceil_div(entries, page) : 0;
    const int64_t bitmap = ceil_div(pages, 8), prefix = 14 + bitmap;
    const auto body = source_.read(block, prefix + (pages == 0 ? entries * width : 0) + 4, kWhat);
    Cursor rows(source_, kWhat, body);
    rows.expect("FADB", 0);
    if (rows.u8() != client || rows.address() != layout_.address) rows.damaged("does not belong to its header");
    const uint8_t* used = rows.take(static_cast<size_t>(bitmap));
    for (int64_t i = 0; pages == 0 && i < entries; ++i) put_place(i, rows, width, client == 1);
    rows.expect_checksum();
    int64_t at = block + prefix + 4;
    for (int64_t i = 0; i < pages; ++i) {
      const int64_t count = std::min(page, entries - i * page);
      const bool filled = (used[i / 8] >> (7 - i % 8) & 1) != 0;
      if (filled) read_page(kWhat, at, i * page, count, width, client == 1);
      at += count * width + 4;
    }
  }

  void read_page(const char* what, int64_t position, int64_t first, int64_t count, int64_t width, bool filtered) {
    const auto bytes = source_.read(position, count * width + 4, what);
    Cursor rows(source_, what, bytes);
    for (int64_t k = 0; k < count; ++k) put_place(first + k, rows, width, filtered);
    rows.expect_checksum();
  }

  // The numbers that an extensible array's header gives.
  struct Growing {
    int client = 0;
    int64_t width = 0;
    int most_bits = 0;
    int64_t in_index = 0, block_least = 0, pointers_least = 0, page = 0;
    int64_t offset_bytes() const { return (most_bits + 7) / 8; }
  };

  void read_extensible_array() {
    constexpr const char* kWhat = "a growing array of chunks";
    for (size_t d = 1; d < counts_.size(); ++d) {
      if (dataset_.extent.most[d] < 0)
        source_.refuse(str("dataset ", name_, " grows in more than its first dimension"));
    }
    const auto head = source_.read(layout_.address, 72, kWhat);
    Cursor cursor(source_, kWhat, head);
    cursor.expect("EAHD", 0);
    Growing g;
    g.client = cursor.u8();
    g.width = cursor.u8();
    g.most_bits = cursor.u8();
    g.in_index = cursor.u8();
    g.block_least = cursor.u8();
    g.pointers_least = cursor.u8();
    const int page_bits = cursor.u8();
    cursor.skip(6 * 8);
    const int64_t block = cursor.address();
    cursor.expect_checksum();
    check_width(cursor, g.client, g.width);
    const auto power = [](int64_t x) { return x > 0 && (x & (x - 1)) == 0; };
    if (!power(g.block_least) || !power(g.pointers_least) || g.pointers_least < 2 || page_bits > 32 ||
        g.most_bits > 62 || g.most_bits < std::countr_zero(static_cast<uint64_t>(g.block_least))) {
      cursor.damaged("has impossible numbers");
    }
    g.page = int64_t{1} << page_bits;
    if (block != kUndefined) read_index_block(g, block);
  }

  void read_index_block(const Growing& g, int64_t address) {
    constexpr const char* kWhat = "the index block of an array of chunks";
    const int supers = 1 + g.most_bits - std::countr_zero(static_cast<uint64_t>(g.block_least));
    const int direct = std::min(supers, 2 * std::countr_zero(static_cast<uint64_t>(g.pointers_least)));
    const int64_t direct_blocks = 2 * (g.pointers_least - 1);
    const auto bytes =
        source_.read(address, 14 + g.in_index * g.width + 8 * (direct_blocks + supers - direct) + 4, kWhat);
    Cursor cursor(source_, kWhat, bytes);
    start_block(g, cursor, "EAIB");
    int64_t first = 0;
    for (; first < g.in_index; ++first) put_place(first, cursor, g.width, g.client == 1);
    std::vector<int64_t> blocks, tables;
    for (int64_t i = 0; i < direct_blocks; ++i) blocks.push_back(cursor.address());
    for (int i = direct; i < supers; ++i) tables.push_back(cursor.address());
    cursor.expect_checksum();
    size_t next = 0;
    const int64_t places = total_places();
    for (int u = 0; u < supers && first < places; ++u) {
      const int64_t count = int64_t{1} << (u / 2), length = (int64_t{1} << ((u + 1) / 2)) * g.block_least;
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

  int64_t total_places() const {
    int64_t places = 1;
    for (int64_t count : places_) {
      if (__builtin_mul_overflow(places, count, &places)) refuse("is of an impossible length");
    }
    return places;
  }

  void start_block(const Growing& g, Cursor& cursor, const char* signature) {
    cursor.expect(signature, 0);
    if (cursor.u8() != g.client || cursor.address() != layout_.address) {
      cursor.damaged("does not belong to its header");
    }
    if (++nodes_ > source_.bytes() / 14) refuse("is a loop");
  }

  void read_super_block(const Growing& g, int64_t address, int64_t first, int64_t count, int64_t length) {
    constexpr const char* kWhat = "a super block of an array of chunks";
    const int64_t bitmap = length > g.page ? ceil_div(length / g.page, 8) : 0;
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
      if (block != kUndefined) read_data_block(g, block, first + i * length, length, used, i * (length / g.page));
    }
  }

  // `used` has a bit for every page of the blocks of a table; those of this block begin at `first_page`.
  void read_data_block(const Growing& g, int64_t address, int64_t first, int64_t length, const uint8_t* used,
                       int64_t first_page) {
    constexpr const char* kWhat = "a data block of an array of chunks";
    const bool paged = length > g.page;
    if (length > source_.bytes() / 8) refuse("is larger than the file");
    const int64_t prefix = 14 + g.offset_bytes();
    const auto bytes = source_.read(address, prefix + (paged ? 0 : length * g.width) + 4, kWhat);
    Cursor cursor(source_, kWhat, bytes);
    start_block(g, cursor, "EADB");
    cursor.skip(static_cast<size_t>(g.offset_bytes()));
    for (int64_t i = 0; !paged && i < length; ++i) put_place(first + i, cursor, g.width, g.client == 1);
    cursor.expect_checksum();
    if (!paged) return;
    for (int64_t i = 0; i < length / g.page; ++i) {
      const int64_t page = first_page + i;
      if (used == nullptr || (used[page / 8] >> (7 - page % 8) & 1) == 0) continue;
      read_page(kWhat, address + prefix + 4 + i * (g.page * g.width + 4), first + i * g.page, g.page, g.width,
                g.client == 1);
    }
  }

  const Source& source_;
  const std::string& name_;
  const Object& dataset_;
  const Layout& layout_;
  const int64_t whole_;
  std::vector<int64_t> counts_, places_;  // chunks along each dimension: of the dataset, and numbered by an array
  std::vector<Chunk> chunks_;
  int64_t nodes_ = 0;
};

}  // namespace

std::vector<Chunk> read_chunks(const Source& source, const std::string& name, const Object& dataset, int64_t whole) {
  if (dataset.layout.index == ChunkIndex::other) {
    source.refuse(str("dataset ", name, " has an index of its chunks that is not read here"));
  }
  return ChunkReader(source, name, dataset, whole).read();
}

}  // namespace tmamba::h5_detail
