// The superblock, path lookup and listing. Object headers and groups are in h5_headers.cpp.
#include "data/hdf5/h5_objects.h"

#include <algorithm>

#include "data/hdf5/h5_headers.h"

namespace tmamba::h5_detail {

namespace {

constexpr int kMaxDepth = 16;
constexpr size_t kMaxObjects = 1'000'000;
constexpr std::string_view kSignature("\x89HDF\r\n\x1a\n", 8);

const char* name_of(LinkKind kind) {
  if (kind == LinkKind::soft) return "a soft link";
  if (kind == LinkKind::external) return "an external link";
  return "a link of an unknown kind";
}

void require_hard(const Source& source, const std::string& name, const Link& link) {
  if (link.kind == LinkKind::hard) return;
  source.refuse(str("\"", name, "\" is ", name_of(link.kind), "; only hard links are followed"));
}

// The address of the root group.
int64_t read_superblock(const Source& source) {
  constexpr int64_t kMaxBytes = 96;
  const auto bytes = source.read(0, std::min(kMaxBytes, source.bytes()), "the superblock");
  const bool ours = bytes.size() > kSignature.size() && std::equal(kSignature.begin(), kSignature.end(), bytes.begin(),
                                                                   [](char a, uint8_t b) { return uint8_t(a) == b; });
  if (!ours) source.refuse("is not an HDF5 file, or its first bytes are damaged");
  Cursor cursor(source, "the superblock", bytes);
  cursor.skip(kSignature.size());
  const int version = cursor.u8();
  const auto check_widths = [&] {
    const int offsets = cursor.u8(), lengths = cursor.u8();
    if (offsets != 8 || lengths != 8) {
      cursor.damaged(str("has offsets of ", offsets, " and lengths of ", lengths, " bytes, only 8 is supported"));
    }
  };
  const auto check_end = [&](int64_t end) {
    if (end > source.bytes()) {
      source.refuse(str("is truncated: it has ", source.bytes(), " of ", end, " bytes; restore or recreate it"));
    }
  };
  if (version == 0) {
    cursor.skip(4);
    check_widths();
    cursor.skip(1 + 2 + 2 + 4);
    if (cursor.number(8) != 0) cursor.damaged("has a base address other than 0, which is not supported");
    cursor.skip(8);
    check_end(cursor.size());
    if (cursor.number(8) != UINT64_MAX) cursor.damaged("has a driver information block, which is not supported");
    cursor.skip(8);
  } else if (version == 2 || version == 3) {
    check_widths();
    cursor.skip(1);
    if (cursor.number(8) != 0) cursor.damaged("has a base address other than 0, which is not supported");
    cursor.skip(8);
    const int64_t end = cursor.size();
    check_end(end);
  } else {
    cursor.damaged(str("has version ", version, ", only 0, 2 and 3 are supported"));
  }
  const int64_t root = cursor.address();
  if (root == kUndefined) cursor.damaged("has no root group");
  if (version != 0) cursor.expect_checksum();
  return root;
}

}  // namespace

bool FilterPipeline::has(int id) const { return std::find(ids.begin(), ids.end(), id) != ids.end(); }

ReadFile::ReadFile(const std::filesystem::path& path) : source_(path), root_(read_superblock(source_)) {
  if (!at(root_)->group) source_.refuse(str("has no root group", kDamagedAdvice));
}

std::shared_ptr<const Object> ReadFile::at(int64_t address) const {
  return std::make_shared<const Object>(read_object(source_, address));
}

std::shared_ptr<const Object> ReadFile::find(const std::string& name) const {
  std::shared_ptr<const Object> object = at(root_);
  for (size_t begin = 0; begin < name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    const std::string step = name.substr(begin, end - begin);
    if (!step.empty()) {
      if (!object->group) return nullptr;
      if (object->dense_links) {
        source_.refuse(str("the parent group of \"", name, "\" has dense link storage, which is not supported"));
      }
      const auto link = object->links.find(step);
      if (link == object->links.end()) return nullptr;
      require_hard(source_, name.substr(0, end), link->second);
      object = at(link->second.address);
    }
    begin = end + 1;
  }
  return object;
}

std::shared_ptr<const Object> ReadFile::object(const std::string& name, const char* kind) const {
  auto found = find(name);
  if (!found) source_.refuse(str("has no ", kind, " ", name));
  return found;
}

std::vector<std::string> ReadFile::datasets() const {
  std::vector<std::string> out;
  std::map<int64_t, int> seen{{root_, 0}};
  list(*at(root_), "", 0, seen, out);
  std::sort(out.begin(), out.end());
  return out;
}

void ReadFile::list(const Object& group, const std::string& name, int depth, std::map<int64_t, int>& seen,
                    std::vector<std::string>& out) const {
  if (depth > kMaxDepth) source_.refuse(str("group \"", name, "\" is nested more than ", kMaxDepth, " deep"));
  if (group.dense_links) {
    source_.refuse(str("group \"", name, "\" has dense link storage, which is not supported"));
  }
  for (const auto& [member, link] : group.links) {
    const std::string full = name.empty() ? member : name + "/" + member;
    require_hard(source_, full, link);
    const auto object = at(link.address);
    if (out.size() + seen.size() > kMaxObjects) source_.refuse(str("has more than ", kMaxObjects, " objects"));
    if (object->dataset) {
      out.push_back(full);
      continue;
    }
    if (!object->group) source_.refuse(str("\"", full, "\" is neither a group nor a dataset"));
    if (!seen.emplace(link.address, depth).second) {
      source_.refuse(str("group \"", full, "\" is reachable by two paths, which may be a loop"));
    }
    list(*object, full, depth + 1, seen, out);
  }
}

}  // namespace tmamba::h5_detail
