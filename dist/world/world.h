// class World: this process and the other processes of the job. It starts and ends MPI, knows hosts and local ranks,
// and makes all ranks fail together: with one message that names the rank and one exit code, and without a hang.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/comm/mpi_progress.h"
#include "dist/comm/watchdog.h"

namespace tmamba {

// An error that ends the job with its own exit code.
class ExitError : public Error {
 public:
  ExitError(const std::string& message, int exit_code) : Error(message), exit_code_(exit_code) {}
  int exit_code() const { return exit_code_; }

 private:
  int exit_code_;
};

struct WorldOptions {
  // Largest single MPI message in bytes; longer ones are split.
  int64_t chunk_bytes = int64_t{1} << 30;
  // How long a failed rank waits for the others to fail too before it ends the job.
  double agree_seconds = 3;
};

class World {
 public:
  // Starts MPI; only one World may exist. Without mpirun or srun the job has one rank. Throws UserError if the launcher
  // started several tasks that cannot find each other.
  explicit World(WorldOptions options = {});
  // Does not end MPI unless finish() did: the other ranks may never arrive.
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  // Host names, indexed by rank.
  const std::vector<std::string>& hosts() const { return hosts_; }
  const std::string& host() const { return hosts_[static_cast<size_t>(rank_)]; }
  // Index among the ranks of this host, in rank order.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }
  // The first rank that shares memory with this one.
  int host_leader() const { return host_leader_; }

  // Throws UserError on all ranks if SLURM's variables give any rank another place than MPI does. Collective.
  void check_launcher();

  // The communicator of all ranks for host tensors, named "world".
  Communicator& comm() { return *comm_; }

  // Other communicators report their operations to it.
  const std::shared_ptr<Watchdog>& watchdog() const { return watchdog_; }
  // From now on a hang ends the job with a report that names the stragglers. Collective. Throws UserError if the folder
  // cannot be used.
  void start_watchdog(const WatchdogOptions& options);

  // Waits for all ranks and ends MPI. Every Communicator and Work must have been destroyed.
  void finish();

  // Ends the job because of `message`; call it from the main thread. If all ranks call it with the same message, rank 0
  // prints it once and every rank gets the exit code back, to return it from main. If all ranks call it with different
  // messages, each prints its own. Otherwise this rank prints "rank R on HOST: MESSAGE" and ends all ranks with the
  // exit code within 10 seconds.
  int fail(const std::string& message, int exit_code);

 private:
  void start_mpi();
  void find_hosts();
  void end_mpi();
  [[noreturn]] void abort_job(int exit_code);
  // On rank 0: creates the folder and removes the files of an earlier job. Throws UserError if it cannot be created.
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

// The body of main(): checks the launcher, runs `body` in a World and returns the exit code of the process. If the body
// throws, the job ends as in World::fail, with exit code 2 for UserError, its own for ExitError, and 1 for any other
// exception. SIGPIPE is ignored: a job does not end because the reader of its output has (`| tee log`, an ssh session).
int run_main(const std::function<int(World&)>& body, WorldOptions options = {});

}  // namespace tmamba
