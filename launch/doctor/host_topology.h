// Topology of this host, read from /sys: cores, NUMA nodes, network adapters.
#pragma once

#include <string>
#include <vector>

namespace tmamba {

struct Nic {
  std::string name;  // "mlx5_0", "eth0"
  std::string kind;  // "infiniband" or "ethernet"
  std::string state;
  std::string pci_path;   // path of its device below /sys/devices; empty for virtual adapters
  int numa = -1;          // -1: unknown
  double gbit_per_s = 0;  // 0: unknown
};

// The network adapters of this host that have a device, InfiniBand first, by name. If none has one, the virtual
// adapters that are up. Loopback is excluded. Files are read below `root`.
std::vector<Nic> nics_of_host(const std::string& root = "");

// Gigabytes per second and direction of the PCIe link of a device "0000:3b:00.0", 0 if unknown.
double pcie_gb_per_s(const std::string& pci, const std::string& root = "");
// The NUMA node of a PCI device "0000:3b:00.0", -1 if unknown.
int numa_of_pci(const std::string& pci, const std::string& root = "");
// NUMA nodes that contain any of these cores, ascending.
std::vector<int> numa_of_cores(const std::vector<int>& cores, const std::string& root = "");

// The adapter nearest to a device: InfiniBand before Ethernet, then adapters that are up, then the longest common path
// in the PCI tree, then the same NUMA node. Empty if there is no adapter.
std::string nearest_nic(const std::vector<Nic>& nics, const std::string& pci, int numa, const std::string& root = "");

// The cores this process may run on, and the number of cores of the host.
std::vector<int> allowed_cores();
int host_cores(const std::string& root = "");
// The inverse of ranges_text(). Empty for invalid text.
std::vector<int> numbers_in(const std::string& ranges);

}  // namespace tmamba
