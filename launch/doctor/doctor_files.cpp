// Probes the run directory's file system for what checkpoints, resuming and the lock against a second job need.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <system_error>
#include <thread>

#include "data/io/fs.h"
#include "dist/comm/collective_guard.h"
#include "kernels/base/clock.h"
#include "launch/cli/format.h"
#include "launch/cli/statistics.h"
#include "launch/doctor/doctor.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

double fsync_ms(const fs::path& folder) {
  std::vector<double> times;
  const std::string text(4096, 'x');
  for (int i = 0; i < 9; ++i) {
    const fs::path file = folder / str("fsync-", i);
    const auto begin = Clock::now();
    write_text_durably(file, text);
    sync_folder(folder);
    times.push_back(ms_since(begin));
  }
  return median_of(times);
}

double write_mb_per_s(const fs::path& file) {
  constexpr int64_t kBytes = int64_t{64} << 20, kBlock = int64_t{4} << 20;
  const std::string block(kBlock, 'y');
  const auto begin = Clock::now();
  File out = File::create(file);
  for (int64_t at = 0; at < kBytes; at += kBlock) out.write(at, block.data(), block.size());
  out.sync();
  out.close();
  return static_cast<double>(kBytes) / 1e3 / ms_since(begin);
}

// Replaces a file that a reader holds open: the name must give the new text at once, the reader the old one.
double rename_ms(const fs::path& file, std::vector<Finding>& findings) {
  write_text_durably(file, "old");
  const File held = File::open_read(file);
  const auto begin = Clock::now();
  replace_text_durably(file, "new", random_nonce());
  const double ms = ms_since(begin);
  char old[3] = {};
  held.read(0, old, sizeof old);
  if (read_text(file, 16) != "new")
    findings.push_back(
        {true,
         str(file.string(),
             ": after a rename over the file it still has its old content; do not use this file system for run.dir")});
  if (std::string(old, 3) != "old") {
    findings.push_back(
        {true,
         str(file.string(),
             ": a rename over the file changed its content for a reader; do not use this file system for run.dir")});
  }
  return ms;
}

std::string type_of(const fs::path& folder) {
  // The mount with the longest path that contains the directory; fields: id parent device root MOUNT options.. - TYPE
  // source.
  std::ifstream in("/proc/self/mountinfo");
  const std::string path = fs::canonical(folder).string() + "/";
  std::string best_mount, type = "unknown";
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string word, mount;
    for (int i = 0; i < 5; ++i) words >> mount;
    while (words >> word && word != "-") {
    }
    words >> word;
    const std::string prefix = mount == "/" ? mount : mount + "/";
    if (path.starts_with(prefix) && prefix.size() >= best_mount.size()) best_mount = prefix, type = word;
  }
  return type;
}

void add_space(json& result, const fs::path& folder, std::vector<Finding>& findings) {
  struct statvfs info {};
  if (::statvfs(folder.c_str(), &info) != 0) throw FileError("query the file system of", folder, errno);
  const auto free = static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
  result["free_bytes"] = free;
  // File systems without an inode table report 0 of 0.
  result["free_inodes"] = info.f_files == 0 ? json() : json(info.f_favail);
  if (free < int64_t{1} << 30)
    findings.push_back(
        {false, str(folder.string(), ": only ", bytes_text(free), " are free; checkpoints may not fit")});
  if (info.f_files > 0 && info.f_favail < 1000) {
    findings.push_back({true, str(folder.string(), ": only ", info.f_favail,
                                  " inodes are free; delete files or use another file system")});
  }
}

