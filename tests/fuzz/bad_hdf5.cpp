#include <hdf5.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "data/checkpoint/checkpoint.h"
#include "data/checkpoint/tensor_source.h"
#include "data/tokens/token_file.h"
#include "tests/fuzz/bad_files.h"

namespace tmamba::fuzz {

namespace {

namespace fs = std::filesystem;

// Library calls that create a bad file must succeed: an undamaged file would be accepted.
template <class Result>
Result made(Result result) {
  if (result < 0) throw std::runtime_error("the HDF5 library refused to make a bad file");
  return result;
}

hid_t space_of(hsize_t size) { return made(H5Screate_simple(1, &size, nullptr)); }

// Replaces the dataset `name`.
void replace(hid_t file, const char* name, hid_t type, hsize_t size, const std::function<void(hid_t)>& properties) {
  if (H5Lexists(file, name, H5P_DEFAULT) > 0) made(H5Ldelete(file, name, H5P_DEFAULT));
  const hid_t list = made(H5Pcreate(H5P_DATASET_CREATE)), space = space_of(size);
  properties(list);
  H5Dclose(made(H5Dcreate2(file, name, type, space, H5P_DEFAULT, list, H5P_DEFAULT)));
  H5Sclose(space);
  H5Pclose(list);
}

void chunked(hid_t list, hsize_t chunk) { made(H5Pset_chunk(list, 1, &chunk)); }

struct Spoiling {
  const char* name;
  std::function<void(hid_t file, const char* dataset)> spoil;
};

// Ways to damage a dataset of any file; it holds 1000 numbers of 2 bytes.
std::vector<Spoiling> spoilings() {
  constexpr hsize_t kHuge = hsize_t{1} << 42;
  const auto plain = [](hid_t) {};
  return {
      {"external-storage",
       [](hid_t f, const char* d) {
         replace(f, d, H5T_STD_U16LE, 1000, [](hid_t p) { made(H5Pset_external(p, "/etc/passwd", 0, 2000)); });
       }},
      {"soft-link",
       [](hid_t f, const char* d) {
         made(H5Lmove(f, d, f, "moved", H5P_DEFAULT, H5P_DEFAULT));
         made(H5Lcreate_soft("/moved", f, d, H5P_DEFAULT, H5P_DEFAULT));
       }},
      {"external-link",
       [](hid_t f, const char* d) {
         made(H5Ldelete(f, d, H5P_DEFAULT));
         made(H5Lcreate_external("other.h5", "/secret", f, d, H5P_DEFAULT, H5P_DEFAULT));
       }},
      {"virtual-dataset",
       [](hid_t f, const char* d) {
         replace(f, d, H5T_STD_U16LE, 1000, [](hid_t p) {
           const hid_t space = space_of(1000);
           made(H5Pset_virtual(p, space, "other.h5", "secret", space));
           H5Sclose(space);
         });
       }},
      {"size-never-written", [=](hid_t f, const char* d) { replace(f, d, H5T_STD_U16LE, kHuge, plain); }},
      {"size-in-chunks-never-written",
       [](hid_t f, const char* d) { replace(f, d, H5T_STD_U16LE, kHuge, [](hid_t p) { chunked(p, 1000); }); }},
      {"size-compressed-away",
       [](hid_t f, const char* d) {
         replace(f, d, H5T_STD_U16LE, kHuge, [](hid_t p) {
           chunked(p, 1 << 20);
           made(H5Pset_deflate(p, 9));
         });
       }},
      {"chunk-of-two-gigabytes",
       [](hid_t f, const char* d) {
         replace(f, d, H5T_STD_U16LE, hsize_t{1} << 30, [](hid_t p) { chunked(p, hsize_t{1} << 30); });
       }},
      {"filter-of-a-plugin",
       [](hid_t f, const char* d) {
         replace(f, d, H5T_STD_U16LE, 1000, [](hid_t p) {
           chunked(p, 100);
           const unsigned value = 1;
           made(H5Pset_filter(p, 32001, H5Z_FLAG_OPTIONAL, 1, &value));
         });
       }},
      {"filter-that-is-not-needed",
       [](hid_t f, const char* d) {
         replace(f, d, H5T_STD_U16LE, 1000, [](hid_t p) {
           chunked(p, 100);
           made(H5Pset_scaleoffset(p, H5Z_SO_INT, 4));
         });
       }},
      {"stored-in-the-header",
       [](hid_t f, const char* d) {
         replace(f, d, H5T_STD_U16LE, 1000, [](hid_t p) { made(H5Pset_layout(p, H5D_COMPACT)); });
       }},
      {"type-big-endian", [=](hid_t f, const char* d) { replace(f, d, H5T_STD_U16BE, 1000, plain); }},
      {"type-text", [=](hid_t f, const char* d) { replace(f, d, H5T_C_S1, 1000, plain); }},
      {"type-reference", [=](hid_t f, const char* d) { replace(f, d, H5T_STD_REF_OBJ, 1000, plain); }},
      {"type-of-variable-length",
       [=](hid_t f, const char* d) {
         const hid_t type = made(H5Tvlen_create(H5T_STD_U16LE));
         replace(f, d, type, 1000, plain);
         H5Tclose(type);
       }},
      {"type-compound",
       [=](hid_t f, const char* d) {
         const hid_t type = made(H5Tcreate(H5T_COMPOUND, 2));
         made(H5Tinsert(type, "a", 0, H5T_STD_U16LE));
         replace(f, d, type, 1000, plain);
         H5Tclose(type);
       }},
      {"type-with-a-name-of-its-own",
       [=](hid_t f, const char* d) {
         const hid_t type = made(H5Tcopy(H5T_STD_U16LE));
         made(H5Tcommit2(f, "type", type, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
         replace(f, d, type, 1000, plain);
         H5Tclose(type);
       }},
  };
}

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

// Copies of `whole`: one for each way to damage `dataset`, and some with damaged bytes.
void write_all(const fs::path& whole, const fs::path& folder, const char* dataset,
               const std::vector<Spoiling>& spoilings) {
  fs::create_directories(folder);
  for (const Spoiling& spoiling : spoilings) {
    const fs::path path = folder / (std::string(spoiling.name) + ".h5");
    fs::copy_file(whole, path);
    const hid_t file = made(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT));
    spoiling.spoil(file, dataset);
    made(H5Fclose(file));
  }
  const std::string bytes = read_file(whole);
  const auto put = [&](const char* name, const std::string& content) {
    std::ofstream(folder / name, std::ios::binary) << content;
  };
  put("empty.h5", "");
  put("signature-alone.h5", bytes.substr(0, 8));
  put("cut-in-half.h5", bytes.substr(0, bytes.size() / 2));
  put("cut-by-one-byte.h5", bytes.substr(0, bytes.size() - 1));
  put("text.h5", "this is a text\n");
  put("superblock-of-another-version.h5", std::string(bytes).replace(8, 1, "\x07"));
  put("zeros-behind-the-superblock.h5", bytes.substr(0, 96) + std::string(bytes.size() - 96, '\0'));
  fs::create_directories(folder / "folder.h5");
}

fs::path whole_token_file(const fs::path& folder) {
  TokenFileInfo info;
  info.vocab_size = 300, info.document_end = 299;
  info.tokenizer_kind = info.tokenizer_hash = "test", info.tokenizer_file = "bytes", info.split = "train";
  TokenFileWriter writer(folder / "whole-tokens.h5", info, std::vector<uint16_t>(300, 1));
  writer.append(std::vector<int32_t>(999, 7));
  writer.end_document();
  writer.close(1000, "feed");
  return folder / "whole-tokens.h5";
}

void set_integer(hid_t file, const char* name, int64_t value) {
  const hid_t attribute = made(H5Aopen(file, name, H5P_DEFAULT));
  made(H5Awrite(attribute, H5T_NATIVE_INT64, &value));
  H5Aclose(attribute);
}

std::vector<Spoiling> token_file_spoilings() {
  auto all = spoilings();
  const auto attribute = [&](const char* what, const char* name, int64_t value) {
    all.push_back({what, [=](hid_t file, const char*) { set_integer(file, name, value); }});
  };
  attribute("version-two", "version", 2);
  attribute("vocabulary-of-none", "vocab_size", 0);
  attribute("vocabulary-of-a-trillion", "vocab_size", int64_t{1} << 40);
  attribute("document-end-out-of-the-vocabulary", "document_end", 300);
  attribute("source-of-negative-bytes", "source_bytes", -1);
  all.push_back({"group-for-a-dataset", [](hid_t file, const char* d) {
                   made(H5Ldelete(file, d, H5P_DEFAULT));
                   H5Gclose(made(H5Gcreate2(file, d, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)));
                 }});
  all.push_back({"no-format", [](hid_t file, const char*) { made(H5Adelete(file, "format")); }});
  all.push_back({"no-tokens", [](hid_t file, const char* d) { made(H5Ldelete(file, d, H5P_DEFAULT)); }});
  all.push_back({"token-out-of-the-vocabulary", [](hid_t file, const char* d) {
                   const hid_t id = made(H5Dopen2(file, d, H5P_DEFAULT));
                   const std::vector<uint16_t> tokens(1000, 300);
                   made(H5Dwrite(id, H5T_NATIVE_UINT16, H5S_ALL, H5S_ALL, H5P_DEFAULT, tokens.data()));
                   H5Dclose(id);
                 }});
  return all;
}

fs::path whole_export(const fs::path& folder) {
  const fs::path path = folder / "whole-export.h5";
  std::vector<uint16_t> numbers(1000, 7);
  TensorSource source{.path = path,
                      .step = 7,
                      .state = {{"step", 7}},
                      .tensors = {{"model/w", DType::u16, {1000}}},
                      .read = [&](const std::string&, int64_t row, const Tensor& out) {
                        std::copy_n(numbers.data() + row, out.numel(), out.data<uint16_t>());
                      }};
  export_tensors(source, path);
  return path;
}

std::vector<Spoiling> export_spoilings() {
  auto all = spoilings();
  all.push_back({"tensor-of-no-elements",
                 [](hid_t file, const char*) { replace(file, "model/none", H5T_STD_U16LE, 0, [](hid_t) {}); }});
  all.push_back({"tensor-without-sizes", [](hid_t file, const char*) {
                   const hid_t scalar = made(H5Screate(H5S_SCALAR));
                   const float one = 1;
                   const hid_t id = made(
                       H5Dcreate2(file, "model/scalar", H5T_IEEE_F32LE, scalar, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
                   made(H5Dwrite(id, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, &one));
                   H5Dclose(id);
                   H5Sclose(scalar);
                 }});
  all.push_back({"no-step", [](hid_t file, const char*) { made(H5Adelete(file, "step")); }});
  all.push_back({"no-state", [](hid_t file, const char*) { made(H5Ldelete(file, "state_json", H5P_DEFAULT)); }});
  all.push_back({"state-of-a-terabyte", [](hid_t file, const char*) {
                   replace(file, "state_json", H5T_STD_U8LE, hsize_t{1} << 40, [](hid_t) {});
                 }});
  all.push_back({"soft-link-in-the-middle-of-a-path", [](hid_t file, const char*) {
                   made(H5Lmove(file, "model", file, "real", H5P_DEFAULT, H5P_DEFAULT));
                   made(H5Lcreate_soft("/real", file, "model", H5P_DEFAULT, H5P_DEFAULT));
                 }});
  all.push_back({"external-link-in-the-middle-of-a-path", [](hid_t file, const char*) {
                   made(H5Ldelete(file, "model", H5P_DEFAULT));
                   made(H5Lcreate_external("other.h5", "/model", file, "model", H5P_DEFAULT, H5P_DEFAULT));
                 }});
  all.push_back({"loop-of-groups", [](hid_t file, const char*) {
                   made(H5Lcreate_hard(file, "/", file, "model/up", H5P_DEFAULT, H5P_DEFAULT));
                 }});
  all.push_back({"groups-nested-thirty-deep", [](hid_t file, const char*) {
                   std::string path = "model";
                   for (int i = 0; i < 30; ++i) {
                     path += "/x";
                     H5Gclose(made(H5Gcreate2(file, path.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)));
                   }
                 }});
  return all;
}

}  // namespace

void write_bad_hdf5(const fs::path& folder) {
  write_all(whole_token_file(folder), folder / "token_file", "tokens", token_file_spoilings());
  write_all(whole_export(folder), folder / "hdf5_export", "model/w", export_spoilings());
}

}  // namespace tmamba::fuzz
