#include "launch/cli/child_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <system_error>
#include <thread>

#include "kernels/base/check.h"
#include "launch/cli/signals.h"

namespace tmamba {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kNotStarted = 127;

int open_for_writing(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) throw Error(str("cannot write ", path.string(), ": ", std::generic_category().message(errno)));
  return fd;
}

// In the child: only calls that are safe between fork and exec. The pipe tells the parent why exec failed.
[[noreturn]] void become(char* const* arguments, char* const* environment, int output, int errors, int failure) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  ::dup2(output, STDOUT_FILENO);
  ::dup2(errors, STDERR_FILENO);
  ::execvpe(arguments[0], arguments, environment);
  const int code = errno;
  if (::write(failure, &code, sizeof code) != sizeof code) ::_exit(kNotStarted + 1);
  ::_exit(kNotStarted);
}

std::vector<std::string> environment_of(const std::map<std::string, std::string>& extra) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    if (!extra.contains(text.substr(0, text.find('=')))) all.push_back(text);
  }
  for (const auto& [name, value] : extra) all.push_back(name + "=" + value);
  return all;
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Waits for the child; ends its group when time is up or a signal has come.
ChildEnd wait_for(pid_t child, double timeout) {
  const auto begin = Clock::now();
  auto asked = Clock::time_point::max();
  ChildEnd end;
  for (;;) {
    int status = 0;
    const pid_t ended = ::waitpid(child, &status, WNOHANG);
    if (ended == child) {
      end.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      return end;
    }
    if (ended < 0 && errno != EINTR) throw Error(str("waitpid: ", std::generic_category().message(errno)));
    const auto now = Clock::now();
    if (asked == Clock::time_point::max()) {
      end.stopped = pending_signal() != 0;
      end.timed_out = !end.stopped && timeout > 0 && now - begin > std::chrono::duration<double>(timeout);
      if (end.stopped || end.timed_out) ::kill(-child, SIGTERM), asked = now;
    } else if (now - asked > std::chrono::seconds(10)) {
      ::kill(-child, SIGKILL);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

}  // namespace

ChildEnd run_child(const ChildSpec& spec) {
  std::vector<std::string> command = spec.command, environment = environment_of(spec.environment);
  const std::vector<char*> arguments = pointers_to(command), variables = pointers_to(environment);
  const int output = open_for_writing(spec.output), errors = open_for_writing(spec.errors);
  int failure[2] = {-1, -1};
  TM_CHECK(::pipe2(failure, O_CLOEXEC) == 0, "pipe: ", std::generic_category().message(errno));
  const pid_t child = ::fork();
  TM_CHECK(child >= 0, "fork: ", std::generic_category().message(errno));
  if (child == 0) become(arguments.data(), variables.data(), output, errors, failure[1]);
  for (int fd : {output, errors, failure[1]}) ::close(fd);
  int code = 0;
  const bool failed = ::read(failure[0], &code, sizeof code) == sizeof code;
  ::close(failure[0]);
  const ChildEnd end = wait_for(child, spec.timeout);
  if (failed) throw UserError(str("cannot start ", command.front(), ": ", std::generic_category().message(code)));
  return end;
}

std::string shell_line(const std::vector<std::string>& command) {
  std::string line;
  for (const std::string& word : command) {
    const bool plain = !word.empty() && word.find_first_not_of(
                                            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                            "0123456789_-+=.,/:@%") == std::string::npos;
    std::string quoted = plain ? word : "'";
    for (char c : plain ? "" : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
    line += (line.empty() ? "" : " ") + quoted + (plain ? "" : "'");
  }
  return line;
}

}  // namespace tmamba
