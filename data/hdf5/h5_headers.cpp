// Object headers: lists of messages in one or several blocks of the file. Version 2 has signatures and checksums.
#include "data/hdf5/h5_headers.h"

#include <algorithm>

namespace tmamba::h5_detail {

namespace {

constexpr size_t kMaxBlocks = 4096;
constexpr int64_t kMaxHeader = int64_t{16} << 20;
constexpr const char* kWhat = "an object header";

enum Kind : int {
  kDataspace = 0x01,
  kLinkInfo = 0x02,
  kDatatype = 0x03,
  kLink = 0x06,
  kExternalFiles = 0x07,
  kDataLayout = 0x08,
  kFilterPipeline = 0x0B,
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
    second ? read_v2(address, start) : read_v1(address, start);
    // Continuation messages append to blocks_ while it is read.
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (i >= kMaxBlocks) source_.refuse(str("an object header has more than ", kMaxBlocks, " blocks"));
      second ? read_v2_block(blocks_[i]) : read_v1_block(blocks_[i]);
    }
    object_.dataset = has_layout_ && has_type_ && has_dataspace_;
    if (object_.group && object_.dataset) source_.refuse(str("an object is a group and a dataset", kDamagedAdvice));
    return std::move(object_);
  }

 private:
  struct Block {
    int64_t position, bytes;
  };

  std::vector<uint8_t> take_block(const Block& block) {
    if (block.bytes < 0 || block.bytes > kMaxHeader - bytes_read_) {
      source_.refuse(str("an object header is longer than ", kMaxHeader, " bytes", kDamagedAdvice));
    }
    bytes_read_ += block.bytes;
    return source_.read(block.position, block.bytes, kWhat);
  }

  void read_v1(int64_t address, const std::vector<uint8_t>& start) {
    Cursor cursor(source_, kWhat, start);
    const int version = cursor.u8();
    if (version != 1) cursor.damaged(str("has version ", version, ", only 1 and 2 are supported"));
    cursor.skip(1 + 2 + 4);
    const int64_t bytes = cursor.u32();
    blocks_.push_back({address + 16, bytes});
  }

  void read_v1_block(const Block& block) {
    const auto bytes = take_block(block);
    Cursor cursor(source_, kWhat, bytes);
    while (cursor.remaining() >= 8) {
      const int kind = cursor.u16(), size = cursor.u16(), flags = cursor.u8();
      cursor.skip(3);
      message(kind, static_cast<uint8_t>(flags), cursor.sub(static_cast<size_t>(size)));
    }
  }

  void read_v2(int64_t address, const std::vector<uint8_t>& start) {
    Cursor cursor(source_, kWhat, start);
    cursor.expect("OHDR", 2);
    const int flags = cursor.u8();
    if ((flags & 0x20) != 0) cursor.skip(16);
    if ((flags & 0x10) != 0) cursor.skip(4);
    creation_order_ = (flags & 0x04) != 0;
    const int64_t bytes = cursor.size(size_t{1} << (flags & 3));
    const auto prefix = static_cast<int64_t>(cursor.consumed());
    if (bytes > kMaxHeader) cursor.damaged(str("has ", bytes, " bytes, more than ", kMaxHeader));
    const auto content = take_block({address, prefix + bytes + 4});
    Cursor block(source_, kWhat, content);
    block.skip(static_cast<size_t>(prefix));
    Cursor messages = block.sub(static_cast<size_t>(bytes));
    block.expect_checksum();
    read_v2_messages(messages);
  }

  void read_v2_block(const Block& block) {
    const auto bytes = take_block(block);
    Cursor cursor(source_, kWhat, bytes);
    if (cursor.remaining() < 8 || cursor.number(4) != 0x4B48434F)
      cursor.damaged("has a continuation block without the signature OCHK");
    Cursor messages = cursor.sub(cursor.remaining() - 4);
    cursor.expect_checksum();
    read_v2_messages(messages);
  }

  void read_v2_messages(Cursor cursor) {
    const size_t prefix = creation_order_ ? 6 : 4;
    while (cursor.remaining() >= prefix) {
      const int kind = cursor.u8(), size = cursor.u16();
      const uint8_t flags = cursor.u8();
      if (creation_order_) cursor.skip(2);
      message(kind, flags, cursor.sub(static_cast<size_t>(size)));
    }
  }

  void once(bool& seen, const Cursor& cursor) {
    if (seen) cursor.damaged("has a message twice that may appear once");
    seen = true;
  }

  void message(int kind, uint8_t flags, Cursor body) {
    const bool read = kind == kDataspace || kind == kDatatype || kind == kLink || kind == kDataLayout ||
                      kind == kFilterPipeline || kind == kAttribute || kind == kSymbolTable || kind == kContinuation;
    if (read && (flags & kShared) != 0) {
      // A shared (committed) datatype leaves object_.type unknown, so that opening the dataset refuses it.
      if (kind == kDatatype) return once(has_type_, body);
      body.damaged("has a shared message, which is not supported");
    }
    switch (kind) {
      case kDataspace:
        once(has_dataspace_, body);
        object_.dataspace = read_dataspace(body);
        break;
      case kDatatype:
        once(has_type_, body);
        object_.type = read_datatype(body);
        break;
      case kDataLayout:
        once(has_layout_, body);
        object_.layout = read_data_layout(body);
        break;
      case kFilterPipeline:
        once(has_filters_, body);
        object_.filters = read_filter_pipeline(body);
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
        object_.dense_links = is_dense(body, 8);
        break;
      case kAttributeInfo:
        object_.dense_attributes = is_dense(body, 2);
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
        break;  // fill values, modification times and the like
    }
  }

