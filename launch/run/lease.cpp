#include "launch/run/lease.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/io/fs.h"
#include "dist/comm/print_line.h"
#include "dist/world/world.h"
#include "kernels/base/check.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/cli/signals.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

constexpr double kTick = 0.05;       // seconds between two wake-ups of the thread
constexpr double kSuspended = 0.25;  // a thread that has not run for longer may have been suspended

// Includes the time in which the machine was suspended.
double now() {
  timespec time{};
  ::clock_gettime(CLOCK_BOOTTIME, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

std::string first_line(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

// Process ids mean the same process only on one boot of one machine, within one namespace.
std::string this_machine() {
  std::error_code ignored;
  return first_line("/proc/sys/kernel/random/boot_id") + " " + fs::read_symlink("/proc/self/ns/pid", ignored).string();
}

std::string host_name() {
  char name[256] = "unknown";
  ::gethostname(name, sizeof name - 1);
  return name;
}

struct ProcessState {
  char state = 'X';        // as in /proc/PID/stat
  std::string started_at;  // clock ticks after boot: tells processes that had the same id apart
  bool ended() const { return state == 'X' || state == 'Z'; }
};

ProcessState process_state(int64_t pid) {
  const std::string line = first_line(str("/proc/", pid, "/stat"));
  ProcessState process;
  const size_t name_end = line.rfind(") ");
  if (name_end == std::string::npos) return process;
  std::istringstream fields(line.substr(name_end + 2));
  fields >> process.state;
  for (int field = 4; field <= 22; ++field) fields >> process.started_at;
  return process;
}

fs::path lease_file(const fs::path& run, int64_t number) { return run / str("lease-", number, ".json"); }

// The highest number of a lease file in `run`; 0: there is none. Listings of network file systems may be old, so
// numbers after the listed ones are tried too.
int64_t highest_lease(const fs::path& run, int64_t at_least = 0) {
  int64_t highest = at_least;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(run, ignored)) {
    const std::string name = entry.path().filename().string();
    int64_t number = 0;
    if (!name.starts_with("lease-") || !name.ends_with(".json")) continue;
    const char *begin = name.data() + 6, *end = name.data() + name.size() - 5;
    if (std::from_chars(begin, end, number).ptr == end) highest = std::max(highest, number);
  }
  while (::access(lease_file(run, highest + 1).c_str(), F_OK) == 0) ++highest;
  return highest;
}

// A lease as read from its file. A file without text is being created.
struct Holder {
  std::string nonce, host, job, machine, started_at;
  int64_t pid = 0;
  bool ended = false;
  int64_t touched_ns = 0;  // time of the last heartbeat, by the file server's clock

  std::string name() const {
    if (pid == 0) return "another process";
    return str("process ", pid, " on ", host, job.empty() ? "" : str(" (job ", job, ")"));
  }
};

int64_t nanoseconds(const timespec& time) { return int64_t{1'000'000'000} * time.tv_sec + time.tv_nsec; }

// nullopt where the file is missing; throws FileError where it cannot be read. Opening it makes network file systems
// ask the server.
std::optional<Holder> read_holder(const fs::path& file) {
  const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 && (errno == ENOENT || errno == ESTALE)) return std::nullopt;
  if (fd < 0) throw FileError("read", file, errno);
  char text[4096];
  const ssize_t bytes = ::read(fd, text, sizeof text);
  struct stat status {};
  const int failed = bytes < 0 || ::fstat(fd, &status) != 0 ? errno : 0;
  ::close(fd);
  if (failed == ESTALE) return std::nullopt;
  if (failed != 0) throw FileError("read", file, failed);
  Holder holder{.touched_ns = nanoseconds(status.st_mtim)};
  const nlohmann::json json = nlohmann::json::parse(text, text + bytes, nullptr, false);
  const auto field = [&](const char* name) {
    const auto found = json.is_object() ? json.find(name) : json.end();
    return found != json.end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  holder.nonce = field("nonce"), holder.host = field("host"), holder.job = field("job");
  holder.machine = field("machine"), holder.started_at = field("process_started");
  holder.ended = field("state") == "ended";
  if (json.is_object() && json.contains("pid") && json["pid"].is_number_integer()) holder.pid = json["pid"];
  return holder;
}

// The clock of the file server: the modification time of a file of its own, touched now.
class ServerClock {
 public:
  explicit ServerClock(const fs::path& folder) : file_(folder / (".lease-clock-" + random_nonce())) {}
  ~ServerClock() {
    if (fd_ < 0) return;
    ::close(fd_);
    ::unlink(file_.c_str());
  }
  ServerClock(const ServerClock&) = delete;
  ServerClock& operator=(const ServerClock&) = delete;

  // Throws FileError where the folder cannot be written in.
  int64_t now_ns() {
    if (fd_ < 0) fd_ = ::open(file_.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
    struct stat status {};
    if (fd_ < 0 || ::futimens(fd_, nullptr) != 0 || ::fstat(fd_, &status) != 0) throw FileError("write", file_, errno);
    return nanoseconds(status.st_mtim);
  }

 private:
  fs::path file_;
  int fd_ = -1;
};

// Whether a process of this machine holds the lease, and its state; nullopt: it is on another machine, or not known.
std::optional<ProcessState> local_process(const Holder& holder) {
  if (holder.pid == 0 || holder.machine != this_machine()) return std::nullopt;
  ProcessState process = process_state(holder.pid);
  if (process.started_at != holder.started_at) process.state = 'X';  // another process has the number now
  return process;
}

void remove_before(const fs::path& run, int64_t number) {
  std::error_code ignored;
  while (--number > 0 && fs::remove(lease_file(run, number), ignored)) {
  }
}

double seconds_since_beat(const Holder& holder, ServerClock& clock) {
  return 1e-9 * static_cast<double>(clock.now_ns() - holder.touched_ns);
}

[[noreturn]] void refuse(const fs::path& run, const Holder& holder) {
  throw ExitError(str("run.dir = ", run.string(), " is in use: ", holder.name(),
                      " is alive and trains in it. Wait for it, stop it (touch ", (run / "STOP").string(),
                      "), give another run.dir, or take the directory over with --take-over: the other then ends with "
                      "exit code ",
                      static_cast<int>(kNoProgress)),
                  kNoProgress);
}

}  // namespace

std::string batch_job() {
  const char* job = std::getenv("SLURM_JOB_ID");
  return job != nullptr ? job : "";
}

bool is_current(const LeaseId& lease) {
  try {
    const auto holder = read_holder(lease_file(lease.run, lease.number));
    if (::access(lease_file(lease.run, lease.number + 1).c_str(), F_OK) == 0) return false;
    return holder ? holder->nonce == lease.nonce : highest_lease(lease.run) == 0;
  } catch (const FileError&) {  // nobody else can be seen to hold it
    return true;
  }
}

Lease::Lease(const fs::path& run, const LeaseOptions& options)
    : times_(options.times), id_{.run = run, .number = 0, .nonce = random_nonce()} {
  std::error_code error;
  fs::create_directories(run, error);
  if (error) throw UserError(str("run.dir: cannot create ", run.string(), ": ", error.message()));
  text_ = nlohmann::json({{"nonce", id_.nonce},
                          {"state", "held"},
                          {"host", host_name()},
                          {"pid", ::getpid()},
                          {"job", options.job},
                          {"machine", this_machine()},
                          {"process_started", process_state(::getpid()).started_at}})
              .dump();
  acquire(options);
  confirmed_ = now();
  // Signals go to the main thread, so that they interrupt its system calls.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { keep(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Lease::acquire(const LeaseOptions& options) {
  ServerClock clock(id_.run);
  Holder first;  // as seen first
  for (int64_t seen = 0;;) {
    seen = highest_lease(id_.run, seen);
    const auto holder = seen > 0 ? read_holder(lease_file(id_.run, seen)) : Holder{.ended = true};
    // Its file was removed since the listing, by an attempt that took over from it or with the whole directory.
    if (!holder) {
      seen = 0;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      continue;
    }
    const auto process = local_process(*holder);
    const bool same_job = !options.job.empty() && holder->job == options.job;
    if (holder->ended || same_job || options.take_over || (process && process->ended()) ||
        seconds_since_beat(*holder, clock) > times_.stale) {
      if (!create(++seen)) continue;  // another attempt was faster
      id_.number = seen;
      // Others may have taken over twice since the file that this was decided on was read.
      if (!is_current(id_)) continue;
      remove_before(id_.run, seen);
      return;
    }
    const bool running = process && process->state != 'T' && process->state != 't';
    const bool beats = first.nonce == holder->nonce && first.touched_ns != holder->touched_ns;
    if (running || (beats && !holder->nonce.empty())) refuse(id_.run, *holder);
    if (first.nonce != holder->nonce) {
      first = *holder;
      print_line(str("run.dir = ", id_.run.string(), ": ", holder->name(), " has not ended its attempt; waiting up to ",
                     fixed(times_.stale, 0), " s for its heartbeat"));
    }
    if (const int signal = pending_signal(); signal != 0) {
      throw ExitError(str(signal_name(signal), " while waiting for run.dir = ", id_.run.string(), ", which ",
                          holder->name(), " held; start the same command again"),
                      kSavedAndStopped);
    }
    std::this_thread::sleep_for(std::chrono::duration<double>(std::min(0.2, times_.beat / 10)));
  }
}

// Creates the file with its text in one step; returns false where another process has created it. File systems without
// hard links have an exclusive rename.
bool Lease::create(int64_t number) const {
  const fs::path file = lease_file(id_.run, number), written = file.string() + ".tmp-" + id_.nonce;
  write_text_durably(written, text_);
  bool exists = false;
  if (::link(written.c_str(), file.c_str()) == 0) {
    ::unlink(written.c_str());
  } else if (errno == EEXIST) {
    ::unlink(written.c_str());
    // A network file system may have executed the same request twice.
    const auto holder = read_holder(file);
    exists = !holder || holder->nonce != id_.nonce;
  } else {
    try {
      rename_new(written, file);
    } catch (const FileError& error) {
      ::unlink(written.c_str());
      if (error.code() != EEXIST) throw;
      exists = true;
    }
  }
  return !exists;
}

Lease::~Lease() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_requested_.notify_all();
  thread_.join();
  std::error_code ignored;
  if (!held_now() || !fs::exists(id_.run, ignored)) return;
  try {
    nlohmann::json ended = nlohmann::json::parse(text_);
    ended["state"] = "ended";
    replace_text_durably(lease_file(id_.run, id_.number), ended.dump(), id_.nonce);
  } catch (const std::exception& error) {  // the next attempt finds that this process is gone
    print_line(error.what());
  }
}

bool Lease::held() const {
  if (fenced_) return false;
  return now() - confirmed_ < kSuspended || held_now();
}

bool Lease::held_now() const {
  if (fenced_) return false;
  if (!is_current(id_)) {
    fenced_ = true;
    return false;
  }
  std::error_code ignored;
  const fs::path file = lease_file(id_.run, id_.number);
  if (fs::exists(file, ignored) || !fs::is_directory(id_.run, ignored)) return true;
  // Somebody removed the file, or the directory, which training has recreated.
  try {
    create(id_.number);
  } catch (const FileError&) {  // tried again at the next look
  }
  return true;
}

void Lease::keep() {
  double looked = now(), beaten = looked;
  std::unique_lock lock(mutex_);
  const auto tick = std::chrono::duration<double>(std::min(kTick, times_.look));
  while (!stop_requested_.wait_for(lock, tick, [this] { return stopping_; })) {
    lock.unlock();
    const double time = now();
    if (time - looked >= times_.look || time - confirmed_ >= kSuspended) {
      if (!held_now()) return;
      looked = time;
    }
    confirmed_ = time;
    if (time - beaten >= times_.beat) {
      ::utimensat(AT_FDCWD, lease_file(id_.run, id_.number).c_str(), nullptr, 0);
      beaten = time;
    }
    lock.lock();
  }
}

std::string Lease::problem() const {
  Holder other;
  try {
    other = read_holder(lease_file(id_.run, highest_lease(id_.run))).value_or(Holder{});
  } catch (const FileError&) {  // it stays unnamed
  }
  return str(id_.run.string(), ": another attempt of this run has taken over its run directory: ", other.name(),
             ". This one stops without writing. Make sure that only one job at a time trains in a run directory");
}

void Lease::require_held() const {
  if (!held_now()) throw Error(problem());
}

LeaseState lease_state(const fs::path& run) {
  try {
    const auto holder = read_holder(lease_file(run, highest_lease(run)));
    if (!holder) return LeaseState::none;
    if (holder->ended) return LeaseState::ended;
    if (const auto process = local_process(*holder)) return process->ended() ? LeaseState::gone : LeaseState::alive;
    ServerClock clock(run);
    return seconds_since_beat(*holder, clock) > LeaseTimes{}.stale ? LeaseState::gone : LeaseState::alive;
  } catch (const FileError&) {
    return LeaseState::unknown;
  }
}

}  // namespace tmamba
