// transmamba doctor: detects shared GPUs and cores, matches adapters by the PCI tree, and reports both on real ranks.
#include "launch/doctor/doctor.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "launch/cli/format.h"
#include "launch/doctor/host_topology.h"
#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json rank_on(int rank, const std::string& host, const std::string& uuid, const std::string& cores, int numa = 0,
             int gpu_numa = 0) {
  json gpu = nullptr;
  if (!uuid.empty()) gpu = {{"name", "GPU"}, {"uuid", uuid}, {"pci", "0000:3b:00.0"}, {"numa", gpu_numa}};
  return {{"rank", rank},
          {"host", host},
          {"local_rank", 0},
          {"pid", 1},
          {"cores", cores},
          {"core_count", numbers_in(cores).size()},
          {"host_cores", 8},
          {"numa", std::to_string(numa)},
          {"gpu", gpu},
          {"visible_gpus", 1},
          {"nic", "mlx5_0"},
          {"nics", json::array()},
          {"slurm", json::object()}};
}

std::string all_of(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& f : findings) text += (f.problem ? "PROBLEM " : "note ") + f.text + "\n";
  return text;
}

TEST(Placement, OfOneRankPerGpuHasNothingWrong) {
  const std::vector<json> ranks{rank_on(0, "a", "GPU-1", "0-1"), rank_on(1, "a", "GPU-2", "2-3"),
                                rank_on(2, "b", "GPU-1", "0-1"), rank_on(3, "b", "GPU-2", "2-3")};
  EXPECT_EQ(all_of(placement_findings(ranks, true)), "");
  EXPECT_EQ(placement_table(ranks).find('!'), std::string::npos);
}

TEST(Placement, SharedGpusAndCoresAreFound) {
  const std::vector<json> ranks{rank_on(0, "a", "GPU-1", "0-1"), rank_on(1, "a", "GPU-1", "0-1"),
                                rank_on(2, "b", "GPU-1", "4", 0, 1), rank_on(3, "b", "", "4")};
  const std::string found = all_of(placement_findings(ranks, true));
  for (const char* part :
       {"PROBLEM a: ranks 0-1 share one GPU, GPU-1", "PROBLEM a: ranks 0-1 are bound to the same cores, 0-1",
        "PROBLEM b: ranks 2-3 are bound to the same cores, 4", "PROBLEM rank 3 sees no GPU",
        "PROBLEM b: 2 ranks have 1 core between them", "note rank 2 runs on cores of another NUMA node"}) {
    EXPECT_NE(found.find(part), std::string::npos) << found << "lacks: " << part;
  }
  EXPECT_EQ(found.find("b: ranks 2-3 share one GPU"), std::string::npos) << found;
  const std::string table = placement_table(ranks);
  EXPECT_EQ(std::count(table.begin(), table.end(), '!'), 2 + 4) << table;
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 5) << table;
}

TEST(Placement, UnboundRanksMayShareCores) {
  const std::vector<json> ranks{rank_on(0, "a", "", "0-7"), rank_on(1, "a", "", "0-7")};
  EXPECT_EQ(all_of(placement_findings(ranks, false)), "");
}

TEST(Settings, DifferencesAreFound) {
  const auto of = [](const std::string& mpi, const json& environment) {
    return json{{"mpi", mpi}, {"nccl", ""}, {"mpi_settings", {{"btl", "self,tcp"}}}, {"environment", environment}};
  };
  EXPECT_TRUE(settings_findings({of("A", {{"UCX_TLS", "rc"}}), of("A", {{"UCX_TLS", "rc"}})}).empty());
  const std::string found = all_of(settings_findings(
      {of("A", {{"UCX_TLS", "rc"}, {"CUDA_VISIBLE_DEVICES", "0"}}), of("B", {{"CUDA_VISIBLE_DEVICES", "1"}})}));
  EXPECT_NE(found.find("PROBLEM MPI library is not the same on all ranks: A on rank 0; B on rank 1"),
            std::string::npos);
  EXPECT_NE(found.find("note UCX_TLS is not the same on all ranks: rc on rank 0; not set on the others"),
            std::string::npos);
  EXPECT_EQ(found.find("CUDA_VISIBLE"), std::string::npos);
}

