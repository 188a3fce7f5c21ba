#include "dist/comm/watchdog.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <future>
#include <sstream>

#include "dist/comm/print_line.h"
#include "kernels/base/rng.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

constexpr size_t kRecentOperations = 64;

std::optional<std::string> read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Writes a temporary file and renames it, so that readers see the old text or the new one, on network file systems too.
bool replace_file(const fs::path& path, const std::string& text) {
  const fs::path temporary = path.string() + ".new";
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  std::error_code error;
  fs::rename(temporary, path, error);
  return file.good() && !error;
}

}  // namespace

Watchdog::Watchdog(int rank, std::vector<std::string> hosts) : rank_(rank), hosts_(std::move(hosts)) {}

Watchdog::~Watchdog() { stop(); }

Watchdog::Handle Watchdog::watch(const std::string& name, std::vector<int> members, const Finished* finished) {
  std::string identity = name;
  for (int member : members) identity = str(identity, " ", member);
  const std::lock_guard lock(mutex_);
  const int before = same_members_[stream_id(identity)]++;
  auto record = std::make_shared<CommunicatorRecord>();
  record->key = stream_id(str(identity, " ", before)) | 1;  // 0 stands for none
  record->name = name;
  record->members = std::move(members);
  std::erase_if(communicators_, [](const Watched& other) { return other.record.expired(); });
  communicators_.push_back({record, finished});
  return record;
}

void Watchdog::started(const Handle& comm, const OperationRecord& operation) {
  const std::lock_guard lock(mutex_);
  if (comm->recent.size() == kRecentOperations) comm->recent.erase(comm->recent.begin());
  comm->recent.push_back(operation);
  comm->recent.back().order = ++started_;
  if (host_.key == 0) host_.seconds = 0;
}

void Watchdog::wait_begins(const Handle& comm, const OperationRecord& operation) {
  const std::lock_guard lock(mutex_);
  host_ = {.key = comm->key, .operation = operation, .seconds = 0};
}

void Watchdog::wait_ends() {
  const std::lock_guard lock(mutex_);
  host_ = {};
}

// Device operations of this rank may wait for each other; the oldest unfinished one waits for none of them.
void Watchdog::update_device_wait(double seconds) {
  Wait oldest;
  for (const Watched& watched : communicators_) {
    const auto record = watched.record.lock();
    if (!record || watched.finished == nullptr) continue;
    const int64_t finished = watched.finished->load(std::memory_order_relaxed);
    for (const OperationRecord& operation : record->recent) {
      if (operation.sequence <= finished) continue;
      if (oldest.key == 0 || operation.order < oldest.operation.order) {
        oldest = {.key = record->key, .operation = operation, .seconds = 0};
      }
      break;
    }
  }
  if (oldest.key == device_.key && oldest.operation.sequence == device_.operation.sequence) {
    device_.seconds += seconds;
  } else {
    device_ = oldest;
  }
}

void Watchdog::start(WatchdogOptions options) {
  TM_CHECK(!thread_.joinable() && options.timeout_seconds > 0, "the watchdog was started twice or without a timeout");
  options_ = std::move(options);
  interval_ = std::chrono::duration<double>(std::clamp(options_.timeout_seconds / 20, 0.02, 2.0));
  const Heartbeat first = current();
  if (!replace_file(file_of(rank_), to_text(first))) {
    throw UserError(str("the watchdog cannot write ", file_of(rank_).string(), " on ", first.host,
                        "; give a directory that every host can write to, or set run.hang_timeout = 0"));
  }
  stopping_ = false;
  thread_ = std::thread([this] { run(); });
}

void Watchdog::stop() noexcept {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_requested_.notify_all();
  thread_.join();
  std::error_code ignored;
  fs::remove(file_of(rank_), ignored);
}

