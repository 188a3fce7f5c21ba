#include "data/checkpoint/manifest.h"

#include <cstdio>

#include "data/io/sha256.h"

namespace tmamba {

using nlohmann::json;

namespace {

constexpr const char* kFormat = "transmamba-checkpoint";
constexpr int64_t kVersion = 1;
constexpr std::string_view kSealBegin = ",\n \"sha256\": \"";
constexpr std::string_view kSealEnd = "\"\n}\n";
constexpr size_t kSealBytes = kSealBegin.size() + 64 + kSealEnd.size();
constexpr int kMaxDepth = 64;

// Each of these returns a JSON value as one type and throws Error "WHERE ..." if it has another one.
const json& member(const json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end()) throw Error(str(where, " has no \"", key, "\""));
  return *found;
}

int64_t integer(const json& value, const std::string& where) {
  if (!value.is_number_integer()) throw Error(str(where, " is not an integer"));
  if (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX})
    throw Error(str(where, " is too large"));
  return value.get<int64_t>();
}

const std::string& text_of(const json& value, const std::string& where) {
  if (!value.is_string()) throw Error(str(where, " is not a string"));
  return value.get_ref<const std::string&>();
}

const json& array(const json& value, const std::string& where) {
  if (!value.is_array()) throw Error(str(where, " is not an array"));
  return value;
}

const json& object_of(const json& value, size_t members, const std::string& where) {
  if (!value.is_object()) throw Error(str(where, " is not an object"));
  if (value.size() != members) throw Error(str(where, " has ", value.size(), " members, expected ", members));
  return value;
}

std::vector<int64_t> sizes(const json& value, const std::string& where) {
  if (array(value, where).empty() || value.size() > 2)
    throw Error(str(where, " has ", value.size(), " numbers, not 1 or 2"));
  std::vector<int64_t> out;
  for (const json& size : value) out.push_back(integer(size, where));
  return out;
}

uint32_t crc_of(const json& value, const std::string& where) {
  const std::string& text = text_of(value, where);
  if (text.size() != 8 || text.find_first_not_of("0123456789abcdef") != std::string::npos) {
    throw Error(str(where, " is not 8 hexadecimal digits"));
  }
  return static_cast<uint32_t>(std::stoul(text, nullptr, 16));
}

json slice_json(const StoredSlice& slice) {
  return {{"file", slice.file},     {"dataset", slice.dataset}, {"position", slice.position},
          {"offset", slice.offset}, {"shape", slice.shape},     {"crc32c", hex8(slice.crc)}};
}

StoredSlice parse_slice(const json& value, const std::string& where) {
  object_of(value, 6, where);
  const int64_t file = integer(member(value, "file", where), where + ".file");
  if (file < 0) throw Error(str(where, ".file is negative"));
  return {.file = static_cast<size_t>(file),
          .dataset = text_of(member(value, "dataset", where), where + ".dataset"),
          .position = integer(member(value, "position", where), where + ".position"),
          .offset = sizes(member(value, "offset", where), where + ".offset"),
          .shape = sizes(member(value, "shape", where), where + ".shape"),
          .crc = crc_of(member(value, "crc32c", where), where + ".crc32c")};
}

ManifestTensor parse_tensor(const json& value, const std::string& where) {
  object_of(value, 4, where);
  ManifestTensor tensor{.name = text_of(member(value, "name", where), where + ".name"),
                        .dtype = dtype_named(text_of(member(value, "dtype", where), where + ".dtype")),
                        .shape = sizes(member(value, "shape", where), where + ".shape"),
                        .slices = {}};
  const json& slices = array(member(value, "slices", where), where + ".slices");
  for (size_t i = 0; i < slices.size(); ++i) {
    tensor.slices.push_back(parse_slice(slices[i], str(where, ".slices[", i, "]")));
  }
  return tensor;
}

ManifestFile parse_file(const json& value, const std::string& where) {
  object_of(value, 3, where);
  return {.name = text_of(member(value, "name", where), where + ".name"),
          .bytes = integer(member(value, "bytes", where), where + ".bytes"),
          .sha256 = text_of(member(value, "sha256", where), where + ".sha256")};
}

