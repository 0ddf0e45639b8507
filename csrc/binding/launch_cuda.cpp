// Facts, stream and switches of a launch.
#include "launch_cuda.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <map>
#include <mutex>
#include <stdexcept>

#include "architectures.h"
#include "call.h"
#include "shape.h"

namespace fused_lstm {
namespace {

constexpr const char* kArchitectures = FUSED_LSTM_TEXT(FUSED_LSTM_CUDA_ARCHS);

constexpr int32_t kPlanChooses = -1;
std::atomic<int32_t> forced{kPlanChooses};

[[noreturn]] void fail(const char* what, cudaError_t error) {
  std::string text =
      std::string("fused_lstm: CUDA could not ") + what + ": " + cudaGetErrorString(error);
  if (error == cudaErrorInsufficientDriver) {
    text += "; this build needs an NVIDIA driver for CUDA " +
            std::to_string(CUDART_VERSION / 1000) +
            ": install or update it, or build with an older toolkit and torch";
  }
  throw std::runtime_error(text);
}

int attribute(cudaDeviceAttr name, int32_t index) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, name, index);
  if (error != cudaSuccess) fail("read a device's attributes", error);
  return value;
}

}  // namespace

const cuda::Device& device_facts(int32_t index) {
  static std::mutex lock;
  static std::map<int32_t, cuda::Device> known;  // its elements never move
  const std::lock_guard<std::mutex> guard(lock);
  const auto found = known.find(index);
  if (found != known.end()) return found->second;
  cuda::Device device;
  device.arch = 10 * attribute(cudaDevAttrComputeCapabilityMajor, index) +
                attribute(cudaDevAttrComputeCapabilityMinor, index);
  device.sms = attribute(cudaDevAttrMultiProcessorCount, index);
  device.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  device.shared_per_sm = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, index);
  return known[index] = device;
}

std::string device_obstacle(int32_t arch) { return architecture_obstacle(kArchitectures, arch); }

std::vector<std::string> compiled_architectures() { return split_architectures(kArchitectures); }

void force_family(std::optional<cuda::Family> family) {
  forced.store(family ? static_cast<int32_t>(*family) : kPlanChooses, std::memory_order_relaxed);
}

const char* family_name(cuda::Family family) {
  return family == cuda::Family::kStepwise ? "stepwise" : "single_block";
}

LaunchContext::LaunchContext(int32_t device_index, bool tf32) {
  launch_.device = device_facts(device_index);
  const std::string obstacle = device_obstacle(launch_.device.arch);
  if (!obstacle.empty()) throw std::runtime_error("fused_lstm: " + obstacle);
  check_shim(aoti_torch_get_current_cuda_stream(device_index, &launch_.stream),
             "say which stream is the current one");
  launch_.blas = blas_.blas();
  launch_.math = tf32 ? cuda::Math::kTf32 : cuda::Math::kStrict;
  const int32_t family = forced.load(std::memory_order_relaxed);
  launch_.forced = family != kPlanChooses;
  if (launch_.forced) launch_.family = static_cast<cuda::Family>(family);
}

void LaunchContext::check(Status status, const char* op) const {
  if (status == Status::kOk) return;
  if (status == Status::kUnsupported && launch_.forced) {
    throw std::runtime_error(std::string("fused_lstm::") + op + ": " + family_name(launch_.family) +
                             " was forced and cannot compute this");
  }
  check_status(status, op, blas_.error().empty() ? cuda::last_error() : blas_.error());
}

}  // namespace fused_lstm
