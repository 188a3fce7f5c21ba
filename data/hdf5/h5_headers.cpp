// Object headers: a list of messages, in one block of the file or in several.
#include "data/hdf5/h5_headers.h"

#include <algorithm>

namespace tmamba::h5_detail {

namespace {

constexpr size_t kMaxBlocks = 4096;
constexpr int64_t kMaxHeader = int64_t{16} << 20;
constexpr const char* kWhat = "an object's header";

enum Kind : int {
  kExtent = 0x01,
  kLinkInfo = 0x02,
  kType = 0x03,
  kLink = 0x06,
  kExternalFiles = 0x07,
  kLayout = 0x08,
  kFilters = 0x0B,
  kAttribute = 0x0C,
  kContinuation = 0x10,
  kSymbolTable = 0x11,
  kAttributeInfo = 0x15,
};
constexpr uint8_t kShared = 0x02;

class HeaderReader {
 public:
  explicit HeaderReader(const Source& source) : source_(source) {}

  Object read(int64_t address) {
    const auto start = source_.read(address, std::min<int64_t>(32, source_.bytes() - address), kWhat);
    const bool second = start.size() >= 4 && start[0] == 'O' && start[1] == 'H' && start[2] == 'D' && start[3] == 'R';
    second ? read_second(address, start) : read_first(address, start);
    // In the second form what lies in further blocks is only known once the first was read; it may lead to more.
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (i >= kMaxBlocks) source_.refuse("an object's header is in too many pieces");
      second ? continue_second(blocks_[i]) : continue_first(blocks_[i]);
    }
    object_.dataset = has_layout_ && has_type_ && has_extent_;
    if (object_.group && object_.dataset) source_.refuse("an object is a group and a dataset; is the file damaged?");
    return std::move(object_);
  }

 private:
  struct Block {
    int64_t position, bytes;
  };

  std::vector<uint8_t> take_block(const Block& block) {
    if (block.bytes < 0 || block.bytes > kMaxHeader - bytes_read_) {
      source_.refuse("an object's header is too long; is it damaged?");
    }
    bytes_read_ += block.bytes;
    return source_.read(block.position, block.bytes, kWhat);
  }

  void read_first(int64_t address, const std::vector<uint8_t>& start) {
    Cursor cursor(source_, kWhat, start);
    const int version = cursor.u8();
    if (version != 1) cursor.damaged(str("is of version ", version, ", which is not read here"));
    cursor.skip(1 + 2 + 4);
    const int64_t bytes = cursor.u32();
    blocks_.push_back({address + 16, bytes});
  }

  void continue_first(const Block& block) {
    const auto bytes = take_block(block);
    Cursor cursor(source_, kWhat, bytes);
    while (cursor.left() >= 8) {
      const int kind = cursor.u16(), size = cursor.u16(), flags = cursor.u8();
      cursor.skip(3);
      message(kind, static_cast<uint8_t>(flags), cursor.sub(static_cast<size_t>(size)));
    }
  }

  void read_second(int64_t address, const std::vector<uint8_t>& start) {
    Cursor cursor(source_, kWhat, start);
    cursor.expect("OHDR", 2);
    const int flags = cursor.u8();
    if ((flags & 0x20) != 0) cursor.skip(16);
    if ((flags & 0x10) != 0) cursor.skip(4);
    ordered_ = (flags & 0x04) != 0;
    const int64_t bytes = cursor.size(size_t{1} << (flags & 3));
    const auto prefix = static_cast<int64_t>(cursor.taken());
    if (bytes > kMaxHeader) cursor.damaged("is too long");
    const auto whole = take_block({address, prefix + bytes + 4});
    Cursor block(source_, kWhat, whole);
    block.skip(static_cast<size_t>(prefix));
    Cursor messages = block.sub(static_cast<size_t>(bytes));
    block.expect_checksum();
    read_second_messages(messages);
  }

