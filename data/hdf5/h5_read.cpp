// H5File and H5Dataset for files that were opened for reading.
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "data/hdf5/h5_datasets.h"
#include "data/hdf5/h5_internal.h"

namespace tmamba {

namespace {

using h5_detail::Attribute;
using h5_detail::DatasetReader;
using h5_detail::kDamagedAdvice;
using h5_detail::Object;
using h5_detail::ReadFile;
using h5_detail::TypeClass;

constexpr int64_t kMaxList = 1 << 16;

// Calls f() with a zero of the C++ type that `type` names.
template <class F>
void with_type(H5Type type, F&& f) {
  switch (type) {
    case H5Type::u8:
      return f(uint8_t{});
    case H5Type::u16:
      return f(uint16_t{});
    case H5Type::u32:
      return f(uint32_t{});
    case H5Type::u64:
      return f(uint64_t{});
    case H5Type::i32:
      return f(int32_t{});
    case H5Type::i64:
      return f(int64_t{});
    case H5Type::f32:
      return f(float{});
    case H5Type::f64:
      return f(double{});
  }
}

// Converts x to To, clamping to its range; NaN becomes 0 in an integer type.
template <class To, class From>
To nearest(From x) {
  if constexpr (std::is_floating_point_v<To>) {
    return static_cast<To>(x);
  } else if constexpr (std::is_floating_point_v<From>) {
    if (std::isnan(x)) return 0;
    if (x <= static_cast<From>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
    if (x >= static_cast<From>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
    return static_cast<To>(x);
  } else {
    if (std::cmp_less(x, std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
    if (std::cmp_greater(x, std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
    return static_cast<To>(x);
  }
}

void convert(const uint8_t* in, H5Type from, void* out, H5Type to, int64_t count) {
  with_type(from, [&](auto x) {
    with_type(to, [&](auto y) {
      auto* target = static_cast<uint8_t*>(out);
      for (int64_t i = 0; i < count; ++i, in += sizeof x, target += sizeof y) {
        std::memcpy(&x, in, sizeof x);
        y = nearest<decltype(y)>(x);
        std::memcpy(target, &y, sizeof y);
      }
    });
  });
}

// The attribute; throws UserError if it is missing or does not have this type class and rank. `kind` names those in the
// message.
const Attribute& attribute_of(const ReadFile& file, const Object& owner, const std::string& object,
                              const std::string& name, TypeClass wanted, size_t rank, const char* kind) {
  const auto found = owner.attributes.find(name);
  if (found == owner.attributes.end()) {
    if (owner.dense_attributes) {
      file.source().refuse(
          str(object,
              " has dense attribute storage, which is not supported; recreate the file, token files with "
              "`transmamba prepare`"));
    }
    file.source().refuse("has no " + h5_detail::attribute_label(object, name));
  }
  const Attribute& attribute = found->second;
  const bool fits =
      attribute.type.kind == wanted && !attribute.dataspace.null && attribute.dataspace.shape.size() == rank &&
      (rank == 0 || attribute.dataspace.shape[0] <= kMaxList) && attribute.type.bytes <= h5_detail::kMaxAttributeBytes;
  if (!fits) file.source().refuse(str(h5_detail::attribute_label(object, name), " is not ", kind));
  const int64_t elements = rank == 0 ? 1 : attribute.dataspace.shape[0];
  if (std::ssize(attribute.data) < elements * attribute.type.bytes) {
    file.source().refuse(str(h5_detail::attribute_label(object, name), " has ", attribute.data.size(), " of ",
                             elements * attribute.type.bytes, " bytes", kDamagedAdvice));
  }
  return attribute;
}

int64_t integer_at(const Attribute& attribute, int64_t index) {
  const int64_t bytes = attribute.type.bytes;
  const uint8_t* data = attribute.data.data() + index * bytes;
  uint64_t x = attribute.type.is_signed && (data[bytes - 1] & 0x80) != 0 ? ~uint64_t{0} : 0;
  for (int64_t i = bytes; i > 0; --i) x = x << 8 | data[i - 1];
  return attribute.type.is_signed ? static_cast<int64_t>(x) : nearest<int64_t>(x);
}

}  // namespace

const ReadFile& H5File::reader() const {
  TM_CHECK(reader_, path().string(), " is open for writing and cannot be read");
  return *reader_;
}

const std::filesystem::path& H5File::path() const { return reader_ ? reader_->source().path() : handle_->path; }

H5File H5File::open_read(const std::filesystem::path& path) {
  H5File file;
  file.reader_ = std::make_shared<const ReadFile>(path);
  return file;
}

bool H5File::has(const std::string& name) const { return reader().find(name) != nullptr; }

H5Dataset H5File::dataset(const std::string& name, int64_t cache_bytes) const {
  reader();
  return H5Dataset(std::make_shared<DatasetReader>(reader_, name, cache_bytes));
}

std::vector<std::string> H5File::datasets() const { return reader().datasets(); }

bool H5File::has_attribute(const std::string& object, const std::string& name) const {
  const auto owner = reader().object(object, "object");
  if (owner->attributes.contains(name)) return true;
  if (owner->dense_attributes) attribute_of(reader(), *owner, object, name, TypeClass::other, 0, "");
  return false;
}

std::string H5File::string_attribute(const std::string& object, const std::string& name) const {
  const auto owner = reader().object(object, "object");
  const Attribute& found =
      attribute_of(reader(), *owner, object, name, TypeClass::string, 0, "a string of fixed length");
  const std::string value(found.data.begin(), found.data.begin() + found.type.bytes);
  return value.substr(0, value.find('\0'));
}

int64_t H5File::int_attribute(const std::string& object, const std::string& name) const {
  const auto owner = reader().object(object, "object");
  return integer_at(attribute_of(reader(), *owner, object, name, TypeClass::fixed_point, 0, "one integer"), 0);
}

std::vector<int64_t> H5File::int_list_attribute(const std::string& object, const std::string& name) const {
  const auto owner = reader().object(object, "object");
  const Attribute& found =
      attribute_of(reader(), *owner, object, name, TypeClass::fixed_point, 1, "a list of integers");
  std::vector<int64_t> values;
  for (int64_t i = 0; i < found.dataspace.shape[0]; ++i) values.push_back(integer_at(found, i));
  return values;
}

double H5File::double_attribute(const std::string& object, const std::string& name) const {
  const auto owner = reader().object(object, "object");
  const Attribute& found = attribute_of(reader(), *owner, object, name, TypeClass::floating_point, 0, "one number");
  double value = 0;
  convert(found.data.data(), *found.type.known, &value, H5Type::f64, 1);
  return value;
}

std::vector<std::string> H5File::attributes(const std::string& object) const {
  std::vector<std::string> names;
  const auto owner = reader().object(object, "object");
  for (const auto& [name, attribute] : owner->attributes) names.push_back(name);
  return names;
}

// --- H5Dataset ---

const std::string& H5Dataset::name() const { return reader_ ? reader_->name() : handle_->name; }

H5Dataset::H5Dataset(std::shared_ptr<DatasetReader> reader) : reader_(std::move(reader)), info_(reader_->info()) {}

void H5Dataset::read(std::span<const int64_t> offset, std::span<const int64_t> count, H5Type memory, void* out) const {
  TM_CHECK(reader_, name(), " is open for writing and cannot be read");
  h5_detail::check_hyperslab(reader_->source().path().string() + ": " + name(), info_, offset, count);
  if (memory == info_.type) return reader_->read(offset, count, static_cast<uint8_t*>(out));
  int64_t elements = 1;
  for (int64_t n : count) elements *= n;
  std::vector<uint8_t> stored(static_cast<size_t>(elements) * size_of(info_.type));
  reader_->read(offset, count, stored.data());
  convert(stored.data(), info_.type, out, memory, elements);
}

void H5Dataset::read(std::span<const int64_t> offset, const Tensor& out) const {
  TM_CHECK(out.device() == Device::cpu, name(), " can be read into host memory only");
  const H5Type memory = h5_type(out.dtype());
  std::vector<int64_t> count;
  for (int i = 0; i < out.dims(); ++i) count.push_back(out.size(i));
  if (out.contiguous() || out.numel() == 0) return read(offset, count, memory, out.raw());
  TM_CHECK(out.dims() == 2 && out.stride(1) == 1 && out.stride(0) >= out.size(1), "a tensor ", out.shape(),
           " that is neither contiguous nor 2-D with contiguous rows cannot be read");
  TM_CHECK(offset.size() == 2, name(), ": ", offset.size(), " offsets for a 2-D tensor");
  count[0] = 1;
  for (int64_t row = 0; row < out.size(0); ++row) {
    read(std::array{offset[0] + row, offset[1]}, count, memory, out.slice(0, row, 1).raw());
  }
}

}  // namespace tmamba
