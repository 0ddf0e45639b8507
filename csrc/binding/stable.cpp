// The helpers of stable.h. Nothing here goes through torch's dispatcher: an allocation through the
// C shim costs a quarter of one through it.
#include "stable.h"

#include <stdexcept>

namespace fused_lstm {
namespace {

template <class Iterator>
std::string bracketed(Iterator begin, Iterator end) {
  std::string text = "[";
  for (Iterator it = begin; it != end; ++it) {
    if (it != begin) text += ", ";
    text += std::to_string(*it);
  }
  return text + "]";
}

std::string describe_device(DeviceId device) {
  if (device.type == aoti_torch_device_type_cpu()) return "the CPU";
  const std::string index = device.index == kNoIndex ? "" : ":" + std::to_string(device.index);
  return device.type == aoti_torch_device_type_cuda() ? "cuda" + index : "another device";
}

void expect_device(const char* name, AtenTensorHandle handle, DeviceId wanted) {
  DeviceId actual{0, kNoIndex};
  check_shim(aoti_torch_get_device_type(handle, &actual.type), "read a tensor's device");
  if (wanted.index != kNoIndex) {
    check_shim(aoti_torch_get_device_index(handle, &actual.index), "read a tensor's device");
  }
  if (actual.type == wanted.type && actual.index == wanted.index) return;
  reject(name, "a tensor on " + describe_device(wanted), "one on " + describe_device(actual));
}

}  // namespace

void reject(const char* name, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(std::string(name) + ": expected " + expected + ", got " + got);
}

void check_shim(AOTITorchError code, const char* what) {
  if (code != TORCH_SUCCESS) throw std::runtime_error(std::string("torch could not ") + what);
}

DeviceId cpu_device() {
  static const int32_t type = aoti_torch_device_type_cpu();
  return {type, kNoIndex};
}

View view(const char* name, const Tensor& tensor, DeviceId device) {
  static const int32_t strided = aoti_torch_layout_strided();
  const AtenTensorHandle handle = tensor.get();
  bool defined = false;
  check_shim(aoti_torch_is_defined(handle, &defined), "look at a tensor");
  if (!defined) reject(name, "a tensor", "an undefined one");
  int32_t layout = 0;
  View view{name, &tensor, 0, 0, nullptr, nullptr};
  int64_t *sizes = nullptr, *strides = nullptr;
  expect_device(name, handle, device);
  check_shim(aoti_torch_get_layout(handle, &layout), "read a tensor's layout");
  if (layout != strided) reject(name, "a dense tensor", "one with another layout");
  check_shim(aoti_torch_get_dtype(handle, &view.dtype), "read a tensor's dtype");
  check_shim(aoti_torch_get_dim(handle, &view.dim), "read a tensor's rank");
  check_shim(aoti_torch_get_sizes(handle, &sizes), "read a tensor's sizes");
  check_shim(aoti_torch_get_strides(handle, &strides), "read a tensor's strides");
  view.sizes = sizes;
  view.strides = strides;
  return view;
}

void expect_dtype(const View& view, int32_t dtype) {
  if (view.dtype != dtype) {
    reject(view.name, std::string("dtype ") + dtype_name(dtype), dtype_name(view.dtype));
  }
}

bool has_sizes(const View& view, Sizes sizes) {
  if (view.dim != static_cast<int64_t>(sizes.size())) return false;
  const int64_t* actual = view.sizes;
  for (const int64_t size : sizes) {
    if (*actual++ != size) return false;
  }
  return true;
}

void expect_sizes(const View& view, const char* letters, Sizes sizes) {
  if (has_sizes(view, sizes)) return;
  reject(view.name, std::string(letters) + " = " + bracketed(sizes.begin(), sizes.end()),
         describe_sizes(view));
}

std::string describe_sizes(const View& view) {
  return bracketed(view.sizes, view.sizes + view.dim);
}

std::optional<DType> kernel_dtype(int32_t torch_dtype) {
  if (torch_dtype == aoti_torch_dtype_float32()) return DType::kFloat32;
  if (torch_dtype == aoti_torch_dtype_float64()) return DType::kFloat64;
  if (torch_dtype == aoti_torch_dtype_bfloat16()) return DType::kBFloat16;
  if (torch_dtype == aoti_torch_dtype_float16()) return DType::kFloat16;
  return std::nullopt;
}

const char* dtype_name(int32_t torch_dtype) {
  if (torch_dtype == aoti_torch_dtype_float32()) return "float32";
  if (torch_dtype == aoti_torch_dtype_float64()) return "float64";
  if (torch_dtype == aoti_torch_dtype_bfloat16()) return "bfloat16";
  if (torch_dtype == aoti_torch_dtype_float16()) return "float16";
  if (torch_dtype == torch_int64()) return "int64";
  if (torch_dtype == torch_uint8()) return "uint8";
  if (torch_dtype == torch_int8()) return "int8";
  return "another dtype";
}

size_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

int32_t torch_uint8() { return aoti_torch_dtype_uint8(); }
int32_t torch_int8() { return aoti_torch_dtype_int8(); }
int32_t torch_bfloat16() { return aoti_torch_dtype_bfloat16(); }
int32_t torch_int64() { return aoti_torch_dtype_int64(); }

const void* read_data(const Tensor& tensor) {
  const void* data = nullptr;
  check_shim(torch_get_const_data_ptr(tensor.get(), &data), "read a tensor's data");
  return data;
}

void* write_data(const Tensor& tensor) {
  void* data = nullptr;
  check_shim(torch_get_mutable_data_ptr(tensor.get(), &data), "write a tensor's data");
  return data;
}

Tensor empty(Sizes sizes, int32_t torch_dtype, DeviceId device) {
  constexpr size_t kMostDims = 4;
  int64_t strides[kMostDims];
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= sizes.begin()[d] > 0 ? sizes.begin()[d] : 1;
  }
  AtenTensorHandle handle = nullptr;
  const AOTITorchError code =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
                               torch_dtype, device.type, device.index, &handle);
  if (code != TORCH_SUCCESS) {
    // The shim keeps the reason to itself and prints it; this is the likely one. Programs that try
    // again with a smaller batch know it by the words "CUDA out of memory", and so does ops.py.
    throw std::runtime_error(
        std::string(device.type == aoti_torch_device_type_cuda() ? "CUDA out of memory"
                                                                 : "Out of memory") +
        ": torch could not allocate a tensor of sizes " + bracketed(sizes.begin(), sizes.end()));
  }
  return Tensor(handle);
}

}  // namespace fused_lstm
