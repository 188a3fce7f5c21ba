#include "launch/doctor/host_topology.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "kernels/base/check.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

std::string line_of(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

int number_in(const fs::path& file) {
  std::ifstream in(file);
  int number = -1;
  return in >> number ? number : -1;
}

std::string real_path(const fs::path& path) {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  return error ? "" : real.string();
}

// "100 Gb/sec (4X EDR)" of an InfiniBand adapter's first port; an Ethernet adapter states Mbit/s.
double gbit_per_s(const fs::path& entry, const std::string& kind) {
  const double number =
      std::atof(line_of(kind == "infiniband" ? entry / "ports" / "1" / "rate" : entry / "speed").c_str());
  return std::max(0.0, kind == "infiniband" ? number : number / 1000);
}

Nic nic_at(const fs::path& entry, const std::string& kind, const std::string& state) {
  return {.name = entry.filename().string(),
          .kind = kind,
          .state = state,
          .pci_path = real_path(entry / "device"),
          .numa = number_in(entry / "device" / "numa_node"),
          .gbit_per_s = gbit_per_s(entry, kind)};
}

std::vector<fs::path> entries(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) found.push_back(entry.path());
  std::sort(found.begin(), found.end());
  return found;
}

// State of the adapter's first port: "up" for "4: ACTIVE", else the text after the number.
std::string infiniband_state(const fs::path& entry) {
  const std::string text = line_of(entry / "ports" / "1" / "state");
  const size_t blank = text.find(' ');
  return text.find("ACTIVE") != std::string::npos ? "up" : blank == std::string::npos ? text : text.substr(blank + 1);
}

// Length of the common directory prefix of two paths.
size_t common_folders(const std::string& a, const std::string& b) {
  size_t common = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()) && a[i] == b[i]; ++i) {
    if (a[i] == '/') common = i;
  }
  return common;
}

}  // namespace

std::vector<Nic> nics_of_host(const std::string& root) {
  std::vector<Nic> nics, virtual_ones;
  for (const fs::path& entry : entries(root + "/sys/class/infiniband")) {
    nics.push_back(nic_at(entry, "infiniband", infiniband_state(entry)));
  }
  for (const fs::path& entry : entries(root + "/sys/class/net")) {
    if (entry.filename() == "lo") continue;
    Nic nic = nic_at(entry, "ethernet", line_of(entry / "operstate"));
    (nic.pci_path.empty() ? virtual_ones : nics).push_back(std::move(nic));
  }
  if (!nics.empty()) return nics;
  std::erase_if(virtual_ones, [](const Nic& nic) { return nic.state != "up" && nic.state != "unknown"; });
  return virtual_ones;
}

double pcie_gb_per_s(const std::string& pci, const std::string& root) {
  const fs::path device = root + "/sys/bus/pci/devices/" + pci;  // "32.0 GT/s PCIe", "16"
  const double lane = std::atof(line_of(device / "max_link_speed").c_str()) * 128 / 130 / 8;
  return pci.empty() ? 0 : lane * std::atof(line_of(device / "max_link_width").c_str());
}

int numa_of_pci(const std::string& pci, const std::string& root) {
  return pci.empty() ? -1 : number_in(root + "/sys/bus/pci/devices/" + pci + "/numa_node");
}

std::vector<int> numa_of_cores(const std::vector<int>& cores, const std::string& root) {
  std::vector<int> nodes;
  for (const fs::path& entry : entries(root + "/sys/devices/system/node")) {
    const std::string name = entry.filename().string();
    if (!name.starts_with("node") || name.size() == 4 || !std::isdigit(static_cast<unsigned char>(name[4]))) continue;
    const std::vector<int> of_node = numbers_in(line_of(entry / "cpulist"));
    const bool any = std::any_of(cores.begin(), cores.end(), [&](int core) {
      return std::find(of_node.begin(), of_node.end(), core) != of_node.end();
    });
    if (any) nodes.push_back(std::stoi(name.substr(4)));
  }
  std::sort(nodes.begin(), nodes.end());
  return nodes;
}

std::string nearest_nic(const std::vector<Nic>& nics, const std::string& pci, int numa, const std::string& root) {
  const std::string device = pci.empty() ? "" : real_path(root + "/sys/bus/pci/devices/" + pci);
  const Nic* best = nullptr;
  std::array<size_t, 4> most{};
  for (const Nic& nic : nics) {
    const std::array<size_t, 4> score{nic.kind == "infiniband" ? 1u : 0u, nic.state == "up" ? 1u : 0u,
                                      device.empty() ? 0 : common_folders(device, nic.pci_path),
                                      numa >= 0 && nic.numa == numa ? 1u : 0u};
    if (best == nullptr || score > most) best = &nic, most = score;
  }
  return best == nullptr ? "" : best->name;
}

std::vector<int> allowed_cores() {
  std::vector<int> cores;
  // Retry with larger sets if the kernel supports more cores than a cpu_set_t holds.
  for (int size = CPU_SETSIZE; size <= 1 << 20; size *= 4) {
    cpu_set_t* set = CPU_ALLOC(size);
    TM_CHECK(set != nullptr, "out of memory");
    const bool got = sched_getaffinity(0, CPU_ALLOC_SIZE(size), set) == 0;
    for (int core = 0; got && core < size; ++core) {
      if (CPU_ISSET_S(core, CPU_ALLOC_SIZE(size), set)) cores.push_back(core);
    }
    CPU_FREE(set);
    if (got || errno != EINVAL) break;
  }
  return cores;
}

int host_cores(const std::string& root) {
  return static_cast<int>(numbers_in(line_of(root + "/sys/devices/system/cpu/online")).size());
}

std::vector<int> numbers_in(const std::string& ranges) {
  std::vector<int> numbers;
  std::istringstream parts(ranges);
  for (std::string part; std::getline(parts, part, ',');) {
    int first = 0, last = 0;
    char dash = 0;
    std::istringstream range(part);
    if (!(range >> first)) return {};
    last = range >> dash >> last && dash == '-' ? last : first;
    for (int n = first; n <= last && last - first < (1 << 20); ++n) numbers.push_back(n);
  }
  return numbers;
}

}  // namespace tmamba
