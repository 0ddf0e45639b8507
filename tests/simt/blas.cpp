#include "blas.h"

#include <vector>

#include "reference.h"

namespace {

using fused_lstm::DType;
using fused_lstm::cuda::Product;

// op(M) [rows, columns] of a matrix as it lies.
std::vector<double> read(DType dtype, const void* data, int64_t stride, bool transposed,
                         int64_t rows, int64_t columns) {
  std::vector<double> values(static_cast<size_t>(rows * columns));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t at = transposed ? j * stride + i : i * stride + j;
      values[i * columns + j] = reference::load(dtype, data, at);
    }
  }
  return values;
}

bool allowed(const Product& p) {
  const DType out = p.in == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  return p.m > 0 && p.n > 0 && p.k > 0 && p.a && p.b && p.c && p.out == out &&
         p.a_row >= (p.a_transposed ? p.m : p.k) && p.b_row >= (p.b_transposed ? p.k : p.n) &&
         p.c_row >= p.n && (p.beta == 0.0f || p.beta == 1.0f);
}

}  // namespace

bool multiply_plainly(void*, const Product& p) {
  if (!allowed(p)) return false;
  const std::vector<double> a = read(p.in, p.a, p.a_row, p.a_transposed, p.m, p.k);
  const std::vector<double> b = read(p.in, p.b, p.b_row, p.b_transposed, p.k, p.n);
  std::vector<double> sums(static_cast<size_t>(p.n));
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      sums[j] = p.beta == 0.0f ? 0.0 : reference::load(p.out, p.c, i * p.c_row + j);
    }
    for (int64_t k = 0; k < p.k; ++k) {
      for (int64_t j = 0; j < p.n; ++j) sums[j] += a[i * p.k + k] * b[k * p.n + j];
    }
    for (int64_t j = 0; j < p.n; ++j) reference::store(p.out, p.c, i * p.c_row + j, sums[j]);
  }
  return true;
}
