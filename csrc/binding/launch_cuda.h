// What a CUDA kernel is told beside its problem: the device's facts, the current stream, products,
// and the family that a test or a benchmark forces.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../kernels/cuda/cuda.h"
#include "blas_cuda.h"
#include "choices.h"

namespace fused_lstm {

// Read once per device. Throws std::runtime_error with the remedy where there is no such device or
// the driver is too old.
const cuda::Device& device_facts(int32_t index);

// Why this build cannot run on that device, with the remedy; or "".
std::string device_obstacle(int32_t arch);
std::vector<std::string> compiled_architectures();

// The family that computes every call of the process from now on; nothing: the plan chooses.
void force_family(std::optional<cuda::Family> family);
std::optional<cuda::Family> forced_family();
// What was measured to be the quickest; every call of the process asks it.
Choices& choices();
// Whether the plan may choose families whose blocks wait for each other; not unless this was
// called.
void set_across_blocks(bool on);
bool across_blocks();
// As if a block of an earlier call on that device had waited in vain: for tests.
void set_fault(int32_t index);
const char* family_name(cuda::Family family);

// The launch of a call on the current stream of a device; throws where this build has no code for
// it.
class LaunchContext {
 public:
  LaunchContext(int32_t device_index, const Problem& problem, bool training, bool tf32);
  explicit LaunchContext(int32_t device_index);  // of what is no LSTM: no family
  LaunchContext(const LaunchContext&) = delete;
  LaunchContext& operator=(const LaunchContext&) = delete;

  const cuda::Launch& launch() const { return launch_; }
  // Throws when the kernels did not succeed, saying what CUDA or cuBLAS said.
  void check(Status status, const char* op) const;

 private:
  TorchBlas blas_;
  cuda::Launch launch_;
};

}  // namespace fused_lstm