// The text before the seal; throws Error if the seal does not match it.
std::string_view unseal(std::string_view text) {
  if (text.size() < kSealBytes) throw Error(str("the file is truncated: it has ", text.size(), " bytes"));
  const std::string_view body = text.substr(0, text.size() - kSealBytes), seal = text.substr(body.size());
  if (!seal.starts_with(kSealBegin) || !seal.ends_with(kSealEnd)) {
    throw Error("the file does not end with its SHA-256: it is truncated or damaged");
  }
  if (seal.substr(kSealBegin.size(), 64) != sha256_hex(body)) {
    throw Error("SHA-256 mismatch: the file's bytes do not match the hash at its end; it is damaged");
  }
  return body;
}

json parse_json(std::string_view text) {
  // Printing deeply nested JSON overflows the stack. No run writes more than a few levels.
  const auto depth_guard = [](int depth, json::parse_event_t, json&) {
    if (depth > kMaxDepth) throw Error(str("the JSON is nested deeper than ", kMaxDepth, " levels"));
    return true;
  };
  try {
    return json::parse(text, depth_guard);
  } catch (const json::exception& error) {
    throw Error(str("not valid JSON: ", error.what()));
  }
}

}  // namespace

std::string hex8(uint32_t value) {
  char text[9];
  std::snprintf(text, sizeof text, "%08x", value);
  return text;
}

void check_state(const json& state) {
  try {
    // The library writes NaN and infinity as null, so the comparison detects them.
    const json wrapped = {{"state", state}};  // the same nesting depth as in the manifest
    if (parse_json(wrapped.dump()) == wrapped) return;
  } catch (const json::exception& error) {
    throw Error(str("the state of the run cannot be written as JSON: ", error.what()));
  }
  throw Error("the state of the run cannot be written as JSON: it contains a number that is not finite");
}

std::string seal_manifest(const std::string& body) { return str(body, kSealBegin, sha256_hex(body), kSealEnd); }

std::string manifest_text(const Manifest& manifest) {
  json body = {{"format", kFormat}, {"version", kVersion}, {"step", manifest.step}, {"state", manifest.state}};
  json& files = body["files"] = json::array();
  for (const ManifestFile& file : manifest.files) {
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  }
  json& tensors = body["tensors"] = json::array();
  for (const ManifestTensor& tensor : manifest.tensors) {
    json slices = json::array();
    for (const StoredSlice& slice : tensor.slices) slices.push_back(slice_json(slice));
    tensors.push_back({{"name", tensor.name},
                       {"dtype", name_of(tensor.dtype)},
                       {"shape", tensor.shape},
                       {"slices", std::move(slices)}});
  }
  check_state(manifest.state);
  std::string text = body.dump(1);
  text.resize(text.size() - 2);  // "\n}"
  return seal_manifest(text);
}

Manifest parse_manifest(std::string_view text) {
  unseal(text);
  json body = parse_json(text);
  if (!body.is_object()) throw Error("the file is not a JSON object");
  if (text_of(member(body, "format", "the file"), "format") != kFormat) throw Error(str("the format is not ", kFormat));
  const int64_t version = integer(member(body, "version", "the file"), "version");
  if (version != kVersion) {
    throw UserError(str("the checkpoint has format version ", version, ", this program reads version ", kVersion,
                        "; use the program version that wrote it"));
  }
  object_of(body, 7, "the file");
  member(body, "state", "the file");
  Manifest manifest{.step = integer(member(body, "step", "the file"), "step"),
                    .state = std::move(body["state"]),
                    .files = {},
                    .tensors = {}};
  const json& files = array(member(body, "files", "the file"), "files");
  for (size_t i = 0; i < files.size(); ++i) manifest.files.push_back(parse_file(files[i], str("files[", i, "]")));
  const json& tensors = array(member(body, "tensors", "the file"), "tensors");
  for (size_t i = 0; i < tensors.size(); ++i) {
    manifest.tensors.push_back(parse_tensor(tensors[i], str("tensors[", i, "]")));
  }
  check_manifest(manifest);
  return manifest;
}

}  // namespace tmamba
