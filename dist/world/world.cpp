#include "dist/world/world.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <thread>

#include "dist/comm/mpi_check.h"
#include "dist/comm/mpi_communicator.h"
#include "dist/comm/print_line.h"
#include "dist/comm/self_communicator.h"
#include "dist/world/launcher.h"
#include "kernels/base/rng.h"

namespace tmamba {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// The name of this process in messages of threads that have no World. Written once, before threads start.
std::string& own_name() {
  static std::string name = "this process";
  return name;
}

// For exceptions that leave a thread or a noexcept function: prints the usual line and ends the job by an unclean exit.
[[noreturn]] void terminate_with_message() {
  std::string message = "ended by std::terminate";
  if (const std::exception_ptr current = std::current_exception()) {
    try {
      std::rethrow_exception(current);
    } catch (const std::exception& error) {
      message = str(error.what(), " (on a thread that could not report it)");
    } catch (...) {
      message = "an unknown exception on a thread that could not report it";
    }
  }
  print_line(own_name() + ": " + message);
  std::_Exit(1);
}

// Throws if the launcher started several tasks and each has its own MPI_COMM_WORLD: each would train the complete model
// and write the same files.
void refuse_separate_tasks() {
  for (const char* variable : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
    const char* value = std::getenv(variable);
    if (value != nullptr && std::atoi(value) > 1) {
      throw UserError(
          str("the launcher started ", value, " tasks (", variable, "=", value,
              "), but MPI sees only this one: the launcher and the MPI library are incompatible. Start with "
              "the mpirun of the MPI library that this program was built with, or with srun --mpi=pmix"));
    }
  }
}

fs::path shared_memory_folder() { return "/dev/shm"; }
constexpr const char* kSharedMemoryPrefix = "tmamba-watchdog-";

// Removes folders of killed jobs from shared memory: those that have not changed for an hour.
void remove_old_folders() {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(shared_memory_folder(), error)) {
    if (!entry.path().filename().string().starts_with(str(kSharedMemoryPrefix, ::getuid(), "-"))) continue;
    const auto changed = fs::last_write_time(entry.path(), error);
    if (!error && fs::file_time_type::clock::now() - changed > std::chrono::hours(1)) {
      fs::remove_all(entry.path(), error);
    }
  }
}

// The message that failed ranks exchange.
struct Failure {
  uint64_t message_hash;
  int32_t exit_code;
  int32_t in_flight;  // 1: messages are in flight, so MPI cannot be finalized
};
static_assert(sizeof(Failure) == 16);

}  // namespace

World::World(WorldOptions options) : options_(options) {
  start_mpi();
  find_hosts();
  own_name() = str("rank ", rank_, " on ", host());
  std::set_terminate(terminate_with_message);

  watchdog_ = std::make_shared<Watchdog>(rank_, hosts_);
  progress_ = std::make_shared<MpiProgress>(options_.chunk_bytes, watchdog_);
  if (size_ == 1) {
    comm_ = std::make_unique<SelfCommunicator>("world");
  } else {
    MPI_Comm comm = MPI_COMM_NULL;
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup", own_name());
    comm_ = std::make_unique<MpiCommunicator>(comm, "world", progress_);
  }
}

void World::start_mpi() {
  if (const std::string problem = missing_pmi(std::getenv); !problem.empty()) throw UserError(problem);
  if (const std::string warning = alone_in_job(std::getenv); !warning.empty()) print_line(warning);
  int started = 0, provided = 0;
  MPI_Initialized(&started);
  TM_CHECK(!started, "MPI is already started; a process can have only one World");
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread", "starting MPI");
  TM_CHECK(provided >= MPI_THREAD_FUNNELED, "this MPI library does not support MPI_THREAD_FUNNELED");
  for (MPI_Comm comm : {MPI_COMM_WORLD, MPI_COMM_SELF}) {
    check_mpi(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", "starting MPI");
  }
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank", "starting MPI");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size", "starting MPI");
  if (size_ == 1) refuse_separate_tasks();
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &failure_comm_), "MPI_Comm_dup", "starting MPI");
}

void World::find_hosts() {
  using Name = std::array<char, MPI_MAX_PROCESSOR_NAME + 1>;
  Name own{};
  int length = 0;
  check_mpi(MPI_Get_processor_name(own.data(), &length), "MPI_Get_processor_name", "starting MPI");
  std::vector<Name> all(static_cast<size_t>(size_));
  check_mpi(MPI_Allgather(own.data(), own.size(), MPI_CHAR, all.data(), own.size(), MPI_CHAR, MPI_COMM_WORLD),
            "MPI_Allgather", "starting MPI");
  for (const Name& name : all) hosts_.emplace_back(name.data());

  MPI_Comm local = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &local),
            "MPI_Comm_split_type", "starting MPI");
  check_mpi(MPI_Comm_rank(local, &local_rank_), "MPI_Comm_rank", "starting MPI");
  check_mpi(MPI_Comm_size(local, &local_size_), "MPI_Comm_size", "starting MPI");
  host_leader_ = rank_;
  check_mpi(MPI_Bcast(&host_leader_, 1, MPI_INT, 0, local), "MPI_Bcast", "starting MPI");
  check_mpi(MPI_Comm_free(&local), "MPI_Comm_free", "starting MPI");
}

