// Attributes of HDF5 objects: scalars only.
#include <cstring>

#include "data/h5_internal.h"

namespace tmamba {

namespace {
using h5_detail::FileHandle;
using h5_detail::Guard;
using h5_detail::Id;

constexpr size_t kMaxString = size_t{64} << 10;  // what the old file format can hold
constexpr hssize_t kMaxList = 1 << 16;

std::string label(const std::string& object, const std::string& name) {
  return "attribute " + name + (object == "/" ? "" : " of " + object);
}

void write_attribute(const FileHandle& file, const std::string& object, const std::string& name, hid_t stored,
                     hid_t memory, const void* value) {
  const std::string what = "cannot write " + label(object, name);
  const Id target = h5_detail::open_object(file, object, H5O_TYPE_UNKNOWN);
  if (file.check(H5Aexists(target, name.c_str()), what) > 0) file.check(H5Adelete(target, name.c_str()), what);
  const Id space = file.own(H5Screate(H5S_SCALAR), H5Sclose, what);
  const Id attribute =
      file.own(H5Acreate2(target, name.c_str(), stored, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose, what);
  file.check(H5Awrite(attribute, memory, value), what);
}

// A scalar attribute, open, and its type; throws where it is missing or of another class.
struct OpenAttribute {
  Id object, id, type;
};

OpenAttribute open_attribute(const FileHandle& file, const std::string& object, const std::string& name,
                             H5T_class_t wanted, const char* kind, H5S_class_t extent = H5S_SCALAR) {
  const std::string what = "cannot read " + label(object, name);
  OpenAttribute out;
  out.object = h5_detail::open_object(file, object, H5O_TYPE_UNKNOWN);
  if (file.check(H5Aexists(out.object, name.c_str()), what) == 0) {
    throw UserError(str(file.path.string(), ": has no ", label(object, name)));
  }
  out.id = file.own(H5Aopen(out.object, name.c_str(), H5P_DEFAULT), H5Aclose, what);
  out.type = file.own(H5Aget_type(out.id), H5Tclose, what);
  const Id space = file.own(H5Aget_space(out.id), H5Sclose, what);
  const bool fits = H5Sget_simple_extent_type(space) == extent && H5Sget_simple_extent_npoints(space) <= kMaxList;
  const bool variable =
      wanted == H5T_STRING && H5Tget_class(out.type) == H5T_STRING && H5Tis_variable_str(out.type) != 0;
  if (!fits || variable || H5Tget_class(out.type) != wanted || H5Tget_size(out.type) > kMaxString) {
    throw UserError(str(file.path.string(), ": ", label(object, name), " is not ", kind));
  }
  return out;
}
}  // namespace

void H5File::set_attribute(const std::string& object, const std::string& name, const std::string& value) {
  const Guard guard;
  const std::string what = "cannot write " + label(object, name);
  TM_CHECK(value.size() < kMaxString - 1024, label(object, name), " is too long: ", value.size(), " bytes");
  const Id type = handle_->own(H5Tcopy(H5T_C_S1), H5Tclose, what);
  handle_->check(H5Tset_size(type, value.size() + 1), what);
  handle_->check(H5Tset_cset(type, H5T_CSET_UTF8), what);
  write_attribute(*handle_, object, name, type, type, value.c_str());
}

void H5File::set_attribute(const std::string& object, const std::string& name, int64_t value) {
  const Guard guard;
  write_attribute(*handle_, object, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void H5File::set_attribute(const std::string& object, const std::string& name, double value) {
  const Guard guard;
  write_attribute(*handle_, object, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

bool H5File::has_attribute(const std::string& object, const std::string& name) const {
  const Guard guard;
  const Id target = h5_detail::open_object(*handle_, object, H5O_TYPE_UNKNOWN);
  return handle_->check(H5Aexists(target, name.c_str()), "cannot read " + label(object, name)) > 0;
}

std::string H5File::string_attribute(const std::string& object, const std::string& name) const {
  const Guard guard;
  const auto attribute = open_attribute(*handle_, object, name, H5T_STRING, "a string of fixed length");
  std::string value(H5Tget_size(attribute.type) + 1, '\0');
  handle_->check(H5Aread(attribute.id, attribute.type, value.data()), "cannot read " + label(object, name));
  value.resize(std::strlen(value.c_str()));
  return value;
}

int64_t H5File::int_attribute(const std::string& object, const std::string& name) const {
  const Guard guard;
  const auto attribute = open_attribute(*handle_, object, name, H5T_INTEGER, "one integer");
  int64_t value = 0;
  handle_->check(H5Aread(attribute.id, H5T_NATIVE_INT64, &value), "cannot read " + label(object, name));
  return value;
}

std::vector<int64_t> H5File::int_list_attribute(const std::string& object, const std::string& name) const {
  const Guard guard;
  const auto attribute = open_attribute(*handle_, object, name, H5T_INTEGER, "a list of integers", H5S_SIMPLE);
  const Id space = handle_->own(H5Aget_space(attribute.id), H5Sclose, "cannot read " + label(object, name));
  std::vector<int64_t> values(static_cast<size_t>(H5Sget_simple_extent_npoints(space)));
  handle_->check(H5Aread(attribute.id, H5T_NATIVE_INT64, values.data()), "cannot read " + label(object, name));
  return values;
}

double H5File::double_attribute(const std::string& object, const std::string& name) const {
  const Guard guard;
  const auto attribute = open_attribute(*handle_, object, name, H5T_FLOAT, "one number");
  double value = 0;
  handle_->check(H5Aread(attribute.id, H5T_NATIVE_DOUBLE, &value), "cannot read " + label(object, name));
  return value;
}

std::vector<std::string> H5File::attributes(const std::string& object) const {
  const Guard guard;
  const Id target = h5_detail::open_object(*handle_, object, H5O_TYPE_UNKNOWN);
  std::vector<std::string> names;
  const auto add = [](hid_t, const char* name, const H5A_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->emplace_back(name);
    return 0;
  };
  handle_->check(H5Aiterate2(target, H5_INDEX_NAME, H5_ITER_INC, nullptr, add, &names),
                 "cannot list attributes of " + object);
  return names;
}

}  // namespace tmamba
