// Object header messages that describe data: datatype, dataspace, data layout, filter pipeline and attributes.
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

// Whether the fields describe a little-endian IEEE float of 4 or 8 bytes.
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

Datatype read_datatype(Cursor cursor) {
  const uint8_t first = cursor.u8();
  const uint32_t bits = static_cast<uint32_t>(cursor.number(3));
  Datatype type;
  type.bytes = cursor.u32();
  const int kind = first & 0x0F, version = first >> 4;
  if (version < 1 || version > 3 || type.bytes == 0) return type;
  if (kind == 0 && type.bytes <= 8) {
    const int offset = cursor.u16(), precision = cursor.u16();
    type.is_signed = (bits & 8) != 0;
    const bool plain = (bits & 1) == 0 && offset == 0 && precision == 8 * type.bytes;
    const bool power = (type.bytes & (type.bytes - 1)) == 0;
    if (!plain || !power) return type;
    type.kind = TypeClass::fixed_point;
    type.known = known_integer(type.bytes, type.is_signed);
  } else if (kind == 1 && is_ieee(cursor, type.bytes, bits)) {
    type.kind = TypeClass::floating_point;
    type.known = type.bytes == 4 ? H5Type::f32 : H5Type::f64;
  } else if (kind == 3) {
    type.kind = TypeClass::string;
  }
  return type;
}

Dataspace read_dataspace(Cursor cursor) {
  const int version = cursor.u8(), rank = cursor.u8(), flags = cursor.u8();
  Dataspace dataspace;
  if (version == 1) {
    cursor.skip(5);
  } else if (version == 2) {
    dataspace.null = cursor.u8() == 2;
  } else {
    cursor.damaged(str("has a dataspace of version ", version, ", only 1 and 2 are supported"));
  }
  if (rank > kMaxRank) cursor.damaged(str("has ", rank, " dimensions, more than ", kMaxRank));
  for (int i = 0; i < rank; ++i) dataspace.shape.push_back(cursor.size());
  dataspace.max_shape = dataspace.shape;
  for (int i = 0; (flags & 1) != 0 && i < rank; ++i) {
    const uint64_t max_size = cursor.number(8);
    if (max_size < static_cast<uint64_t>(dataspace.shape[static_cast<size_t>(i)])) {
      cursor.damaged(str("has a dimension ", i, " larger than its maximum of ", max_size));
    }
    dataspace.max_shape[static_cast<size_t>(i)] = max_size > uint64_t{INT64_MAX} ? -1 : static_cast<int64_t>(max_size);
  }
  return dataspace;
}

namespace {

void read_chunked(Cursor& cursor, DataLayout& layout) {
  const int flags = cursor.u8(), rank = cursor.u8(), width = cursor.u8();
  if (rank < 1 || rank > kMaxRank + 1 || width < 1 || width > 8) cursor.damaged("has chunks of an impossible rank");
  for (int i = 0; i < rank; ++i) layout.chunk.push_back(cursor.size(static_cast<size_t>(width)));
  switch (cursor.u8()) {
    case 1:
      layout.index = ChunkIndex::single_chunk;
      layout.bytes = -1;
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

DataLayout read_data_layout(Cursor cursor) {
  const int version = cursor.u8();
  if (version != 3 && version != 4)
    cursor.damaged(str("has a data layout of version ", version, ", only 3 and 4 are supported"));
  DataLayout layout;
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
        if (rank < 1 || rank > kMaxRank + 1) cursor.damaged("has chunks of an impossible rank");
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

FilterPipeline read_filter_pipeline(Cursor cursor) {
  const int version = cursor.u8(), count = cursor.u8();
  if (version != 1 && version != 2) {
    cursor.damaged(str("has a filter pipeline of version ", version, ", only 1 and 2 are supported"));
  }
  if (version == 1) cursor.skip(6);
  FilterPipeline filters;
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
  if (version < 1 || version > 3) {
    cursor.damaged(str("has an attribute of version ", version, ", only 1 to 3 are supported"));
  }
  const size_t name_bytes = cursor.u16(), type_bytes = cursor.u16(), dataspace_bytes = cursor.u16();
  if (version == 3) cursor.skip(1);
  const auto padded = [&](size_t bytes) { return version == 1 ? (bytes + 7) / 8 * 8 : bytes; };
  const auto* text = reinterpret_cast<const char*>(cursor.take(padded(name_bytes)));
  const std::string_view all(text, name_bytes);
  const std::string name(all.substr(0, all.find('\0')));
  Cursor type = cursor.sub(padded(type_bytes)), dataspace = cursor.sub(padded(dataspace_bytes));
  Attribute attribute;
  // The flags mark a shared datatype or dataspace; such an attribute keeps an unknown type and cannot be read.
  if (version == 1 || (flags & 3) == 0) {
    attribute.type = read_datatype(type);
    attribute.dataspace = read_dataspace(dataspace);
  }
  const size_t left = cursor.remaining();
  const uint8_t* data = cursor.take(left);
  attribute.data.assign(data, data + left);
  if (name.empty()) cursor.damaged("has an attribute without a name");
  if (!attributes.emplace(name, std::move(attribute)).second) {
    cursor.damaged(str("has two attributes named \"", name, "\""));
  }
}

}  // namespace tmamba::h5_detail
