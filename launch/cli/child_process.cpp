#include "launch/cli/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <sstream>
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
  if (const int nothing = ::open("/dev/null", O_RDONLY | O_CLOEXEC); nothing >= 0) ::dup2(nothing, STDIN_FILENO);
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

// A pipe whose ends close with it and do not reach other programs.
class Pipe {
 public:
  Pipe() { TM_CHECK(::pipe2(ends_.data(), O_CLOEXEC) == 0, "pipe: ", std::generic_category().message(errno)); }
  ~Pipe() { close_reader(), close_writer(); }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  int reader() const { return ends_[0]; }
  int writer() const { return ends_[1]; }
  void close_writer() { close_end(ends_[1]); }

  // Appends what can be read, waiting at most `milliseconds` for it. Returns false when nothing more will come.
  bool read_into(std::string& text, int milliseconds) {
    pollfd ready{.fd = ends_[0], .events = POLLIN, .revents = 0};
    if (ends_[0] < 0) return false;
    if (::poll(&ready, 1, milliseconds) <= 0) return true;
    std::array<char, 4096> buffer;
    const ssize_t bytes = ::read(ends_[0], buffer.data(), buffer.size());
    if (bytes > 0) text.append(buffer.data(), static_cast<size_t>(bytes));
    if (bytes == 0 || (bytes < 0 && errno != EINTR)) close_reader();
    return ends_[0] >= 0;
  }

 private:
  static void close_end(int& end) {
    if (end >= 0) ::close(end);
    end = -1;
  }
  void close_reader() { close_end(ends_[0]); }
  std::array<int, 2> ends_{-1, -1};
};

// Waits for the child, reading what it prints into `captured`; terminates its group when time is up or a signal has
// arrived.
ChildEnd wait_for(pid_t child, double timeout, Pipe* captured) {
  const auto begin = Clock::now();
  auto asked = Clock::time_point::max();
  ChildEnd end;
  for (;;) {
    const bool reading = captured != nullptr && captured->read_into(end.text, 20);
    int status = 0;
    const pid_t ended = ::waitpid(child, &status, WNOHANG);
    if (ended == child) {
      end.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      if (captured != nullptr) {
        for (size_t before = end.text.size() + 1; before != end.text.size();) {  // what the pipe still holds
          before = end.text.size();
          captured->read_into(end.text, 0);
        }
      }
      return end;
    }
    if (ended < 0 && errno != EINTR) throw Error(str("waitpid: ", std::generic_category().message(errno)));
    const auto now = Clock::now();
    if (asked == Clock::time_point::max()) {
      end.stopped = captured == nullptr && pending_signal() != 0;
      end.timed_out = !end.stopped && timeout > 0 && now - begin > std::chrono::duration<double>(timeout);
      if (end.stopped || end.timed_out) ::kill(-child, SIGTERM), asked = now;
    } else if (now - asked > std::chrono::seconds(10)) {
      ::kill(-child, SIGKILL);
    }
    if (!reading) std::this_thread::sleep_for(std::chrono::milliseconds(captured != nullptr ? 1 : 20));
  }
}

}  // namespace

ChildEnd run_child(const ChildSpec& spec) {
  std::vector<std::string> command = spec.command, environment = environment_of(spec.environment);
  const std::vector<char*> arguments = pointers_to(command), variables = pointers_to(environment);
  const bool captures = spec.output.empty();
  Pipe captured, failure;
  const int output = captures ? captured.writer() : open_for_writing(spec.output);
  const int errors = captures ? captured.writer() : open_for_writing(spec.errors);
  const pid_t child = ::fork();
  TM_CHECK(child >= 0, "fork: ", std::generic_category().message(errno));
  if (child == 0) become(arguments.data(), variables.data(), output, errors, failure.writer());
  if (!captures) ::close(output), ::close(errors);
  captured.close_writer(), failure.close_writer();
  int code = 0;
  const bool failed = ::read(failure.reader(), &code, sizeof code) == sizeof code;
  const ChildEnd end = wait_for(child, spec.timeout, captures ? &captured : nullptr);
  if (failed) throw UserError(str("cannot start ", command.front(), ": ", std::generic_category().message(code)));
  return end;
}

std::string find_program(const std::string& name) {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path != nullptr ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');) {
    const std::string file = (std::filesystem::path(folder.empty() ? "." : folder) / name).string();
    std::error_code ignored;
    if (std::filesystem::is_regular_file(file, ignored) && ::access(file.c_str(), X_OK) == 0) return file;
  }
  return "";
}

std::string own_program() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

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
