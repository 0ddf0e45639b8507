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
std::atomic<bool> across{false};

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

// Another device for the length of a scope.
class CurrentDevice {
 public:
  explicit CurrentDevice(int32_t index) {
    if (cudaGetDevice(&before_) != cudaSuccess || cudaSetDevice(index) != cudaSuccess) before_ = -1;
  }
  ~CurrentDevice() {
    if (before_ >= 0) (void)cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = -1;
};

// The word in which a device's kernels say that a block waited in vain: host memory, so that the
// next call reads it without waiting for the device. Made once, also while a graph is captured.
uint32_t* fault_word(int32_t index) {
  static std::mutex lock;
  static std::map<int32_t, uint32_t*> known;
  const std::lock_guard<std::mutex> guard(lock);
  uint32_t*& word = known[index];
  if (word != nullptr) return word;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  (void)cudaThreadExchangeStreamCaptureMode(&mode);
  void* memory = nullptr;
  const cudaError_t error =
      cudaHostAlloc(&memory, sizeof(uint32_t), cudaHostAllocMapped | cudaHostAllocPortable);
  (void)cudaThreadExchangeStreamCaptureMode(&mode);
  if (error != cudaSuccess) fail("reserve a word of host memory", error);
  word = static_cast<uint32_t*>(memory);
  *word = 0;
  return word;
}

bool waits(cuda::Family family) {
  return family == cuda::Family::kCluster || family == cuda::Family::kGrid;
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
  if (device_obstacle(device.arch).empty()) {
    device.arch = code_for(kArchitectures, device.arch);
    const CurrentDevice current(index);
    cuda::read_cluster_limits(&device);
  }
  return known[index] = device;
}

std::string device_obstacle(int32_t arch) { return architecture_obstacle(kArchitectures, arch); }

std::vector<std::string> compiled_architectures() { return split_architectures(kArchitectures); }

void force_family(std::optional<cuda::Family> family) {
  forced.store(family ? static_cast<int32_t>(*family) : kPlanChooses, std::memory_order_relaxed);
}

std::optional<cuda::Family> forced_family() {
  const int32_t family = forced.load(std::memory_order_relaxed);
  if (family == kPlanChooses) return std::nullopt;
  return static_cast<cuda::Family>(family);
}

Choices& choices() {
  static Choices all;
  return all;
}

void set_across_blocks(bool on) { across.store(on, std::memory_order_relaxed); }
void set_fault(int32_t index) { __atomic_store_n(fault_word(index), 1u, __ATOMIC_RELAXED); }
bool across_blocks() { return across.load(std::memory_order_relaxed); }

const char* family_name(cuda::Family family) {
  switch (family) {
    case cuda::Family::kStepwise:
      return "stepwise";
    case cuda::Family::kSingleBlock:
      return "single_block";
    case cuda::Family::kCluster:
      return "cluster";
    case cuda::Family::kGrid:
      return "grid";
  }
  return "?";
}

LaunchContext::LaunchContext(int32_t device_index) {
  launch_.device = device_facts(device_index);
  const std::string obstacle = device_obstacle(launch_.device.arch);
  if (!obstacle.empty()) throw std::runtime_error("fused_lstm: " + obstacle);
  check_shim(aoti_torch_get_current_cuda_stream(device_index, &launch_.stream),
             "say which stream is the current one");
  launch_.blas = blas_.blas();
}

LaunchContext::LaunchContext(int32_t device_index, const Problem& problem, bool training, bool tf32)
    : LaunchContext(device_index) {
  launch_.math = tf32 ? cuda::Math::kTf32 : cuda::Math::kStrict;
  std::optional<cuda::Family> family = forced_family();
  launch_.forced = family.has_value();
  if (!family) family = choices().find(device_index, CallClass(problem, training, tf32));
  launch_.measured = family && !launch_.forced;
  if (family) launch_.family = *family;
  launch_.across_blocks = across_blocks();
  if (!launch_.across_blocks && !(launch_.forced && waits(launch_.family))) return;
  launch_.fault = fault_word(device_index);
  if (__atomic_exchange_n(launch_.fault, 0u, __ATOMIC_RELAXED) == 0) return;
  throw std::runtime_error(
      "fused_lstm: in an earlier call on this GPU a block waited in vain for another and gave up: "
      "that call's results are not to be used. FUSED_LSTM_CUDA_KERNELS=1 computes without blocks "
      "that wait for each other");
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
