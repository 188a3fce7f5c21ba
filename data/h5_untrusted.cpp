// What may be in an HDF5 file from a stranger. HDF5 can point outside the file (external and soft links, external
// storage, virtual datasets), run code (filter plugins) and declare sizes that the file does not hold; none of it is
// needed here.
#include <algorithm>
#include <set>

#include "data/h5_internal.h"

namespace tmamba::h5_detail {

namespace {
constexpr int kMaxRank = 8;
constexpr int kMaxDepth = 16;
constexpr size_t kMaxObjects = 1'000'000;
constexpr int64_t kMaxChunkBytes = int64_t{256} << 20;
constexpr int64_t kMaxDeflateRatio = 1032;  // what deflate can reach

[[noreturn]] void refuse(const FileHandle& file, const std::string& what) {
  throw UserError(str(file.path.string(), ": ", what));
}

// "a/b/c" -> "a", "a/b", "a/b/c".
std::vector<std::string> steps_to(const std::string& name) {
  std::vector<std::string> steps;
  for (size_t at = 0; at <= name.size(); ++at) {
    if ((at == name.size() || name[at] == '/') && at > 0 && name[at - 1] != '/') steps.push_back(name.substr(0, at));
  }
  return steps;
}

const char* name_of_link(H5L_type_t type) {
  if (type == H5L_TYPE_SOFT) return "a soft link";
  if (type == H5L_TYPE_EXTERNAL) return "an external link";
  return "a link of an unknown kind";
}

// Throws where the link is not a hard one; false where there is none.
bool check_link(const FileHandle& file, const std::string& step) {
  const htri_t there = H5Lexists(file.open_id(), step.c_str(), H5P_DEFAULT);
  if (file.check(there, "cannot look up " + step) == 0) return false;
  H5L_info_t info;
  file.check(H5Lget_info(file.open_id(), step.c_str(), &info, H5P_DEFAULT), "cannot look up " + step);
  if (info.type != H5L_TYPE_HARD) {
    refuse(file, str("\"", step, "\" is ", name_of_link(info.type), "; only hard links are followed"));
  }
  return true;
}

H5O_type_t object_type(const FileHandle& file, hid_t id, const std::string& name) {
  H5O_info_t info;
  file.check(H5Oget_info2(id, &info, H5O_INFO_BASIC), "cannot look up " + name);
  return info.type;
}

H5Type element_type(const FileHandle& file, hid_t dataset, const std::string& name) {
  const Id type = file.own(H5Dget_type(dataset), H5Tclose, "cannot read the element type of " + name);
  for (H5Type known :
       {H5Type::u8, H5Type::u16, H5Type::u32, H5Type::u64, H5Type::i32, H5Type::i64, H5Type::f32, H5Type::f64}) {
    if (file.check(H5Tequal(type, file_type(known)), "cannot read the element type of " + name) > 0) return known;
  }
  refuse(file, str("dataset ", name,
                   " has an element type that is not allowed; allowed are little-endian integers and floats"));
}

// Checks layout and filters; fills chunk, fletcher32 and returns whether the data is compressed. It comes before
// anything that asks for the extent, because a virtual dataset opens its sources for that.
bool check_storage(const FileHandle& file, hid_t dataset, const std::string& name, H5Info& info) {
  const Id list = file.own(H5Dget_create_plist(dataset), H5Pclose, "cannot read the layout of " + name);
  const H5D_layout_t layout = H5Pget_layout(list);
  if (layout == H5D_VIRTUAL)
    refuse(file, str("dataset ", name, " is virtual (its data lies in other files), which is not allowed"));
  if (layout != H5D_CONTIGUOUS && layout != H5D_CHUNKED) {
    refuse(file, str("dataset ", name, " is stored neither contiguously nor in chunks, which is not allowed"));
  }
  if (file.check(H5Pget_external_count(list), "cannot read the layout of " + name) > 0) {
    refuse(file, str("dataset ", name, " keeps its data in an external file, which is not allowed"));
  }
  if (layout == H5D_CHUNKED) {
    hsize_t chunk[H5S_MAX_RANK];
    const int rank = file.check(H5Pget_chunk(list, H5S_MAX_RANK, chunk), "cannot read the chunks of " + name);
    info.chunk.assign(chunk, chunk + rank);
  }
  bool compressed = false;
  const int filters = file.check(H5Pget_nfilters(list), "cannot read the filters of " + name);
  for (int i = 0; i < filters; ++i) {
    size_t values = 0;
    unsigned flags = 0;
    const H5Z_filter_t filter =
        H5Pget_filter2(list, static_cast<unsigned>(i), &flags, &values, nullptr, 0, nullptr, nullptr);
    if (filter != H5Z_FILTER_SHUFFLE && filter != H5Z_FILTER_DEFLATE && filter != H5Z_FILTER_FLETCHER32) {
      refuse(file, str("dataset ", name, " uses filter ", filter, "; allowed are shuffle, deflate and fletcher32"));
    }
    compressed = compressed || filter == H5Z_FILTER_DEFLATE;
    info.fletcher32 = info.fletcher32 || filter == H5Z_FILTER_FLETCHER32;
  }
  return compressed;
}

// The product of the sizes and the element size; throws where it does not fit an int64.
int64_t declared_bytes(const FileHandle& file, const std::string& name, const std::vector<int64_t>& sizes,
                       H5Type type) {
  int64_t bytes = static_cast<int64_t>(size_of(type));
  for (int64_t size : sizes) {
    if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes))
      refuse(file, str("dataset ", name, " declares an impossible size"));
  }
  return bytes;
}

