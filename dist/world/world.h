// class World: this process among all processes of the job. Starts and ends MPI, knows hosts and local ranks, and makes
// a job fail as a whole: one message that names the rank, one exit code, nobody left hanging.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/comm/mpi_progress.h"
#include "dist/comm/watchdog.h"

namespace tmamba {

// An error that ends the job with an exit code of its own.
class ExitError : public Error {
 public:
  ExitError(const std::string& message, int exit_code) : Error(message), exit_code_(exit_code) {}
  int exit_code() const { return exit_code_; }

 private:
  int exit_code_;
};

struct WorldOptions {
  // Largest single MPI message; longer ones travel in pieces.
  int64_t chunk_bytes = int64_t{1} << 30;
  // How long a failed rank waits for the others to fail too, before it ends the job.
  double agree_seconds = 3;
};

class World {
 public:
  // Starts MPI; one at a time. Started by mpirun or srun it is one rank of many; started alone, the only one.
  // Throws UserError where the launcher started several tasks that cannot see each other.
  explicit World(WorldOptions options = {});
  // Ends MPI if finish() was called, else leaves it: other ranks may never arrive.
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  // Host names by rank.
  const std::vector<std::string>& hosts() const { return hosts_; }
  const std::string& host() const { return hosts_[static_cast<size_t>(rank_)]; }
  // Place among the ranks of this host, in rank order.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }
  // The first rank that shares memory with this one.
  int host_leader() const { return host_leader_; }

  // Throws UserError, on all ranks, where SLURM's variables give any rank another place than MPI does. Collective.
  void check_launcher();

  // All ranks, named "world"; host tensors.
  Communicator& comm() { return *comm_; }

  // For communicators of other kinds: tells what they start and wait for.
  const std::shared_ptr<Watchdog>& watchdog() const { return watchdog_; }
  // From now on a rank that holds up the others is found and named, and the job ends. Collective. Throws UserError
  // where the folder cannot be used.
  void start_watchdog(const WatchdogOptions& options);

  // Waits for all ranks and ends MPI. Every Communicator and Work must be gone.
  void finish();

  // Ends the job because of `message`, from the main thread. Where all ranks call it with the same message, rank 0
  // prints it once and the exit code comes back on every rank, for the caller to return from main; where all call it
  // with different ones each prints its own. Otherwise this rank prints "rank R on HOST: MESSAGE" and ends all ranks
  // with the exit code, within 10 seconds.
  int fail(const std::string& message, int exit_code);

 private:
  void start_mpi();
  void find_hosts();
  void end_mpi();
  [[noreturn]] void abort_job(int exit_code);
  // Throws UserError unless the folder can be made; removes what an earlier job left in it. On rank 0.
  void prepare_watchdog_folder() const;
  void print_own(const std::string& message) const;

  WorldOptions options_;
  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
  int host_leader_ = 0;
  std::vector<std::string> hosts_;
  MPI_Comm failure_comm_ = MPI_COMM_NULL;
  std::filesystem::path watchdog_folder_;
  std::shared_ptr<Watchdog> watchdog_;
  std::shared_ptr<MpiProgress> progress_;
  std::unique_ptr<Communicator> comm_;
};

// The body of main(): checks the launcher, runs `body` in a World and returns the exit code of the process. An
// exception that leaves the body ends the job as World::fail does: UserError with exit code 2, ExitError with its own,
// any other with 1.
int run_main(const std::function<int(World&)>& body, WorldOptions options = {});

}  // namespace tmamba
