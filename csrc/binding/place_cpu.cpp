// Memory on the CPU: copies by our own threads, large pages, the scratch pool.
#include "place_cpu.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "runtime.h"
#include "scratch.h"

namespace fused_lstm {
namespace {

// Below this, torch's own allocator is as good as the pool and a little quicker.
constexpr size_t kSmallestPooledTensor = size_t{32} << 10;

// Fewer elements are copied sooner than threads could start.
constexpr int64_t kWorthThreads = 32768;

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
    } else if (bytes == 1) {
      copy_row<uint8_t>(from, c.inner_stride, c.inner, to);
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

Tensor CpuPlace::contiguous_copy(const View& view) const {
  Tensor copy = empty_like(view);
  int64_t sizes[3] = {1, 1, 1}, strides[3] = {0, 0, 0};
  std::copy(view.sizes, view.sizes + view.dim, sizes + 3 - view.dim);
  std::copy(view.strides, view.strides + view.dim, strides + 3 - view.dim);
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

void CpuPlace::clear(const Tensor& tensor, size_t bytes) const {
  if (bytes > 0) std::memset(write_data(tensor), 0, bytes);
}

void CpuPlace::expect_writes(void* data, size_t bytes) const {
  scratch::prefer_large_pages(data, bytes);
}

Tensor CpuPlace::empty_scratch(size_t bytes) const {
  if (bytes < kSmallestPooledTensor) return empty({static_cast<int64_t>(bytes)}, torch_uint8());
  const scratch::Block block = scratch::acquire(bytes);
  const int64_t size = static_cast<int64_t>(bytes), stride = 1;
  // The deleter's context carries the block's size, so nothing more has to be allocated.
  const auto give_back = [](void* data, void* block_bytes) {
    scratch::release({data, reinterpret_cast<size_t>(block_bytes)});
  };
  AtenTensorHandle handle = nullptr;
  const AOTITorchError code = torch_from_blob(
      block.data, 1, &size, &stride, 0, torch_uint8(), device().type, device().index, &handle,
      aoti_torch_layout_strided(), nullptr, 0, give_back, reinterpret_cast<void*>(block.bytes));
  if (code != TORCH_SUCCESS) {
    scratch::release(block);
    throw std::runtime_error("torch could not make a tensor of the scratch pool's memory");
  }
  return Tensor(handle);
}

}  // namespace fused_lstm
