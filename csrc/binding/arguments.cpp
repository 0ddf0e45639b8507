#include "arguments.h"

namespace fused_lstm {

bool is_dense(const View& v) {
  int64_t stride = 1;
  bool dense = true;
  for (int64_t k = v.dim; k-- > 0;) {
    dense = dense && (v.sizes[k] <= 1 || v.strides[k] == stride);
    stride *= v.sizes[k];
  }
  return dense || stride == 0;
}

const void* Arguments::contiguous(const char* name, const OptionalTensor& tensor,
                                  const char* letters, Sizes sizes) {
  return tensor ? contiguous(name, *tensor, letters, sizes) : nullptr;
}

const void* Arguments::contiguous(const char* name, const Tensor& tensor, const char* letters,
                                  Sizes sizes) {
  const View v = look(name, tensor);
  expect_dtype(v, dtype_);
  expect_sizes(v, letters, sizes);
  return is_dense(v) ? read_data(tensor) : copied(v);
}

const void* Arguments::aligned_reserve(const Tensor& reserve, size_t bytes, uintptr_t alignment) {
  const View v = look("reserve", reserve);
  expect_dtype(v, torch_uint8());
  expect_sizes(v, "[bytes]", {static_cast<int64_t>(bytes)});
  if (v.strides[0] != 1 && bytes > 1) reject("reserve", "stride 1", std::to_string(v.strides[0]));
  const void* const data = read_data(reserve);
  return reinterpret_cast<uintptr_t>(data) % alignment == 0 ? data : copied(v);
}

View Arguments::look(const char* name, const Tensor& tensor) const {
  return view(name, tensor, place_.device());
}

const void* Arguments::rows(const View& v, int64_t* t_stride, int64_t* b_stride) {
  const int64_t last = v.dim - 1, size = v.sizes[last];
  const bool padded = v.dim == 3;
  if (v.strides[last] == 1 || size == 1) {
    *t_stride = padded ? v.strides[0] : 0;
    *b_stride = v.strides[last - 1];
    return read_data(*v.tensor);
  }
  *t_stride = padded ? v.sizes[1] * size : 0;
  *b_stride = size;
  return copied(v);
}

const uint8_t* Arguments::bytes(const View& v) {
  return static_cast<const uint8_t*>(is_dense(v) ? read_data(*v.tensor) : copied(v));
}

const void* Arguments::copied(const View& v) {
  copies_.push_back(place_.contiguous_copy(v));
  return read_data(copies_.back());
}

}  // namespace fused_lstm