void World::check_launcher() {
  std::string problem = launcher_disagreement(std::getenv, {.rank = rank_, .size = size_, .local_rank = local_rank_});
  // All ranks throw the lowest rank's problem. Plain MPI calls, because the communicators count traffic.
  int first = problem.empty() ? size_ : rank_, bytes = static_cast<int>(problem.size());
  check_mpi(MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, failure_comm_), "MPI_Allreduce", own_name());
  if (first == size_) return;
  check_mpi(MPI_Bcast(&bytes, 1, MPI_INT, first, failure_comm_), "MPI_Bcast", own_name());
  problem.resize(static_cast<size_t>(bytes));
  check_mpi(MPI_Bcast(problem.data(), bytes, MPI_CHAR, first, failure_comm_), "MPI_Bcast", own_name());
  throw UserError(problem);
}

World::~World() { watchdog_->stop(); }

void World::start_watchdog(const WatchdogOptions& options) {
  if (size_ == 1 || options.timeout_seconds <= 0) return;
  watchdog_folder_ = options.folder;
  if (watchdog_folder_.empty()) {
    if (local_size_ < size_) {
      throw UserError(
          "the watchdog of a job on several hosts needs a directory that all of them see; give one, or set "
          "run.hang_timeout = 0");
    }
    int64_t pid = ::getpid();
    comm_->broadcast(Tensor(&pid, {1}, DType::i64), 0).wait();
    watchdog_folder_ = shared_memory_folder() / str(kSharedMemoryPrefix, ::getuid(), "-", pid);
  }
  if (rank_ == 0) prepare_watchdog_folder();
  comm_->barrier();
  watchdog_->start(
      {.timeout_seconds = options.timeout_seconds, .folder = watchdog_folder_, .on_hang = options.on_hang});
  comm_->barrier();
}

void World::prepare_watchdog_folder() const {
  std::error_code error;
  if (watchdog_folder_.parent_path() == shared_memory_folder()) remove_old_folders();
  fs::create_directories(watchdog_folder_, error);
  if (error) {
    throw UserError(str("the watchdog cannot create the directory ", watchdog_folder_.string(), ": ", error.message(),
                        "; check its permissions, or set run.hang_timeout = 0"));
  }
  for (const auto& entry : fs::directory_iterator(watchdog_folder_, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("rank-") || name == "hang-report" || name == "investigator") fs::remove(entry.path(), error);
  }
}

void World::finish() {
  comm_->barrier();
  TM_CHECK(progress_->clean(), own_name(), ": messages are still in flight at the end");
  end_mpi();
}

void World::end_mpi() {
  watchdog_->stop();
  comm_.reset();
  check_mpi(MPI_Comm_free(&failure_comm_), "MPI_Comm_free", own_name());
  check_mpi(MPI_Finalize(), "MPI_Finalize", own_name());
  std::error_code not_empty;
  if (rank_ == 0 && !watchdog_folder_.empty()) fs::remove(watchdog_folder_, not_empty);
}

void World::print_own(const std::string& message) const { print_line(own_name() + ": " + message); }

int World::fail(const std::string& message, int exit_code) {
  const Failure own{stream_id(message), exit_code, progress_->clean() ? 0 : 1};
  std::vector<Failure> all(static_cast<size_t>(size_));
  MPI_Request request = MPI_REQUEST_NULL;
  int agreed = 0;
  if (MPI_Iallgather(&own, sizeof own, MPI_BYTE, all.data(), sizeof own, MPI_BYTE, failure_comm_, &request) ==
      MPI_SUCCESS) {
    const auto deadline = Clock::now() + std::chrono::duration<double>(options_.agree_seconds);
    while (MPI_Test(&request, &agreed, MPI_STATUS_IGNORE) == MPI_SUCCESS && !agreed && Clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  if (!agreed) {
    print_own(message);
    abort_job(exit_code);
  }

  bool same = true, in_flight = false;
  for (const Failure& other : all) {
    same = same && other.message_hash == own.message_hash && other.exit_code == own.exit_code;
    in_flight = in_flight || other.in_flight;
  }
  if (!same) {
    print_own(message);
  } else if (rank_ == 0) {
    print_line("error: " + message);
  }
  if (in_flight) abort_job(exit_code);
  end_mpi();
  return exit_code;
}

void World::abort_job(int exit_code) {
  // MPI_Abort asks the launcher, which may have exited or hang; this thread ends the process in that case.
  std::thread([exit_code] {
    std::this_thread::sleep_for(std::chrono::seconds(4));
    std::_Exit(exit_code);
  }).detach();
  watchdog_->stop();
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

int run_main(const std::function<int(World&)>& body, WorldOptions options) {
  std::signal(SIGPIPE, SIG_IGN);
  std::unique_ptr<World> world;
  try {
    world = std::make_unique<World>(options);
  } catch (const UserError& error) {
    print_line(str("error: ", error.what()));
    return 2;
  } catch (const std::exception& error) {
    print_line(str("error: ", error.what()));
    return 1;
  }
  try {
    world->check_launcher();
    const int exit_code = body(*world);
    world->finish();
    return exit_code;
  } catch (const UserError& error) {
    return world->fail(error.what(), 2);
  } catch (const ExitError& error) {
    return world->fail(error.what(), error.exit_code());
  } catch (const std::exception& error) {
    return world->fail(error.what(), 1);
  } catch (...) {
    return world->fail("an exception of unknown type", 1);
  }
}

}  // namespace tmamba
