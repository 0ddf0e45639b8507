// What a call puts on its stream, kernels and dense products, one after the other. After the first
// that is refused nothing more is queued, and status() and last_error() say why.
#pragma once

#include "cuda.h"
#include "device.cuh"
#include "reserve.h"

namespace fused_lstm {
namespace cuda {

// What last_error() returns from now on, in this thread (lstm.cu).
void set_last_error(const char* format, ...) __attribute__((format(printf, 1, 2)));

// A row-major operand as it lies; op(A) is its transpose when transposed.
// Named where it is passed (Operand{...}): nvcc mistranslates a bare brace list as an argument.
struct Operand {
  const void* data;
  int64_t row;  // stride of its rows, in elements
  bool transposed = false;
};

class Queue {
 public:
  Queue(const Launch& launch, DType dtype) : launch_(launch), dtype_(dtype) {}

  template <class Arguments>
  void run(void (*kernel)(Arguments), const device::Launch& how, const Arguments& arguments) {
    if (!ok_) return;
    const int error =
        device::launch(kernel, how, static_cast<cudaStream_t>(launch_.stream), arguments);
    if (error != 0) refuse(how, error);
  }

  // The same for a launch that the device may have no room for: false, and no error, where it has
  // none.
  template <class Arguments>
  bool try_run(void (*kernel)(Arguments), const device::Launch& how, const Arguments& arguments) {
    if (!ok_) return true;
    const int error =
        device::launch(kernel, how, static_cast<cudaStream_t>(launch_.stream), arguments);
    if (error == 0) return true;
    if (device::has_no_room(error)) {
      device::forget_error();
      return false;
    }
    refuse(how, error);
    return true;
  }

  // c [m, n] = op(a) [m, k] op(b) [k, n], added to c when `add`. a and b as stored, c as computed.
  void multiply(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, void* c,
                bool add) {
    if (!ok_) return;
    Product product;
    product.m = m;
    product.n = n;
    product.k = k;
    product.a = a.data;
    product.b = b.data;
    product.c = c;
    product.a_row = a.row;
    product.b_row = b.row;
    product.c_row = n;
    product.a_transposed = a.transposed;
    product.b_transposed = b.transposed;
    product.beta = add ? 1.0f : 0.0f;
    product.in = dtype_;
    product.out = dtype_ == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    product.math = launch_.math;
    if (launch_.blas.multiply(launch_.blas.context, product)) return;
    ok_ = false;
    set_last_error("the BLAS refused a product [%lld, %lld] x [%lld, %lld]",
                   static_cast<long long>(m), static_cast<long long>(k), static_cast<long long>(k),
                   static_cast<long long>(n));
  }

  Status status() const { return ok_ ? Status::kOk : Status::kLaunchFailed; }

 private:
  void refuse(const device::Launch& how, int error) {
    ok_ = false;
    set_last_error("CUDA refused a launch of %u x %u blocks of %u x %u threads: %s", how.grid.x,
                   how.grid.y, how.block.x, how.block.y, device::error_text(error));
  }

  const Launch& launch_;
  const DType dtype_;
  bool ok_ = true;
};

// Blocks that cover [rows, columns], neighbouring threads on neighbouring columns, for kernels that
// use for_each_element: a grid has at most 65535 blocks in y.
inline device::Launch cover(int64_t rows, int64_t columns, int64_t most_blocks = 65535) {
  constexpr int64_t kThreads = 256, kMostColumns = 128;
  const int64_t x = columns < kMostColumns ? (columns + 31) / 32 * 32 : kMostColumns;
  const int64_t y = kThreads / x;
  const int64_t blocks_x = (columns + x - 1) / x, blocks_y = (rows + y - 1) / y;
  device::Launch how;
  how.block = dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
  how.grid = dim3(static_cast<unsigned>(blocks_x < most_blocks ? blocks_x : most_blocks),
                  static_cast<unsigned>(blocks_y < most_blocks ? blocks_y : most_blocks));
  return how;
}

// Calls body(row, column) for every element of [rows, columns], each by one thread of a launch that
// cover() shaped.
template <class Body>
DEVICE void for_each_element(int64_t rows, int64_t columns, const Body& body) {
  const int64_t first_column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t first_row = int64_t{blockIdx.y} * blockDim.y + threadIdx.y;
  for (int64_t column = first_column; column < columns; column += int64_t{gridDim.x} * blockDim.x) {
    for (int64_t row = first_row; row < rows; row += int64_t{gridDim.y} * blockDim.y) {
      body(row, column);
    }
  }
}

}  // namespace cuda
}  // namespace fused_lstm
