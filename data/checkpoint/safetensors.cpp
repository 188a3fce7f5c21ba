#include "data/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "data/checkpoint/manifest.h"

namespace tmamba {

using nlohmann::json;

namespace {

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr int kMaxDepth = 3;  // the header, a tensor, its shape
constexpr const char* kMetadata = "__metadata__";

const std::map<std::string, DType>& types() {
  static const std::map<std::string, DType> map{{"F64", DType::f64}, {"F32", DType::f32}, {"BF16", DType::bf16},
                                                {"I64", DType::i64}, {"I32", DType::i32}, {"U16", DType::u16},
                                                {"U8", DType::u8}};
  return map;
}

std::string type_name(DType dtype) {
  for (const auto& [name, type] : types()) {
    if (type == dtype) return name;
  }
  throw Error(str("no safetensors type for ", name_of(dtype)));
}

// Refuses duplicate names, which parsers resolve differently, and deep nesting, which may overflow the stack.
json parse_strictly(const std::string& text) {
  std::vector<std::set<std::string>> names;
  const auto check = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kMaxDepth) throw Error(str("the header is nested deeper than ", kMaxDepth, " levels"));
    if (event == json::parse_event_t::object_start) names.emplace_back();
    if (event == json::parse_event_t::object_end) names.pop_back();
    if (event == json::parse_event_t::key && !names.back().insert(value.get<std::string>()).second) {
      throw Error(str("the header has \"", value.get<std::string>(), "\" twice"));
    }
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::exception& error) {
    throw Error(str("the header is not valid JSON: ", error.what()));
  }
}

int64_t number(const json& value, const std::string& where) {
  if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX}) ||
      value.get<int64_t>() < 0) {
    throw Error(str(where, " is not a non-negative integer of at most 63 bits"));
  }
  return value.get<int64_t>();
}

struct Entry {
  StoredTensor tensor;
  int64_t begin, end;
};

Entry parse_entry(const std::string& name, const json& value) {
  const std::string where = str("tensor ", name);
  check_tensor_name(name);
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") || !value.contains("shape") ||
      !value.contains("data_offsets")) {
    throw Error(str(where, " must have dtype, shape and data_offsets, and nothing else"));
  }
  const json &type = value.at("dtype"), &shape = value.at("shape"), &offsets = value.at("data_offsets");
  if (!type.is_string() || !types().contains(type.get<std::string>())) {
    throw Error(str(where, " has the dtype ", type.dump(-1, ' ', true, json::error_handler_t::replace),
                    ", which is not one of F64, F32, BF16, I64, I32, U16, U8"));
  }
  if (!shape.is_array()) throw Error(str(where, ": shape is not a list"));
  if (!offsets.is_array() || offsets.size() != 2) throw Error(str(where, ": data_offsets is not a list of two"));
  Entry entry{{name, types().at(type.get<std::string>()), {}},
              number(offsets[0], where + ".data_offsets"),
              number(offsets[1], where + ".data_offsets")};
  if (shape.empty() || shape.size() > 2) throw Error(str(where, " has ", shape.size(), " sizes, not 1 or 2"));
  for (const json& size : shape) entry.tensor.shape.push_back(number(size, where + ".shape"));
  int64_t bytes = 0;
  try {
    bytes = checked_bytes(entry.tensor.shape, entry.tensor.dtype);
  } catch (const Error& error) {
    throw Error(str(where, ": ", error.what()));
  }
  if (entry.begin > entry.end || entry.end - entry.begin != bytes) {
    throw Error(str(where, " ", brackets(entry.tensor.shape), " of ", type.get<std::string>(), " has ", bytes,
                    " bytes, but data_offsets is [", entry.begin, ", ", entry.end, ")"));
  }
  return entry;
}

// Throws Error unless the tensors are adjacent and cover [0, bytes).
void check_layout(std::vector<Entry>& entries, int64_t bytes) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.begin < b.begin; });
  int64_t end = 0;
  for (const Entry& entry : entries) {
    if (entry.begin < end) throw Error(str("tensor ", entry.tensor.name, " overlaps the one before it"));
    if (entry.begin > end) {
      throw Error(str("there is a hole of ", entry.begin - end, " bytes before tensor ", entry.tensor.name));
    }
    end = entry.end;
  }
  if (end != bytes) {
    throw Error(str("the tensors have ", end, " bytes, the file has ", bytes, ": it is truncated or was changed"));
  }
}

std::string read_header(const File& file) {
  const int64_t size = file.bytes();
  unsigned char raw[8];
  if (size < 8) throw Error(str("the file has ", size, " bytes, too few for a header"));
  file.read(0, raw, sizeof raw);
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | raw[i];
  if (length > kMaxHeader) throw Error(str("the header claims ", length, " bytes; the limit is ", kMaxHeader));
  if (length > static_cast<uint64_t>(size - 8)) {
    throw Error(str("the header claims ", length, " bytes, the file has ", size - 8, " after its length"));
  }
  std::string text(length, '\0');
  file.read(8, text.data(), text.size());
  if (!text.starts_with('{')) throw Error("the header does not begin with {");
  return text;
}

}  // namespace

SafetensorsReader::SafetensorsReader(const std::filesystem::path& file) : file_(File::open_read(file)) {
  try {
    const std::string text = read_header(file_);
    data_begin_ = 8 + static_cast<int64_t>(text.size());
    const json header = parse_strictly(text);
    std::vector<Entry> entries;
    for (const auto& [name, value] : header.items()) {
      if (name != kMetadata) {
        entries.push_back(parse_entry(name, value));
        continue;
      }
      if (!value.is_object()) throw Error("__metadata__ is not an object");
      for (const auto& [key, entry] : value.items()) {
        if (!entry.is_string()) throw Error(str("__metadata__ ", key, " is not a string"));
        metadata_[key] = entry.get<std::string>();
      }
    }
    check_layout(entries, file_.bytes() - data_begin_);
    for (const Entry& entry : entries) {
      begin_[entry.tensor.name] = entry.begin;
      tensors_.push_back(entry.tensor);
    }
  } catch (const FileError&) {
    throw;
  } catch (const Error& error) {
    throw UserError(str(file.string(), ": not a valid safetensors file: ", error.what()));
  }
  std::sort(tensors_.begin(), tensors_.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
}

void SafetensorsReader::read(const std::string& name, int64_t begin, void* out, size_t bytes) const {
  file_.read(data_begin_ + begin_.at(name) + begin, out, bytes);
}

SafetensorsHeader safetensors_header(std::vector<StoredTensor> tensors,
                                     const std::map<std::string, std::string>& metadata) {
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](const StoredTensor& a, const StoredTensor& b) { return size_of(a.dtype) > size_of(b.dtype); });
  json header = {{kMetadata, metadata}};
  int64_t begin = 0;
  for (const StoredTensor& tensor : tensors) {
    const int64_t end = begin + checked_bytes(tensor.shape, tensor.dtype);
    header[tensor.name] = {{"dtype", type_name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text = header.dump();
  text.resize(static_cast<size_t>(round_up(static_cast<int64_t>(text.size()), 8)), ' ');
  if (text.size() > kMaxHeader) {
    throw Error(str("the safetensors header has ", text.size(), " bytes; the limit is ", kMaxHeader));
  }
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(text.size() >> (8 * i) & 0xFF);
  return {out + text, std::move(tensors)};
}

}  // namespace tmamba