void check_contiguous(const FileHandle& file, hid_t dataset, const std::string& name, int64_t bytes) {
  const haddr_t start = H5Dget_offset(dataset);
  H5Eclear2(H5E_DEFAULT);
  const bool inside = start != HADDR_UNDEF && start <= static_cast<haddr_t>(file.bytes) &&
                      static_cast<haddr_t>(bytes) <= static_cast<haddr_t>(file.bytes) - start;
  if (!inside)
    refuse(file, str("dataset ", name, " declares ", bytes, " bytes, which the file of ", file.bytes,
                     " bytes does not hold"));
}

void check_chunks(const FileHandle& file, hid_t dataset, const std::string& name, const H5Info& info, int64_t bytes,
                  bool compressed) {
  if (info.chunk.size() != info.shape.size())
    refuse(file, str("dataset ", name, " has chunks of another rank than its own"));
  const int64_t chunk_bytes = declared_bytes(file, name, info.chunk, info.type);
  if (chunk_bytes <= 0 || chunk_bytes > kMaxChunkBytes) {
    refuse(file,
           str("dataset ", name, " has chunks of ", chunk_bytes, " bytes; at most ", kMaxChunkBytes, " are allowed"));
  }
  const int64_t ratio = compressed ? kMaxDeflateRatio : 1;
  if (bytes / ratio > file.bytes) {
    refuse(file, str("dataset ", name, " declares ", bytes, " bytes, which the file of ", file.bytes,
                     " bytes does not hold"));
  }
  int64_t chunks = 1;
  for (size_t i = 0; i < info.shape.size(); ++i) chunks *= ceil_div(info.shape[i], info.chunk[i]);
  const Id space = file.own(H5Dget_space(dataset), H5Sclose, "cannot read the size of " + name);
  hsize_t stored_chunks = 0;
  file.check(H5Dget_num_chunks(dataset, space, &stored_chunks), "cannot count the chunks of " + name);
  if (static_cast<int64_t>(stored_chunks) != chunks) {
    refuse(file, str("dataset ", name, " lacks ", chunks - static_cast<int64_t>(stored_chunks), " of its ", chunks,
                     " chunks"));
  }
  const int64_t per_chunk = chunk_bytes / ratio;
  if (info.stored_bytes > file.bytes || info.stored_bytes / chunks < per_chunk) {
    refuse(file, str("dataset ", name, " declares ", bytes, " bytes, but ", info.stored_bytes, " are stored"));
  }
}