TEST(Verdicts, CompareWithWhatTheHardwareGives) {
  std::vector<json> ranks{rank_on(0, "a", "", "0"), rank_on(1, "b", "", "0")};
  for (json& rank : ranks) rank["nic_gbit_per_s"] = 100;
  ranks[1]["nic_gbit_per_s"] = 80;
  const auto verdict = [&](const std::vector<json>& of, Device device, double gb_per_s) {
    const json sweep{{{"exchange", "all_reduce"}, {"bus_gb_per_s", 0.01}},
                     {{"exchange", "all_reduce"}, {"bus_gb_per_s", gb_per_s}}};
    const DoctorResults results{.ranks = of,
                                .device = device,
                                .placement = {{true, "shared"}},
                                .settings = {{false, "note"}},
                                .files_findings = {},
                                .sweep = sweep,
                                .files = nullptr,
                                .copy_gb_per_s = 8};
    const json rows = verdicts(results);
    EXPECT_EQ(rows.size(), 3u) << rows;
    EXPECT_EQ(rows[0]["verdict"], "wrong");
    EXPECT_EQ(rows[1]["verdict"], "ok");
    return rows[2]["verdict"].get<std::string>();
  };
  // The slowest adapter gives 10 GB/s; half of it is enough.
  EXPECT_EQ(verdict(ranks, Device::cpu, 5.1), "ok");
  EXPECT_EQ(verdict(ranks, Device::cpu, 4.9), "slow");
  ranks[0]["nic_gbit_per_s"] = 0;
  EXPECT_EQ(verdict(ranks, Device::cpu, 5.1), "unknown");
  // On one host, half of the rate of copies.
  ranks[1]["host"] = "a";
  EXPECT_EQ(verdict(ranks, Device::cpu, 2.1), "ok");
  EXPECT_EQ(verdict(ranks, Device::cpu, 1.9), "slow");
  for (json& rank : ranks) rank["gpu"] = {{"name", "NVIDIA H200"}, {"pcie_gb_per_s", 63}};
  EXPECT_EQ(verdict(ranks, Device::cuda, 226), "ok");
  EXPECT_EQ(verdict(ranks, Device::cuda, 224), "slow");
  ranks[1]["gpu"]["name"] = "NVIDIA L40";
  EXPECT_EQ(verdict(ranks, Device::cuda, 32), "ok");
  EXPECT_EQ(verdict(ranks, Device::cuda, 31), "slow");
}

TEST(Topology, NearestAdapterSharesTheWayThroughThePciTree) {
  const fs::path root = fs::temp_directory_path() / ("tmamba-topology-" + std::to_string(getpid()));
  fs::remove_all(root);
  const auto device = [&](const std::string& path, int numa) {
    fs::create_directories(root / "sys/devices" / path);
    std::ofstream(root / "sys/devices" / path / "numa_node") << numa << "\n";
  };
  const auto link = [&](const std::string& from, const std::string& to) {
    fs::create_directories((root / from).parent_path());
    fs::create_symlink(root / "sys/devices" / to, root / from);
  };
  const auto adapter = [&](const std::string& name, const std::string& path, const std::string& state) {
    fs::create_directories(root / "sys/class/infiniband" / name / "ports/1");
    std::ofstream(root / "sys/class/infiniband" / name / "ports/1/state") << state << "\n";
    link("sys/class/infiniband/" + name + "/device", path);
  };
  device("pci0/switch1/gpu", 1), device("pci0/switch1/nic", 1), device("pci0/switch2/nic", 1), device("pci5/nic", 0);
  adapter("mlx5_0", "pci5/nic", "4: ACTIVE");
  adapter("mlx5_1", "pci0/switch2/nic", "4: ACTIVE");
  adapter("mlx5_2", "pci0/switch1/nic", "4: ACTIVE");
  link("sys/bus/pci/devices/0000:3b:00.0", "pci0/switch1/gpu");
  std::ofstream(root / "sys/class/infiniband/mlx5_2/ports/1/rate") << "400 Gb/sec (4X NDR)\n";
  std::ofstream(root / "sys/devices/pci0/switch1/gpu/max_link_speed") << "32.0 GT/s PCIe\n";
  std::ofstream(root / "sys/devices/pci0/switch1/gpu/max_link_width") << "16\n";
  EXPECT_NEAR(pcie_gb_per_s("0000:3b:00.0", root.string()), 63.0, 0.1);
  const std::vector<Nic> nics = nics_of_host(root.string());
  EXPECT_EQ(nics[2].gbit_per_s, 400);
  EXPECT_EQ(nics[0].gbit_per_s, 0);
  ASSERT_EQ(nics.size(), 3u);
  EXPECT_EQ(nics[0].state, "up");
  EXPECT_EQ(numa_of_pci("0000:3b:00.0", root.string()), 1);
  EXPECT_EQ(nearest_nic(nics, "0000:3b:00.0", 1, root.string()), "mlx5_2");
  EXPECT_EQ(nearest_nic(nics, "", 0, root.string()), "mlx5_0");
  std::ofstream(root / "sys/class/infiniband/mlx5_2/ports/1/state") << "1: DOWN\n";
  EXPECT_EQ(nearest_nic(nics_of_host(root.string()), "0000:3b:00.0", 1, root.string()), "mlx5_1");
  EXPECT_EQ(nearest_nic({}, "", 0, root.string()), "");
  fs::create_directories(root / "sys/devices/system/node/node0"),
      fs::create_directories(root / "sys/devices/system/node/node1");
  std::ofstream(root / "sys/devices/system/node/node0/cpulist") << "0-3\n";
  std::ofstream(root / "sys/devices/system/node/node1/cpulist") << "4-7\n";
  EXPECT_EQ(numa_of_cores({3, 4}, root.string()), (std::vector<int>{0, 1}));
  EXPECT_EQ(numa_of_cores({5}, root.string()), (std::vector<int>{1}));
  fs::remove_all(root);
}

