// Memory on a CUDA device. Copies are torch's own, queued on the current stream.
#include "place_cuda.h"

namespace fused_lstm {
namespace {

DeviceId cuda_device_of(const Tensor& x) {
  DeviceId device{0, 0};
  check_shim(aoti_torch_get_device_type(x.get(), &device.type), "read a tensor's device");
  check_shim(aoti_torch_get_device_index(x.get(), &device.index), "read a tensor's device");
  if (device.type != aoti_torch_device_type_cuda()) {
    reject("x", "a tensor on a CUDA device like the others", "one elsewhere");
  }
  return device;
}

}  // namespace

DeviceGuard::DeviceGuard(int32_t index) {
  check_shim(aoti_torch_create_device_guard(index, &handle_), "select a CUDA device");
}

DeviceGuard::~DeviceGuard() { aoti_torch_delete_device_guard(handle_); }

CudaPlace::CudaPlace(const Tensor& x) : Place(cuda_device_of(x)), guard_(device().index) {}

Tensor CudaPlace::contiguous_copy(const View& view) const {
  Tensor copy = empty_like(view);
  check_shim(aoti_torch_copy_(copy.get(), view.tensor->get(), 1), "copy a tensor");
  return copy;
}

void CudaPlace::clear(const Tensor& tensor, size_t /*bytes*/) const {
  check_shim(aoti_torch_zero_(tensor.get()), "clear a tensor");
}

}  // namespace fused_lstm