  void continue_second(const Block& block) {
    const auto bytes = take_block(block);
    Cursor cursor(source_, kWhat, bytes);
    if (cursor.left() < 8 || cursor.number(4) != 0x4B48434F)
      cursor.damaged("has a piece that does not begin with OCHK");
    Cursor messages = cursor.sub(cursor.left() - 4);
    cursor.expect_checksum();
    read_second_messages(messages);
  }

  void read_second_messages(Cursor cursor) {
    const size_t prefix = ordered_ ? 6 : 4;
    while (cursor.left() >= prefix) {
      const int kind = cursor.u8(), size = cursor.u16();
      const uint8_t flags = cursor.u8();
      if (ordered_) cursor.skip(2);
      message(kind, flags, cursor.sub(static_cast<size_t>(size)));
    }
  }

  void once(bool& seen, const Cursor& cursor) {
    if (seen) cursor.damaged("says a thing twice");
    seen = true;
  }

  void message(int kind, uint8_t flags, Cursor body) {
    const bool read = kind == kExtent || kind == kType || kind == kLink || kind == kLayout || kind == kFilters ||
                      kind == kAttribute || kind == kSymbolTable || kind == kContinuation;
    if (read && (flags & kShared) != 0) {
      // An attribute's or a dataset's type may lie elsewhere in the file; then it is not one that is read here.
      if (kind == kType) return once(has_type_, body);
      body.damaged("shares a part of itself with other objects, which is not read here");
    }
    switch (kind) {
      case kExtent:
        once(has_extent_, body);
        object_.extent = read_extent(body);
        break;
      case kType:
        once(has_type_, body);
        object_.type = read_type(body);
        break;
      case kLayout:
        once(has_layout_, body);
        object_.layout = read_layout(body);
        break;
      case kFilters:
        once(has_filters_, body);
        object_.filters = read_filters(body);
        break;
      case kExternalFiles:
        object_.external_storage = true;
        break;
      case kAttribute:
        read_attribute(body, object_.attributes);
        break;
      case kLink:
        object_.group = true;
        read_link(body, object_.links);
        break;
      case kLinkInfo:
        object_.group = true;
        object_.dense_links = has_heap(body, 8);
        break;
      case kAttributeInfo:
        object_.dense_attributes = has_heap(body, 2);
        break;
      case kSymbolTable: {
        once(has_table_, body);
        object_.group = true;
        const int64_t tree = body.address(), heap = body.address();
        read_symbol_table(source_, tree, heap, object_.links);
        break;
      }
      case kContinuation: {
        const int64_t position = body.address(), bytes = body.size();
        blocks_.push_back({position, bytes});
        break;
      }
      default:
        break;  // fill values, times and the like
    }
  }

  // Of link and attribute information: whether what it is about lies in a heap of its own.
  bool has_heap(Cursor body, size_t order_bytes) {
    const int version = body.u8(), flags = body.u8();
    if (version != 0) body.damaged("is of another version");
    if ((flags & 1) != 0) body.skip(order_bytes);
    return body.address() != kUndefined;
  }

  const Source& source_;
  Object object_;
  std::vector<Block> blocks_;
  int64_t bytes_read_ = 0;
  bool ordered_ = false;
  bool has_extent_ = false, has_type_ = false, has_layout_ = false, has_filters_ = false, has_table_ = false;
};

constexpr const char* kTree = "a group's tree";

// One node of the tree of a group; its children are nodes of a lower level, and at last tables of names.
struct GroupTree {
  const Source& source;
  const std::vector<uint8_t>& names;
  std::map<std::string, Link>& links;
  size_t nodes = 0;

