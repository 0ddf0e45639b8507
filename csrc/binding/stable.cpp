// The helpers of stable.h. Nothing here goes through torch's dispatcher: an allocation through the
// C shim costs a quarter of one through it.
#include "stable.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "runtime.h"
#include "scratch.h"

namespace fused_lstm {
namespace {

// The device "cpu", and not "cpu:0", which torch tells apart in places.
constexpr int32_t kNoIndex = -1;

// Below this, torch's own allocator is as good as the pool and a little quicker.
constexpr size_t kSmallestPooledTensor = size_t{32} << 10;

// Fewer elements are copied sooner than threads could start.
constexpr int64_t kWorthThreads = 32768;

template <class Iterator>
std::string bracketed(Iterator begin, Iterator end) {
  std::string text = "[";
  for (Iterator it = begin; it != end; ++it) {
    if (it != begin) text += ", ";
    text += std::to_string(*it);
  }
  return text + "]";
}

// [outer, middle, inner] elements with any strides, written one after the other.
struct StridedCopy {
  const char* from;
  char* to;
  int64_t middle, inner;
  int64_t outer_stride, middle_stride, inner_stride;  // in elements
  size_t bytes;                                       // of one element
};

template <class Element>
void copy_row(const char* from, int64_t stride, int64_t size, char* to) {
  const Element* const source = reinterpret_cast<const Element*>(from);
  Element* const target = reinterpret_cast<Element*>(to);
  for (int64_t i = 0; i < size; ++i) target[i] = source[i * stride];
}

// Rows [begin, end) of the outer * middle rows, in the form of a task of Parallel::run.
void copy_rows(void* context, int64_t begin, int64_t end) {
  const StridedCopy& c = *static_cast<const StridedCopy*>(context);
  const int64_t bytes = static_cast<int64_t>(c.bytes);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = row / c.middle * c.outer_stride + row % c.middle * c.middle_stride;
    const char* const from = c.from + offset * bytes;
    char* const to = c.to + row * c.inner * bytes;
    if (c.inner_stride == 1) {
      std::memcpy(to, from, static_cast<size_t>(c.inner * bytes));
    } else if (bytes == 8) {
      copy_row<uint64_t>(from, c.inner_stride, c.inner, to);
    } else if (bytes == 4) {
      copy_row<uint32_t>(from, c.inner_stride, c.inner, to);
    } else {
      copy_row<uint16_t>(from, c.inner_stride, c.inner, to);
    }
  }
}

}  // namespace

void reject(const char* name, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(std::string(name) + ": expected " + expected + ", got " + got);
}

void check_shim(AOTITorchError code, const char* what) {
  if (code != TORCH_SUCCESS) throw std::runtime_error(std::string("torch could not ") + what);
}

View view(const char* name, const Tensor& tensor) {
  static const int32_t cpu = aoti_torch_device_type_cpu();
  static const int32_t strided = aoti_torch_layout_strided();
  const AtenTensorHandle handle = tensor.get();
  bool defined = false;
  check_shim(aoti_torch_is_defined(handle, &defined), "look at a tensor");
  if (!defined) reject(name, "a tensor", "an undefined one");
  int32_t device = 0, layout = 0;
  View view{name, &tensor, 0, 0, nullptr, nullptr};
  int64_t *sizes = nullptr, *strides = nullptr;
  check_shim(aoti_torch_get_device_type(handle, &device), "read a tensor's device");
  if (device != cpu) reject(name, "a tensor on the CPU", "one on another device");
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
  return "another dtype";
}

size_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

int32_t torch_uint8() { return aoti_torch_dtype_uint8(); }
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

Tensor empty(Sizes sizes, int32_t torch_dtype) {
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
                               torch_dtype, aoti_torch_device_type_cpu(), kNoIndex, &handle);
  if (code != TORCH_SUCCESS) {
    throw std::runtime_error("torch could not allocate a tensor of sizes " +
                             bracketed(sizes.begin(), sizes.end()));
  }
  return Tensor(handle);
}

Tensor contiguous_copy(const View& view) {
  if (view.dim > 3) reject(view.name, "at most three dimensions", describe_sizes(view));
  int64_t sizes[3] = {1, 1, 1}, strides[3] = {0, 0, 0};
  std::copy(view.sizes, view.sizes + view.dim, sizes + 3 - view.dim);
  std::copy(view.strides, view.strides + view.dim, strides + 3 - view.dim);
  Tensor copy = view.dim == 3   ? empty({sizes[0], sizes[1], sizes[2]}, view.dtype)
                : view.dim == 2 ? empty({sizes[1], sizes[2]}, view.dtype)
                                : empty({sizes[2]}, view.dtype);
  StridedCopy plan{static_cast<const char*>(read_data(*view.tensor)),
                   static_cast<char*>(write_data(copy)),
                   sizes[1],
                   sizes[2],
                   strides[0],
                   strides[1],
                   strides[2],
                   aoti_torch_dtype_element_size(view.dtype)};
  const int64_t rows = sizes[0] * sizes[1];
  if (rows * sizes[2] < kWorthThreads) {
    copy_rows(&plan, 0, rows);
  } else {
    runtime::parallel().run(rows, copy_rows, &plan);
    runtime::check_parallel();
  }
  return copy;
}

Tensor empty_scratch(size_t bytes) {
  if (bytes < kSmallestPooledTensor) return empty({static_cast<int64_t>(bytes)}, torch_uint8());
  const scratch::Block block = scratch::acquire(bytes);
  const int64_t size = static_cast<int64_t>(bytes), stride = 1;
  // The deleter's context carries the block's size, so nothing more has to be allocated.
  const auto give_back = [](void* data, void* block_bytes) {
    scratch::release({data, reinterpret_cast<size_t>(block_bytes)});
  };
  AtenTensorHandle handle = nullptr;
  const AOTITorchError code =
      torch_from_blob(block.data, 1, &size, &stride, 0, torch_uint8(), aoti_torch_device_type_cpu(),
                      kNoIndex, &handle, aoti_torch_layout_strided(), nullptr, 0, give_back,
                      reinterpret_cast<void*>(block.bytes));
  if (code != TORCH_SUCCESS) {
    scratch::release(block);
    throw std::runtime_error("torch could not make a tensor of the scratch pool's memory");
  }
  return Tensor(handle);
}

}  // namespace fused_lstm