void list_group(const FileHandle& file, const std::string& group, int depth, std::set<haddr_t>& seen, size_t& objects,
                std::vector<std::string>& out) {
  if (depth > kMaxDepth) refuse(file, str("groups are nested more than ", kMaxDepth, " deep"));
  const Id id = open_object(file, group.empty() ? "/" : group, H5O_TYPE_GROUP);
  H5O_info_t info;
  file.check(H5Oget_info2(id, &info, H5O_INFO_BASIC), "cannot look up " + group);
  if (!seen.insert(info.addr).second)
    refuse(file, str("group \"", group, "\" is reachable in two ways; is it a loop?"));
  std::vector<std::string> names;
  const auto add = [](hid_t, const char* name, const H5L_info_t*, void* names_out) -> herr_t {
    auto& list = *static_cast<std::vector<std::string>*>(names_out);
    if (list.size() > kMaxObjects) return -1;
    list.emplace_back(name);
    return 0;
  };
  file.check(H5Literate(id, H5_INDEX_NAME, H5_ITER_INC, nullptr, add, &names), "cannot list \"" + group + "\"");
  for (const std::string& name : names) {
    if (++objects > kMaxObjects) refuse(file, str("holds more than ", kMaxObjects, " objects"));
    const std::string full = group.empty() ? name : group + "/" + name;
    const Id object = open_object(file, full, H5O_TYPE_UNKNOWN);
    if (object_type(file, object, full) == H5O_TYPE_DATASET) {
      out.push_back(full);
    } else {
      list_group(file, full, depth + 1, seen, objects, out);
    }
  }
}
}  // namespace

bool object_exists(const FileHandle& file, const std::string& name) {
  const auto steps = steps_to(name);
  for (size_t i = 0; i < steps.size(); ++i) {
    if (!check_link(file, steps[i])) return false;
    if (i + 1 == steps.size()) break;
    const Id id = file.own(H5Oopen(file.open_id(), steps[i].c_str(), H5P_DEFAULT), H5Oclose, "cannot open " + steps[i]);
    if (object_type(file, id, steps[i]) != H5O_TYPE_GROUP) return false;
  }
  return true;
}

Id open_object(const FileHandle& file, const std::string& name, H5O_type_t wanted) {
  if (!object_exists(file, name)) refuse(file, str("has no ", wanted == H5O_TYPE_GROUP ? "group " : "dataset ", name));
  Id id = file.own(H5Oopen(file.open_id(), name.c_str(), H5P_DEFAULT), H5Oclose, "cannot open " + name);
  const H5O_type_t type = object_type(file, id, name);
  const bool fits = wanted == H5O_TYPE_UNKNOWN ? type == H5O_TYPE_DATASET || type == H5O_TYPE_GROUP : type == wanted;
  if (!fits) refuse(file, str("\"", name, "\" is not a ", wanted == H5O_TYPE_GROUP ? "group" : "dataset"));
  return id;
}

H5Info describe_dataset(const FileHandle& file, hid_t dataset, const std::string& name) {
  H5Info info;
  const bool compressed = check_storage(file, dataset, name, info);
  info.type = element_type(file, dataset, name);
  const Id space = file.own(H5Dget_space(dataset), H5Sclose, "cannot read the size of " + name);
  hsize_t shape[H5S_MAX_RANK];
  const H5S_class_t kind = H5Sget_simple_extent_type(space);
  const int rank = kind == H5S_NULL ? -1 : H5Sget_simple_extent_dims(space, shape, nullptr);
  if (rank < 0 || rank > kMaxRank)
    refuse(file, str("dataset ", name, " has no size, or more than ", kMaxRank, " dimensions"));
  for (int i = 0; i < rank; ++i) info.shape.push_back(static_cast<int64_t>(shape[i]));
  const int64_t bytes = declared_bytes(file, name, info.shape, info.type);
  info.stored_bytes = static_cast<int64_t>(H5Dget_storage_size(dataset));
  if (!file.reading || bytes == 0) return info;
  if (info.chunk.empty()) {
    check_contiguous(file, dataset, name, bytes);
  } else {
    check_chunks(file, dataset, name, info, bytes, compressed);
  }
  return info;
}

std::vector<std::string> list_datasets(const FileHandle& file) {
  std::vector<std::string> out;
  std::set<haddr_t> seen;
  size_t objects = 0;
  list_group(file, "", 0, seen, objects, out);
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace tmamba::h5_detail