// An open file that can take an advisory lock; the destructor releases it.
class Lock {
 public:
  explicit Lock(const fs::path& file) : fd_(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
    if (fd_ < 0) throw FileError("open", file, errno);
  }
  ~Lock() { ::close(fd_); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  // Returns 0, or the errno of the failure.
  int take() const { return ::flock(fd_, LOCK_EX | LOCK_NB) == 0 ? 0 : errno; }

 private:
  int fd_;
};

// The rank that tries to take rank 0's lock: the first on another host, else the last.
int other_rank(const World& world) {
  for (int rank = 1; rank < world.size(); ++rank) {
    if (world.hosts()[static_cast<size_t>(rank)] != world.hosts()[0]) return rank;
  }
  return world.size() - 1;
}

// Checks that another rank cannot take the lock that rank 0 holds, and can after its release: "work", or the problem.
std::string locks(World& world, const fs::path& file) {
  const int other = other_rank(world);
  const auto broadcast = [&](int value) {
    auto number = static_cast<int32_t>(value);
    world.comm().broadcast(Tensor(&number, {1}, DType::i32), other).wait();
    return static_cast<int>(number);
  };
  auto held = world.rank() == 0 ? std::make_unique<Lock>(file) : nullptr;
  int got = held ? held->take() : 0;
  world.comm().broadcast(Tensor(&got, {1}, DType::i32), 0).wait();
  if (got != 0) return str("cannot lock: ", std::generic_category().message(got));
  const int refused = broadcast(world.rank() == other ? Lock(file).take() : 0);
  held.reset();
  world.comm().barrier();
  const int given = broadcast(world.rank() == other ? Lock(file).take() : 0);
  if (refused == 0) {
    return world.hosts()[static_cast<size_t>(other)] == world.hosts()[0] ? "do not exclude another process"
                                                                         : "do not exclude another host";
  }
  return given == 0 ? "work" : str("remain after their release: ", std::generic_category().message(given));
}

// Milliseconds until all ranks see a file that rank 0 renamed into place; negative if one does not within 10 s.
double visible_ms(World& world, const fs::path& file) {
  world.comm().barrier();
  if (world.rank() == 0) replace_text_durably(file, "here", random_nonce());
  const auto begin = Clock::now();
  std::error_code error;
  while (!fs::exists(file, error) && ms_since(begin) < 10000) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  double ms = fs::exists(file, error) ? ms_since(begin) : 1e9;
  world.comm().all_reduce(Tensor(&ms, {1}, DType::f64), ReduceOp::max).wait();
  return ms < 1e9 ? ms : -1;
}

// Removes what the probes made, also after an error: the directory `place`, and of those above it the ones that were
// not there before.
class Traces {
 public:
  explicit Traces(const fs::path& place) : place_(place) {
    for (fs::path above = place.parent_path(); !above.empty() && !fs::exists(above); above = above.parent_path()) {
      made_.push_back(above);
    }
  }
  ~Traces() {
    std::error_code ignored;
    fs::remove_all(place_, ignored);
    for (const fs::path& folder : made_) fs::remove(folder, ignored);
  }
  Traces(const Traces&) = delete;
  Traces& operator=(const Traces&) = delete;

 private:
  fs::path place_;
  std::vector<fs::path> made_;
};

}  // namespace

json probe_files(World& world, const fs::path& folder, std::vector<Finding>& findings) {
  CollectiveGuard guard(world.comm());
  const std::string name = guard.broadcast(world.rank() == 0 ? "doctor-" + random_nonce() : "");
  const fs::path place = folder / name;
  std::unique_ptr<Traces> traces;
  json result = {{"path", folder.string()}};
  guard.on_root([&] {
    traces = std::make_unique<Traces>(fs::absolute(place).lexically_normal());
    make_folders(place);
    result["type"] = type_of(place);
    add_space(result, place, findings);
    result["fsync_ms"] = fsync_ms(place);
    result["write_mb_per_s"] = write_mb_per_s(place / "large");
    result["rename_ms"] = rename_ms(place / "renamed", findings);
  });
  const double visible = visible_ms(world, place / "visible");
  result["visible_ms"] = visible < 0 ? json() : json(visible);
  if (visible < 0) {
    findings.push_back({true, str(folder.string(),
                                  ": some rank does not see within 10 s a file that rank 0 wrote; use a "
                                  "run directory on a file system that all hosts share")});
    result["locks"] = nullptr;
  } else {
    result["locks"] = locks(world, place / "lock");
    if (result["locks"] != "work") {
      findings.push_back({false, str(folder.string(), ": advisory locks ", result["locks"].get<std::string>())});
    }
  }
  world.comm().barrier();
  guard.on_root([&] {
    fs::remove_all(place);
    traces.reset();
  });
  return result;
}

}  // namespace tmamba
