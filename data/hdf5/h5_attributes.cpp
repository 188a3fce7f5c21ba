// Writing attributes; scalars only.
#include "data/hdf5/h5_internal.h"

namespace tmamba {

namespace {
using h5_detail::attribute_label;
using h5_detail::FileHandle;
using h5_detail::Id;
using h5_detail::LibraryLock;

void write_attribute(const FileHandle& file, const std::string& object, const std::string& name, hid_t stored,
                     hid_t memory, const void* value) {
  const std::string what = "cannot write " + attribute_label(object, name);
  const Id target = file.own(H5Oopen(file.open_id(), object.c_str(), H5P_DEFAULT), H5Oclose, what);
  if (file.check(H5Aexists(target, name.c_str()), what) > 0) file.check(H5Adelete(target, name.c_str()), what);
  const Id space = file.own(H5Screate(H5S_SCALAR), H5Sclose, what);
  const Id attribute =
      file.own(H5Acreate2(target, name.c_str(), stored, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose, what);
  file.check(H5Awrite(attribute, memory, value), what);
}

}  // namespace

void H5File::set_attribute(const std::string& object, const std::string& name, const std::string& value) {
  const LibraryLock guard;
  const std::string what = "cannot write " + attribute_label(object, name);
  constexpr size_t kMaxString = h5_detail::kMaxAttributeBytes - 1024;  // leaves room for the message around it
  TM_CHECK(value.size() < kMaxString, attribute_label(object, name), " has ", value.size(), " bytes, at most ",
           kMaxString, " can be stored");
  const Id type = writer().own(H5Tcopy(H5T_C_S1), H5Tclose, what);
  writer().check(H5Tset_size(type, value.size() + 1), what);
  writer().check(H5Tset_cset(type, H5T_CSET_UTF8), what);
  write_attribute(writer(), object, name, type, type, value.c_str());
}

void H5File::set_attribute(const std::string& object, const std::string& name, int64_t value) {
  const LibraryLock guard;
  write_attribute(writer(), object, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void H5File::set_attribute(const std::string& object, const std::string& name, double value) {
  const LibraryLock guard;
  write_attribute(writer(), object, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

}  // namespace tmamba