Heartbeat Watchdog::current() {
  Heartbeat heartbeat;
  heartbeat.rank = rank_;
  heartbeat.host = hosts_[static_cast<size_t>(rank_)];
  const std::lock_guard lock(mutex_);
  heartbeat.beat = ++beat_;
  const Wait& wait = wait_now();
  heartbeat.waiting_key = wait.key;
  heartbeat.waiting_for = wait.operation;
  heartbeat.seconds = wait.seconds;
  for (const Watched& watched : communicators_) {
    if (const auto record = watched.record.lock()) heartbeat.communicators.push_back(*record);
  }
  return heartbeat;
}

void Watchdog::run() {
  const auto longest_tick = std::max(2 * interval_, std::chrono::duration<double>(1));
  auto last = Clock::now();
  std::unique_lock lock(mutex_);
  while (!stop_requested_.wait_for(lock, interval_, [this] { return stopping_; })) {
    // A suspended process, possibly together with all others, has not waited in that time, so a tick is limited.
    const auto now = Clock::now();
    const double tick = std::min(std::chrono::duration<double>(now - last), longest_tick).count();
    last = now;
    host_.seconds += tick;
    update_device_wait(tick);
    const bool timed_out = wait_now().key != 0 && wait_now().seconds > options_.timeout_seconds;
    lock.unlock();
    replace_file(file_of(rank_), to_text(current()));
    std::error_code ignored;
    if (fs::exists(report_file(), ignored)) {
      // The report must be printed before the launcher notices that a process has ended.
      std::this_thread::sleep_for(std::chrono::seconds(2));
      std::_Exit(1);
    }
    timeout_ticks_ = timed_out ? timeout_ticks_ + 1 : 0;
    if (timed_out) handle_timeout();
    lock.lock();
  }
}

void Watchdog::handle_timeout() {
  const int claim = ::open(investigator_file().c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
  if (claim >= 0) ::close(claim);
  constexpr int kTicksToReport = 20;
  if (claim < 0 && timeout_ticks_ < kTicksToReport) return;
  const auto report = investigate();
  if (report) end_job(*report);
  std::error_code ignored;
  fs::remove(investigator_file(), ignored);
}

// The file system may be what hangs, so on_hang runs on another thread.
void Watchdog::end_job(const HangReport& report) {
  print_line("hang: " + report.text + "ending the job");
  if (options_.on_hang) {
    const auto logged = std::make_shared<std::promise<void>>();
    std::thread([logged, report, log = options_.on_hang] {
      log(report);
      logged->set_value();
    }).detach();
    logged->get_future().wait_for(std::chrono::seconds(10));
  }
  replace_file(report_file(), report.text);
  std::this_thread::sleep_for(2 * interval_);
  std::_Exit(1);
}

std::optional<HangReport> Watchdog::investigate() {
  std::map<int, RankStatus> seen;
  auto look = [&](int rank) -> std::optional<Heartbeat> {
    const auto text = read_file(file_of(rank));
    return text ? heartbeat_from_text(*text) : std::nullopt;
  };
  for (int rank = 0; rank < static_cast<int>(hosts_.size()); ++rank) {
    seen[rank] = {.host = hosts_[static_cast<size_t>(rank)], .heartbeat = look(rank)};
  }
  const Heartbeat before = current();
  for (int beats = 0; beats < 4; ++beats) {
    std::this_thread::sleep_for(interval_);
    replace_file(file_of(rank_), to_text(current()));
  }
  for (auto& [rank, other] : seen) {
    const auto again = look(rank);
    other.alive = again && other.heartbeat && again->beat > other.heartbeat->beat;
    if (again) other.heartbeat = again;
  }
  Heartbeat now = current();
  if (now.waiting_key != before.waiting_key || now.waiting_for.sequence != before.waiting_for.sequence)
    return std::nullopt;
  now.seconds = std::max(now.seconds, options_.timeout_seconds);
  seen[rank_].heartbeat = now;
  return hang_report(now, [&](int rank) -> const RankStatus& { return seen[rank]; });
}

}  // namespace tmamba
