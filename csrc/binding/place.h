// What differs from device to device in handling the tensors of a call: where they live, and how
// their memory is copied and cleared. place_cpu.h and place_cuda.h are the two that there are.
#pragma once

#include "stable.h"

namespace fused_lstm {

class Place {
 public:
  explicit Place(DeviceId device) : device_(device) {}
  virtual ~Place() = default;
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  DeviceId device() const { return device_; }
  Tensor empty(Sizes sizes, int32_t torch_dtype) const {
    return fused_lstm::empty(sizes, torch_dtype, device_);
  }

  // A new contiguous tensor of the sizes and dtype of one of at most three dimensions.
  Tensor empty_like(const View& view) const {
    const int64_t* const n = view.sizes;
    if (view.dim == 3) return empty({n[0], n[1], n[2]}, view.dtype);
    if (view.dim == 2) return empty({n[0], n[1]}, view.dtype);
    if (view.dim == 1) return empty({n[0]}, view.dtype);
    reject(view.name, "one to three dimensions", describe_sizes(view));
  }

  // A contiguous copy of a tensor of one to three dimensions.
  virtual Tensor contiguous_copy(const View& view) const = 0;
  // Sets all of a tensor's `bytes` to zero.
  virtual void clear(const Tensor& tensor, size_t bytes) const = 0;
  // Told of the memory of a large result before anything is written there.
  virtual void expect_writes(void* data, size_t bytes) const = 0;

 private:
  DeviceId device_;
};

}  // namespace fused_lstm
