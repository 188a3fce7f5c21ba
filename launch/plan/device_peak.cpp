#include "launch/plan/device_peak.h"

#include <algorithm>
#include <array>

#include "dist/comm/collective_guard.h"
#include "dist/world/device_world.h"
#include "kernels/base/device.h"

namespace tmamba {

namespace {

constexpr const char* kAdvice = "set run.peak_tflops to the dense TFLOP/s of train.dtype";

struct KnownDevice {
  const char* name;
  double bf16, f32;  // dense TFLOP/s of the tensor cores, and of float32 without TF32, which no kernel here uses
  const char* source;
};

// A table of whole names: a MIG slice, a PCIe board or a laptop's GPU with a similar name has another peak. Data sheets
// that only state rates with 2:4 sparsity are halved.
constexpr auto kKnownDevices = std::to_array<KnownDevice>({
    {"NVIDIA A100-SXM4-40GB", 312, 19.5, "NVIDIA A100 data sheet"},
    {"NVIDIA A100-SXM4-80GB", 312, 19.5, "NVIDIA A100 data sheet"},
    {"NVIDIA A100-PCIE-40GB", 312, 19.5, "NVIDIA A100 data sheet"},
    {"NVIDIA A100 80GB PCIe", 312, 19.5, "NVIDIA A100 data sheet"},
    {"NVIDIA A30", 165, 10.3, "NVIDIA A30 data sheet"},
    {"NVIDIA A40", 149.7, 37.4, "NVIDIA A40 data sheet"},
    {"NVIDIA A10", 125, 31.2, "NVIDIA A10 data sheet"},
    {"NVIDIA L4", 121, 30.3, "NVIDIA L4 data sheet, half of the sparse rate"},
    {"NVIDIA L40", 181, 90.5, "NVIDIA L40 data sheet"},
    {"NVIDIA L40S", 362, 91.6, "NVIDIA L40S data sheet"},
    {"NVIDIA H100 80GB HBM3", 989, 67, "NVIDIA H100 data sheet (SXM), half of the sparse rate"},
    {"NVIDIA H100 PCIe", 756, 51, "NVIDIA H100 data sheet (PCIe), half of the sparse rate"},
    {"NVIDIA H100 NVL", 835, 60, "NVIDIA H100 data sheet (NVL), half of the sparse rate"},
    {"NVIDIA H200", 989, 67, "NVIDIA H200 data sheet (SXM), half of the sparse rate"},
    {"NVIDIA H200 NVL", 835, 60, "NVIDIA H200 data sheet (NVL), half of the sparse rate"},
    {"NVIDIA GH200 480GB", 990, 67, "NVIDIA GH200 data sheet, half of the sparse rate"},
    {"NVIDIA B200", 2250, 75, "NVIDIA HGX B200 data sheet, half of the sparse rate"},
});

// The GPU that this rank computes on.
std::string device_name(const World& world) {
  const std::vector<GpuIdentity> gpus = visible_gpus();
  if (gpus.empty()) return "";
  return gpus[static_cast<size_t>(gpu_of(world.local_rank(), static_cast<int>(gpus.size())))].name;
}

}  // namespace

Peak peak_of_device(const std::string& name, DType dtype) {
  for (const KnownDevice& known : kKnownDevices) {
    if (name != known.name) continue;
    const double tflops = dtype == DType::bf16 ? known.bf16 : dtype == DType::f32 ? known.f32 : 0;
    if (tflops > 0) return {tflops * 1e12, str(name, ", dense ", name_of(dtype), " (", known.source, ")")};
  }
  return {0, str("peak of ", name, " in ", name_of(dtype), " unknown: ", kAdvice)};
}

Peak peak_of_ranks(const RunConfig& config, World& world) {
  if (config.run.peak_tflops > 0) return {config.run.peak_tflops * 1e12, "run.peak_tflops"};
  if (config.run.device == Device::cpu) return {0, str("peak of this CPU unknown: ", kAdvice)};
  const std::vector<std::string> names = CollectiveGuard(world.comm()).gather(device_name(world));
  Peak mean{0, ""};
  for (size_t rank = 0; rank < names.size(); ++rank) {
    const Peak peak = peak_of_device(names[rank], config.dtype());
    if (peak.flops == 0) return peak;
    mean.flops += peak.flops / static_cast<double>(names.size());
    if (std::find(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(rank), names[rank]) ==
        names.begin() + static_cast<std::ptrdiff_t>(rank)) {
      mean.source += (mean.source.empty() ? "" : "; ") + peak.source;
    }
  }
  return mean;
}

double mfu(double forward_flops, double seconds, int64_t ranks, const Peak& peak) {
  return 3 * forward_flops / (seconds * static_cast<double>(ranks) * peak.flops);
}

}  // namespace tmamba
