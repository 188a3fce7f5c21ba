#include "tests/data/checkpoint/syscall_tracer.h"

#include <fcntl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <map>

#include "kernels/base/check.h"

namespace tmamba {

namespace {

enum class Operand { none, path, path_at, descriptor, two_paths, two_paths_at };

struct Kind {
  const char* name;
  Operand operand;
};

const std::map<long, Kind>& kinds() {
  static const std::map<long, Kind> map{{SYS_open, {"open", Operand::path}},
                                        {SYS_openat, {"openat", Operand::path_at}},
                                        {SYS_write, {"write", Operand::descriptor}},
                                        {SYS_pwrite64, {"pwrite64", Operand::descriptor}},
                                        {SYS_ftruncate, {"ftruncate", Operand::descriptor}},
                                        {SYS_fallocate, {"fallocate", Operand::descriptor}},
                                        {SYS_fsync, {"fsync", Operand::descriptor}},
                                        {SYS_fdatasync, {"fdatasync", Operand::descriptor}},
                                        {SYS_mkdir, {"mkdir", Operand::path}},
                                        {SYS_rmdir, {"rmdir", Operand::path}},
                                        {SYS_unlink, {"unlink", Operand::path}},
                                        {SYS_unlinkat, {"unlinkat", Operand::path_at}},
                                        {SYS_rename, {"rename", Operand::two_paths}},
                                        {SYS_renameat, {"renameat", Operand::two_paths_at}},
                                        {SYS_renameat2, {"renameat2", Operand::two_paths_at}}};
  return map;
}

std::string text_at(pid_t child, unsigned long address) {
  std::string text;
  char byte = 0;
  while (text.size() < 4096) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): an address in the other process
    iovec local{&byte, 1}, remote{reinterpret_cast<void*>(address + text.size()), 1};
    if (process_vm_readv(child, &local, 1, &remote, 1, 0) != 1 || byte == 0) break;
    text += byte;
  }
  return text;
}

std::string path_of(pid_t child, long descriptor) {
  std::error_code error;
  const auto path = std::filesystem::read_symlink(str("/proc/", child, "/fd/", descriptor), error);
  return error ? "" : path.string();
}

std::string path_at(pid_t child, long folder, unsigned long address) {
  const std::string path = text_at(child, address);
  if (static_cast<int>(folder) == AT_FDCWD || path.starts_with("/")) return path;
  return path_of(child, folder) + "/" + path;
}

FileCall describe(pid_t child, const Kind& kind, const user_regs_struct& regs) {
  FileCall call{kind.name, "", "", false, 0};
  switch (kind.operand) {
    case Operand::path:
      call.path = text_at(child, regs.rdi);
      break;
    case Operand::path_at:
      call.path = path_at(child, static_cast<long>(regs.rdi), regs.rsi);
      break;
    case Operand::descriptor:
      call.path = path_of(child, static_cast<long>(regs.rdi));
      break;
    case Operand::two_paths:
      call.path = text_at(child, regs.rdi), call.path2 = text_at(child, regs.rsi);
      break;
    case Operand::two_paths_at:
      call.path = path_at(child, static_cast<long>(regs.rdi), regs.rsi);
      call.path2 = path_at(child, static_cast<long>(regs.rdx), regs.r10);
      break;
    case Operand::none:
      break;
  }
  const bool opens = regs.orig_rax == SYS_open || regs.orig_rax == SYS_openat;
  const unsigned long flags = regs.orig_rax == SYS_open ? regs.rsi : regs.rdx;
  call.creates = opens && (flags & (O_CREAT | O_TRUNC)) != 0;
  return call;
}

int wait_for(pid_t child) {
  int status = 0;
  while (waitpid(child, &status, 0) < 0) TM_CHECK(errno == EINTR, "waitpid failed");
  return status;
}

}  // namespace

TraceResult trace(const std::function<int()>& body, const TraceOptions& options) {
  const pid_t child = fork();
  TM_CHECK(child >= 0, "fork failed");
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(99);
    raise(SIGSTOP);
    _exit(body());
  }
  TraceResult result;
  int status = wait_for(child);
  TM_CHECK(WIFSTOPPED(status), "the child cannot be traced");
  TM_CHECK(ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL) == 0, "ptrace failed");
  bool entering = true, counted = false, failing = false;
  int number = -1;
  while (true) {
    TM_CHECK(ptrace(PTRACE_SYSCALL, child, nullptr, nullptr) == 0, "ptrace failed");
    status = wait_for(child);
    if (WIFEXITED(status)) {
      result.exit_code = WEXITSTATUS(status);
      return result;
    }
    if (WIFSIGNALED(status)) return result;
    if (WSTOPSIG(status) != (SIGTRAP | 0x80)) continue;  // a signal of the child's; it is not handed on
    user_regs_struct regs{};
    TM_CHECK(ptrace(PTRACE_GETREGS, child, nullptr, &regs) == 0, "ptrace failed");
    if (entering) {
      const auto kind = kinds().find(static_cast<long>(regs.orig_rax));
      counted = kind != kinds().end();
      if (counted) {
        FileCall call = describe(child, kind->second, regs);
        const bool opens = call.name.starts_with("open");
        counted = !(options.changes && opens && !call.creates);
        if (counted) result.calls.push_back(std::move(call)), ++number;
      }
      if (counted && number == options.kill_at) {
        result.calls.pop_back();
        kill(child, SIGKILL);
        wait_for(child);
        return result;
      }
      failing = counted && number == options.fail_at;
      if (failing) {
        regs.orig_rax = static_cast<unsigned long>(-1);
        TM_CHECK(ptrace(PTRACE_SETREGS, child, nullptr, &regs) == 0, "ptrace failed");
      }
    } else {
      if (failing) {
        regs.rax = static_cast<unsigned long>(-options.error);
        TM_CHECK(ptrace(PTRACE_SETREGS, child, nullptr, &regs) == 0, "ptrace failed");
      }
      if (counted) result.calls.back().result = static_cast<long>(regs.rax);
    }
    entering = !entering;
  }
}

}  // namespace tmamba