TEST(Topology, RangesAreReadAndWritten) {
  EXPECT_EQ(ranges_text({0, 1, 2, 5, 7, 8}), "0-2,5,7-8");
  EXPECT_EQ(numbers_in("0-2,5,7-8"), (std::vector<int>{0, 1, 2, 5, 7, 8}));
  EXPECT_TRUE(numbers_in("").empty());
  EXPECT_FALSE(allowed_cores().empty());
}

class Doctor : public testing::Test {
 protected:
  void SetUp() override {
    enter_test_folder(std::string("doctor-") + testing::UnitTest::GetInstance()->current_test_info()->name());
  }
  void TearDown() override {
    const fs::path folder = fs::current_path();
    fs::current_path("/");
    fs::remove_all(folder);
  }
};

// The JSON object in the output of launcher and program.
json object_in(const std::string& output) {
  const size_t begin = output.find('{'), end = output.rfind("\n}");
  return json::parse(output.substr(begin, end + 2 - begin));
}

TEST_F(Doctor, ExaminesFourRanksOnOneCore) {
  const int core = allowed_cores().front();
  const Outcome outcome = shell("OMPI_MCA_hwloc_base_binding_policy=none taskset -c " + std::to_string(core) + " " +
                                command_line("doctor run --json --seconds 0.05", 4));
  EXPECT_EQ(outcome.code, 1) << outcome.output;
  const json result = object_in(outcome.output);
  ASSERT_EQ(result["ranks"].size(), 4u);
  std::string found;
  for (const json& f : result["findings"])
    found += f["level"].get<std::string>() + " " + f["text"].get<std::string>() + "\n";
  EXPECT_NE(found.find("4 ranks have 1 core between them"), std::string::npos) << found;
  if (result["ranks"][0]["host_cores"].get<int>() > 1) {
    EXPECT_NE(found.find("ranks 0-3 are bound to the same cores, " + std::to_string(core)), std::string::npos) << found;
  }
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(result["ranks"][static_cast<size_t>(rank)]["rank"], rank);
    EXPECT_EQ(result["ranks"][static_cast<size_t>(rank)]["cores"], std::to_string(core));
  }
  std::map<std::string, int> sizes;
  for (const json& row : result["sweep"]) {
    ++sizes[row["exchange"]];
    EXPECT_GT(row["bus_gb_per_s"].get<double>(), 0);
  }
  EXPECT_EQ(sizes.size(), 3u) << result["sweep"];
  const json& files = result["files"];
  EXPECT_EQ(files["locks"], "work") << files;
  EXPECT_GT(files["fsync_ms"].get<double>(), 0);
  EXPECT_GT(files["free_bytes"].get<double>(), 1e6);
  EXPECT_NE(result["settings"]["mpi"].get<std::string>(), "");
  EXPECT_FALSE(fs::exists("run")) << "what was not there is there now";
  std::map<std::string, std::string> verdicts;
  for (const json& row : result["verdicts"]) {
    verdicts[row["check"]] = row["verdict"];
    EXPECT_NE(row["text"], "");
  }
  for (const char* check : {"all_reduce", "all_gather", "send_recv", "fsync of a small file", "write"}) {
    EXPECT_TRUE(verdicts[check] == "ok" || verdicts[check] == "slow") << check << " " << result["verdicts"];
  }
  EXPECT_EQ(verdicts["placement"], "wrong");
  EXPECT_EQ(verdicts["settings"], "ok");
}

TEST_F(Doctor, OneRankAloneIsFine) {
  const Outcome outcome = transmamba("doctor .");
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_NE(outcome.output.find("no problems"), std::string::npos) << outcome.output;
}

TEST_F(Doctor, ADirectoryThatCannotBeWrittenIsAnError) {
  std::ofstream("file") << "";
  const Outcome outcome = transmamba("doctor file/run --seconds 0");
  EXPECT_NE(outcome.code, 0) << outcome.output;
  EXPECT_NE(outcome.output.find("directory file"), std::string::npos) << outcome.output;
  EXPECT_EQ(transmamba("doctor --device tpu").code, 2);
  EXPECT_EQ(transmamba("doctor new/run/folder --seconds 0").code, 0);
  EXPECT_FALSE(fs::exists("new"));
  fs::create_directory("old");
  EXPECT_EQ(transmamba("doctor old/run --seconds 0").code, 0);
  EXPECT_TRUE(fs::is_empty("old"));
}

}  // namespace
}  // namespace tmamba