  // Whether a link info or attribute info message refers to a fractal heap (dense storage).
  bool is_dense(Cursor body, size_t order_bytes) {
    const int version = body.u8(), flags = body.u8();
    if (version != 0) body.damaged(str("has an info message of version ", version, ", only 0 is supported"));
    if ((flags & 1) != 0) body.skip(order_bytes);
    return body.address() != kUndefined;
  }

  const Source& source_;
  Object object_;
  std::vector<Block> blocks_;
  int64_t bytes_read_ = 0;
  bool creation_order_ = false;
  bool has_dataspace_ = false, has_type_ = false, has_layout_ = false, has_filters_ = false, has_table_ = false;
};

constexpr const char* kTree = "a node of a group B-tree";

// Reads the version-1 B-tree of a group, whose leaves are symbol table nodes.
struct GroupBtree {
  const Source& source;
  const std::vector<uint8_t>& names;
  std::map<std::string, Link>& links;
  size_t nodes = 0;

  void enter(int64_t address) {
    // A node has at least 8 bytes, so more nodes than this mean a loop.
    if (++nodes > static_cast<size_t>(source.bytes()) / 8) source.refuse(str(kTree, " is in a loop", kDamagedAdvice));
    if (address == kUndefined) source.refuse(str(kTree, " has an undefined address", kDamagedAdvice));
  }

  // `parent_level` is -1 for the root.
  void read(int64_t address, int parent_level) {
    enter(address);
    const auto head = source.read(address, 24, kTree);
    Cursor cursor(source, kTree, head);
    cursor.expect("TREE", 0);  // node type 0: groups
    const int level = cursor.u8(), entries = cursor.u16();
    if (parent_level >= 0 && level != parent_level - 1) {
      cursor.damaged(str("has level ", level, " below level ", parent_level));
    }
    const auto body = source.read(address + 24, 8 + 16 * int64_t{entries}, kTree);
    Cursor children(source, kTree, body);
    for (int i = 0; i < entries; ++i) {
      children.skip(8);
      const int64_t child = children.address();
      level > 0 ? read(child, level) : read_symbol_node(child);
    }
  }

  void read_symbol_node(int64_t address) {
    constexpr const char* kTable = "a symbol table node";
    enter(address);
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
    if (offset >= std::ssize(names)) rows.damaged("has a name outside its local heap");
    const auto begin = names.begin() + offset, end = std::find(begin, names.end(), 0);
    if (begin == end || end == names.end()) rows.damaged("has a name that is empty or not terminated");
    if (link.kind == LinkKind::hard && link.address == kUndefined) rows.damaged("has a link to an undefined address");
    if (!links.emplace(std::string(begin, end), link).second) rows.damaged("has a name twice");
  }
};

}  // namespace

Object read_object(const Source& source, int64_t address) { return HeaderReader(source).read(address); }

void read_symbol_table(const Source& source, int64_t tree, int64_t heap, std::map<std::string, Link>& links) {
  constexpr const char* kHeap = "the local heap of a group";
  if (heap == kUndefined) source.refuse(str("a group has no local heap", kDamagedAdvice));
  const auto head = source.read(heap, 32, kHeap);
  Cursor cursor(source, kHeap, head);
  cursor.expect("HEAP", 0);
  cursor.skip(3);
  const int64_t bytes = cursor.size();
  cursor.skip(8);
  const int64_t position = cursor.address();
  if (position == kUndefined) cursor.damaged("has an undefined data address");
  const auto names = source.read(position, bytes, kHeap);
  GroupBtree{source, names, links}.read(tree, -1);
}

void read_link(Cursor cursor, std::map<std::string, Link>& links) {
  const int version = cursor.u8(), flags = cursor.u8();
  if (version != 1) cursor.damaged(str("has a link message of version ", version, ", only 1 is supported"));
  const int kind = (flags & 0x08) != 0 ? cursor.u8() : 0;
  if ((flags & 0x04) != 0) cursor.skip(8);
  if ((flags & 0x10) != 0) cursor.skip(1);
  const auto length = static_cast<size_t>(cursor.size(size_t{1} << (flags & 3)));
  const auto* text = reinterpret_cast<const char*>(cursor.take(length));
  const std::string name(text, length);
  if (name.empty() || name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
    cursor.damaged("has a link whose name is empty or contains '/' or NUL");
  }
  Link link;
  if (kind == 0) {
    link = {LinkKind::hard, cursor.address()};
    if (link.address == kUndefined) cursor.damaged("has a link to an undefined address");
  } else if (kind == 1 || kind == 64) {
    link.kind = kind == 1 ? LinkKind::soft : LinkKind::external;
  }
  if (!links.emplace(name, link).second) cursor.damaged(str("has two links named \"", name, "\""));
}

}  // namespace tmamba::h5_detail
