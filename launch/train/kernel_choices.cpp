#include "launch/train/kernel_choices.h"

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "data/io/fs.h"
#include "dist/comm/collective_guard.h"
#include "launch/state/run_state.h"

namespace tmamba {

namespace {

constexpr int64_t kMostBytes = int64_t{16} << 20;

// Empty where the environment names neither a cache nor a home directory.
std::filesystem::path cache_file(const std::string& choices) {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  std::filesystem::path folder;
  if (cache != nullptr && *cache != '\0') {
    folder = cache;
  } else if (home != nullptr && *home != '\0') {
    folder = std::filesystem::path(home) / ".cache";
  } else {
    return {};
  }
  std::string kind = choices.substr(0, choices.find('\n'));  // the library and the GPU
  for (char& c : kind) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '-';
  }
  return folder / "transmamba" / (kind + ".txt");
}

void save(const std::filesystem::path& file, const std::string& choices) {
  try {
    make_folders(file.parent_path());
    replace_text_durably(file, choices, random_nonce());
  } catch (const Error& error) {
    std::fprintf(stderr, "kernel choices are not saved: %s\n", error.what());
  }
}

}  // namespace

void settle_kernel_choices(Ops& ops, Communicator& world, const std::filesystem::path& run_directory,
                           const std::function<void()>& warm_up) {
  const std::string none = ops.choices();
  if (none.empty()) return;
  const std::filesystem::path of_run = run_directory / "kernel_choices.txt", of_user = cache_file(none);
  // Later files override earlier ones.
  for (const std::filesystem::path& file : {of_user, of_run}) {
    const bool exists = world.rank() == 0 && !file.empty() && std::filesystem::exists(file);
    ops.use_choices(broadcast_text(world, exists ? read_text(file, kMostBytes) : ""));
  }
  ops.measure_choices(true);
  warm_up();
  ops.measure_choices(false);
  use_choices_of_all(ops, world);
  if (world.rank() != 0) return;
  for (const std::filesystem::path& file : {of_user, of_run}) {
    if (!file.empty()) save(file, ops.choices());
  }
}

void use_choices_of_all(Ops& ops, Communicator& world) {
  const std::string own = ops.choices();
  const auto ranks = static_cast<size_t>(world.size());
  std::vector<int64_t> sizes(ranks), ones(ranks, 1);
  const auto own_size = static_cast<int64_t>(own.size());
  world.all_gather(Tensor(sizes.data(), {world.size()}, DType::i64), ConstTensor(&own_size, {1}, DType::i64), ones)
      .wait();
  int64_t total = 0;
  for (int64_t size : sizes) total += size;
  std::string all(static_cast<size_t>(total), '\0');
  world.all_gather(Tensor(all.data(), {total}, DType::u8), ConstTensor(own.data(), {own_size}, DType::u8), sizes)
      .wait();
  // From the last rank to the first: later choices override earlier ones.
  for (size_t r = ranks; r-- > 0;) {
    total -= sizes[r];
    ops.use_choices(all.substr(static_cast<size_t>(total), static_cast<size_t>(sizes[r])));
  }
}

}  // namespace tmamba
