// The peak of an MFU is that of the device itself, or unknown.
#include "launch/plan/device_peak.h"

#include <gtest/gtest.h>

namespace tmamba {
namespace {

TEST(DevicePeak, OfKnownDevices) {
  EXPECT_EQ(peak_of_device("NVIDIA A100-SXM4-80GB", DType::bf16).flops, 312e12);
  EXPECT_EQ(peak_of_device("NVIDIA A100-SXM4-80GB", DType::f32).flops, 19.5e12);
  EXPECT_EQ(peak_of_device("NVIDIA H200", DType::bf16).flops, 989e12);
  EXPECT_EQ(peak_of_device("NVIDIA H100 PCIe", DType::bf16).flops, 756e12);
  const std::string source = peak_of_device("NVIDIA L40S", DType::bf16).source;
  EXPECT_NE(source.find("NVIDIA L40S, dense bfloat16"), std::string::npos) << source;
  EXPECT_NE(source.find("data sheet"), std::string::npos) << source;
}

// Names that only begin like a known one are of other devices.
TEST(DevicePeak, OfOtherDevicesIsUnknown) {
  for (const char* name :
       {"NVIDIA H20", "NVIDIA H200 MIG 1g.18gb", "NVIDIA A10G", "NVIDIA GeForce RTX 4090", "H200", ""}) {
    const Peak peak = peak_of_device(name, DType::bf16);
    EXPECT_EQ(peak.flops, 0) << name;
    EXPECT_NE(peak.source.find("run.peak_tflops"), std::string::npos) << peak.source;
  }
  EXPECT_EQ(peak_of_device("NVIDIA H200", DType::f64).flops, 0);
}

TEST(DevicePeak, OfRanks) {
  World world;
  RunConfig config;
  EXPECT_EQ(peak_of_ranks(config, world).flops, 0);  // a CPU's is not known
  EXPECT_NE(peak_of_ranks(config, world).source.find("run.peak_tflops"), std::string::npos);
  config.run.peak_tflops = 2;
  EXPECT_EQ(peak_of_ranks(config, world).flops, 2e12);
  EXPECT_DOUBLE_EQ(mfu(1e12, 3, 2, {1e12, ""}), 0.5);
  world.finish();
}

}  // namespace
}  // namespace tmamba
