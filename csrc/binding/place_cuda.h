// A CUDA device as a Place: memory by torch's caching allocator, in the order of the current
// stream.
#pragma once

#include "place.h"

namespace fused_lstm {

// Makes a device the current one for the length of a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t index);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  DeviceGuardHandle handle_ = nullptr;
};

class CudaPlace final : public Place {
 public:
  // The device that x lies on; rejects a tensor that is on none.
  explicit CudaPlace(const Tensor& x);
  Tensor contiguous_copy(const View& view) const override;
  void clear(const Tensor& tensor, size_t bytes) const override;
  void expect_writes(void* /*data*/, size_t /*bytes*/) const override {}

 private:
  DeviceGuard guard_;
};

}  // namespace fused_lstm
