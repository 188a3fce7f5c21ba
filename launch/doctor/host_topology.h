// Where things are in a host: cores, NUMA nodes, network adapters, from /sys.
#pragma once

#include <string>
#include <vector>

namespace tmamba {

struct Nic {
  std::string name;  // "mlx5_0", "eth0"
  std::string kind;  // "infiniband" or "ethernet"
  std::string state;
  std::string pci_path;  // of its device below /sys/devices; empty for virtual ones
  int numa = -1;         // -1: unknown
};

// The network adapters of this host but loopback and virtual ones without a device, InfiniBand first, by name; all
// that are up where none has a device. Files are read below `root`.
std::vector<Nic> nics_of_host(const std::string& root = "");

// The NUMA node of a PCI device "0000:3b:00.0", -1 where unknown.
int numa_of_pci(const std::string& pci, const std::string& root = "");
// NUMA nodes that have any of these cores, ascending.
std::vector<int> numa_of_cores(const std::vector<int>& cores, const std::string& root = "");

// The adapter that shares most of the way through the PCI tree with a device, or one of the NUMA node where `pci` is
// empty or tells nothing; the first that is up where nothing tells. Empty where there is none.
std::string nearest_nic(const std::vector<Nic>& nics, const std::string& pci, int numa, const std::string& root = "");

// Cores this process may run on, and those that the host has.
std::vector<int> allowed_cores();
int host_cores(const std::string& root = "");
// "0-3,8,10-11"
std::string ranges_text(const std::vector<int>& numbers);
// The inverse. Empty for text that is none.
std::vector<int> numbers_in(const std::string& ranges);

}  // namespace tmamba