  void read(int64_t address, int above) {
    // Each node takes room in the file, so a file cannot have more than this.
    if (++nodes > static_cast<size_t>(source.bytes()) / 8) source.refuse("a group's tree is a loop; is it damaged?");
    if (address == kUndefined) source.refuse("a group's tree points nowhere; is it damaged?");
    const auto head = source.read(address, 24, kTree);
    Cursor cursor(source, kTree, head);
    cursor.expect("TREE", 0);  // of a group
    const int level = cursor.u8(), entries = cursor.u16();
    if (above >= 0 && level != above - 1) cursor.damaged("has a node of a wrong level");
    const auto body = source.read(address + 24, 8 + 16 * int64_t{entries}, kTree);
    Cursor children(source, kTree, body);
    for (int i = 0; i < entries; ++i) {
      children.skip(8);
      const int64_t child = children.address();
      level > 0 ? read(child, level) : read_table(child);
    }
  }

  void read_table(int64_t address) {
    constexpr const char* kTable = "a group's table of names";
    if (++nodes > static_cast<size_t>(source.bytes()) / 8) source.refuse("a group's tree is a loop; is it damaged?");
    if (address == kUndefined) source.refuse("a group's tree points nowhere; is it damaged?");
    const auto head = source.read(address, 8, kTable);
    Cursor cursor(source, kTable, head);
    cursor.expect("SNOD", 1);
    cursor.skip(1);
    const int entries = cursor.u16();
    const auto body = source.read(address + 8, 40 * int64_t{entries}, kTable);
    Cursor rows(source, kTable, body);
    for (int i = 0; i < entries; ++i) {
      const int64_t offset = rows.size();
      const int64_t header = rows.address();
      const uint32_t cache = rows.u32();
      rows.skip(4 + 16);
      add(rows, offset, {cache == 2 ? LinkKind::soft : LinkKind::hard, header});
    }
  }

  void add(const Cursor& rows, int64_t offset, const Link& link) {
    if (offset >= std::ssize(names)) rows.damaged("has a name outside its heap");
    const auto begin = names.begin() + offset, end = std::find(begin, names.end(), 0);
    if (begin == end || end == names.end()) rows.damaged("has a name that is empty or has no end");
    if (link.kind == LinkKind::hard && link.address == kUndefined) rows.damaged("has a link to nowhere");
    if (!links.emplace(std::string(begin, end), link).second) rows.damaged("has a name twice");
  }
};

}  // namespace

Object read_object(const Source& source, int64_t address) { return HeaderReader(source).read(address); }

void read_symbol_table(const Source& source, int64_t tree, int64_t heap, std::map<std::string, Link>& links) {
  constexpr const char* kHeap = "a group's heap of names";
  if (heap == kUndefined) source.refuse("a group has no heap of names; is it damaged?");
  const auto head = source.read(heap, 32, kHeap);
  Cursor cursor(source, kHeap, head);
  cursor.expect("HEAP", 0);
  cursor.skip(3);
  const int64_t bytes = cursor.size();
  cursor.skip(8);
  const int64_t position = cursor.address();
  if (position == kUndefined) cursor.damaged("points nowhere");
  const auto names = source.read(position, bytes, kHeap);
  GroupTree{source, names, links}.read(tree, -1);
}

void read_link(Cursor cursor, std::map<std::string, Link>& links) {
  const int version = cursor.u8(), flags = cursor.u8();
  if (version != 1) cursor.damaged("has a link of another version");
  const int kind = (flags & 0x08) != 0 ? cursor.u8() : 0;
  if ((flags & 0x04) != 0) cursor.skip(8);
  if ((flags & 0x10) != 0) cursor.skip(1);
  const auto length = static_cast<size_t>(cursor.size(size_t{1} << (flags & 3)));
  const auto* text = reinterpret_cast<const char*>(cursor.take(length));
  const std::string name(text, length);
  if (name.empty() || name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
    cursor.damaged("has a link without a proper name");
  }
  Link link;
  if (kind == 0) {
    link = {LinkKind::hard, cursor.address()};
    if (link.address == kUndefined) cursor.damaged("has a link to nowhere");
  } else if (kind == 1 || kind == 64) {
    link.kind = kind == 1 ? LinkKind::soft : LinkKind::external;
  }
  if (!links.emplace(name, link).second) cursor.damaged("has a name twice");
}

}  // namespace tmamba::h5_detail
