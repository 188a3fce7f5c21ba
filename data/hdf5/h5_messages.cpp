// The parts of an object's header that describe data: its type, its sizes, where it lies, what was done to it.
#include "data/hdf5/h5_headers.h"

namespace tmamba::h5_detail {

namespace {

constexpr int kMaxRank = 32;

std::optional<H5Type> known_integer(int64_t bytes, bool is_signed) {
  if (bytes == 1 && !is_signed) return H5Type::u8;
  if (bytes == 2 && !is_signed) return H5Type::u16;
  if (bytes == 4) return is_signed ? H5Type::i32 : H5Type::u32;
  if (bytes == 8) return is_signed ? H5Type::i64 : H5Type::u64;
  return std::nullopt;
}

// What IEEE says of the fields of a float of this size.
bool is_ieee(Cursor fields, int64_t bytes, uint32_t bits) {
  const bool single = bytes == 4;
  const int offset = fields.u16(), precision = fields.u16(), exponent = fields.u8(), exponent_bits = fields.u8(),
            mantissa = fields.u8(), mantissa_bits = fields.u8();
  const uint32_t bias = fields.u32();
  const bool little = (bits & 0x41) == 0, implied = (bits >> 4 & 3) == 2;
  const uint32_t sign = bits >> 8 & 0xFF;
  return little && implied && offset == 0 && precision == 8 * bytes && mantissa == 0 &&
         (single ? exponent == 23 && exponent_bits == 8 && mantissa_bits == 23 && bias == 127 && sign == 31
                 : bytes == 8 && exponent == 52 && exponent_bits == 11 && mantissa_bits == 52 && bias == 1023 &&
                       sign == 63);
}

}  // namespace

FileType read_type(Cursor cursor) {
  const uint8_t first = cursor.u8();
  const uint32_t bits = static_cast<uint32_t>(cursor.number(3));
  FileType type;
  type.bytes = cursor.u32();
  const int kind = first & 0x0F, version = first >> 4;
  if (version < 1 || version > 3 || type.bytes == 0) return type;
  if (kind == 0 && type.bytes <= 8) {
    const int offset = cursor.u16(), precision = cursor.u16();
    type.is_signed = (bits & 8) != 0;
    const bool plain = (bits & 1) == 0 && offset == 0 && precision == 8 * type.bytes;
    const bool power = (type.bytes & (type.bytes - 1)) == 0;
    if (!plain || !power) return type;
    type.kind = TypeClass::integer;
    type.known = known_integer(type.bytes, type.is_signed);
  } else if (kind == 1 && is_ieee(cursor, type.bytes, bits)) {
    type.kind = TypeClass::real;
    type.known = type.bytes == 4 ? H5Type::f32 : H5Type::f64;
  } else if (kind == 3) {
    type.kind = TypeClass::text;
  }
  return type;
}

Extent read_extent(Cursor cursor) {
  const int version = cursor.u8(), rank = cursor.u8(), flags = cursor.u8();
  Extent extent;
  if (version == 1) {
    cursor.skip(5);
  } else if (version == 2) {
    extent.null = cursor.u8() == 2;
  } else {
    cursor.damaged("has sizes of another version");
  }
  if (rank > kMaxRank) cursor.damaged("has too many dimensions");
  for (int i = 0; i < rank; ++i) extent.shape.push_back(cursor.size());
  extent.most = extent.shape;
  for (int i = 0; (flags & 1) != 0 && i < rank; ++i) {
    const uint64_t most = cursor.number(8);
    if (most < static_cast<uint64_t>(extent.shape[static_cast<size_t>(i)])) cursor.damaged("is larger than it may be");
    extent.most[static_cast<size_t>(i)] = most > uint64_t{INT64_MAX} ? -1 : static_cast<int64_t>(most);
  }
  return extent;
}

namespace {

void read_chunked(Cursor& cursor, Layout& layout) {
  const int flags = cursor.u8(), rank = cursor.u8(), width = cursor.u8();
  if (rank < 1 || rank > kMaxRank + 1 || width < 1 || width > 8) cursor.damaged("has impossible chunks");
  for (int i = 0; i < rank; ++i) layout.chunk.push_back(cursor.size(static_cast<size_t>(width)));
  switch (cursor.u8()) {
    case 1:
      layout.index = ChunkIndex::single;
      layout.bytes = -1;  // of a whole chunk
      if ((flags & 2) != 0) {
        layout.bytes = cursor.size();
        layout.filter_mask = cursor.u32();
      }
      break;
    case 3:
      layout.index = ChunkIndex::fixed_array;
      cursor.skip(1);
      break;
    case 4:
      layout.index = ChunkIndex::extensible_array;
      cursor.skip(5);
      break;
    default:
      layout.index = ChunkIndex::other;
      return;
  }
  layout.address = cursor.address();
}

}  // namespace

Layout read_layout(Cursor cursor) {
  const int version = cursor.u8();
  if (version != 3 && version != 4)
    cursor.damaged(str("has a layout of version ", version, ", which is not read here"));
  Layout layout;
  switch (cursor.u8()) {
    case 0:
      layout.storage = Storage::compact;
      break;
    case 1:
      layout.storage = Storage::contiguous;
      layout.address = cursor.address();
      layout.bytes = cursor.size();
      break;
    case 2:
      layout.storage = Storage::chunked;
      if (version == 4) {
        read_chunked(cursor, layout);
        break;
      }
      {
        const int rank = cursor.u8();
        if (rank < 1 || rank > kMaxRank + 1) cursor.damaged("has impossible chunks");
        layout.address = cursor.address();
        for (int i = 0; i < rank; ++i) layout.chunk.push_back(cursor.u32());
      }
      break;
    case 3:
      layout.storage = Storage::virtual_;
      break;
    default:
      break;
  }
  return layout;
}

Filters read_filters(Cursor cursor) {
  const int version = cursor.u8(), count = cursor.u8();
  if (version != 1 && version != 2) cursor.damaged("has filters of another version");
  if (version == 1) cursor.skip(6);
  Filters filters;
  for (int i = 0; i < count; ++i) {
    const int id = cursor.u16();
    const bool named = version == 1 || id >= 256;
    const size_t name = named ? cursor.u16() : 0;
    cursor.skip(2);
    const size_t values = cursor.u16();
    cursor.skip(version == 1 ? (name + 7) / 8 * 8 : name);
    cursor.skip(4 * values + (version == 1 && values % 2 != 0 ? 4 : 0));
    filters.ids.push_back(id);
  }
  return filters;
}

void read_attribute(Cursor cursor, std::map<std::string, Attribute>& attributes) {
  const int version = cursor.u8(), flags = cursor.u8();
  if (version < 1 || version > 3) cursor.damaged("has an attribute of another version");
  const size_t name_bytes = cursor.u16(), type_bytes = cursor.u16(), extent_bytes = cursor.u16();
  if (version == 3) cursor.skip(1);
  const auto padded = [&](size_t bytes) { return version == 1 ? (bytes + 7) / 8 * 8 : bytes; };
  const auto* text = reinterpret_cast<const char*>(cursor.take(padded(name_bytes)));
  const std::string_view all(text, name_bytes);
  const std::string name(all.substr(0, all.find('\0')));
  Cursor type = cursor.sub(padded(type_bytes)), extent = cursor.sub(padded(extent_bytes));
  Attribute attribute;
  // With flags its type or sizes lie elsewhere: not one that is read here.
  if (version == 1 || (flags & 3) == 0) {
    attribute.type = read_type(type);
    attribute.extent = read_extent(extent);
  }
  const size_t left = cursor.left();
  const uint8_t* data = cursor.take(left);
  attribute.data.assign(data, data + left);
  if (name.empty()) cursor.damaged("has an attribute without a name");
  if (!attributes.emplace(name, std::move(attribute)).second) cursor.damaged("has an attribute twice");
}

}  // namespace tmamba::h5_detail
