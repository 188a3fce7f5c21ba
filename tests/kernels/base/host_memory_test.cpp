// Free memory of the host, read from made-up /proc and /sys trees.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "kernels/base/device.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

class HostMemory : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("tmamba-host-memory-" + std::to_string(getpid()));
    fs::remove_all(root_);
    write("/proc/meminfo", "MemTotal:  1000 kB\nMemFree: 100 kB\nMemAvailable:  800 kB\n");
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& file, const std::string& text) const {
    fs::create_directories(fs::path(root_.string() + file).parent_path());
    std::ofstream(root_.string() + file) << text;
  }
  void expect(size_t free, size_t total) const {
    const DeviceMemory memory = host_memory(root_);
    EXPECT_EQ(memory.free, free);
    EXPECT_EQ(memory.total, total);
  }

  fs::path root_;
};

TEST_F(HostMemory, IsWhatIsAvailable) { expect(800 * 1024, 1000 * 1024); }

TEST_F(HostMemory, OfAGroupIsItsLimitLessWhatItUses) {
  write("/proc/self/cgroup", "0::/job/step\n");
  write("/sys/fs/cgroup/job/step/memory.max", "max\n");
  write("/sys/fs/cgroup/job/step/memory.current", "5000\n");
  expect(800 * 1024, 1000 * 1024);
  write("/sys/fs/cgroup/job/memory.max", "300000\n");  // of the group around it
  write("/sys/fs/cgroup/job/memory.current", "120000\n");
  expect(180000, 300000);
  write("/sys/fs/cgroup/job/memory.stat", "active_file 7\ninactive_file 50000\n");
  expect(230000, 300000);
  write("/sys/fs/cgroup/job/memory.current", "400000\n");
  expect(0, 300000);
}

TEST_F(HostMemory, OfTheOldKindOfGroup) {
  write("/proc/self/cgroup", "4:memory:/box\n0::/\n");
  write("/sys/fs/cgroup/memory/box/memory.limit_in_bytes", "9223372036854771712\n");
  write("/sys/fs/cgroup/memory/box/memory.usage_in_bytes", "1000\n");
  expect(800 * 1024, 1000 * 1024);
  write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "500000\n");
  write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "100000\n");
  expect(400000, 500000);
}

TEST_F(HostMemory, IsUnlimitedWithoutALimit) {
  fs::remove_all(root_);
  expect(std::numeric_limits<size_t>::max(), std::numeric_limits<size_t>::max());
}

TEST(DeviceMemory, OfThisHost) {
  const DeviceMemory memory = device_memory(Device::cpu);
  EXPECT_GT(memory.free, 0u);
  EXPECT_LE(memory.free, memory.total);
}

}  // namespace
}  // namespace tmamba
