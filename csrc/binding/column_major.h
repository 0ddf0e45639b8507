// A row-major product of cuda.h as a BLAS sees it. BLAS counts columns: a row-major matrix is, to
// it, the transposed one, so C = op(A) op(B) is computed as C^T = op(B)^T op(A)^T, with the
// operands swapped and their flags kept. The one place with that logic; no torch and no CUDA header
// here, so that tests/native proves it with plain loops.
#pragma once

#include <cstdint>
#include <optional>

#include "../kernels/cuda/cuda.h"

namespace fused_lstm {

// C [m, n] = op(A) [m, k] op(B) [k, n] + beta C, column-major; ld* is the distance of columns.
struct ColumnMajorProduct {
  bool a_transposed, b_transposed;
  int64_t m, n, k;
  const void* a;
  int64_t lda;
  const void* b;
  int64_t ldb;
  void* c;
  int64_t ldc;
};

// Nothing where rows overlap, which no BLAS accepts.
inline std::optional<ColumnMajorProduct> column_major(const cuda::Product& p) {
  // The stride of a single row says nothing, and may be anything.
  const auto leading = [](int64_t rows, int64_t columns, int64_t stride) -> int64_t {
    if (rows == 1) return columns;
    return stride >= columns ? stride : 0;
  };
  const int64_t lda = p.a_transposed ? leading(p.k, p.m, p.a_row) : leading(p.m, p.k, p.a_row);
  const int64_t ldb = p.b_transposed ? leading(p.n, p.k, p.b_row) : leading(p.k, p.n, p.b_row);
  const int64_t ldc = leading(p.m, p.n, p.c_row);
  if (p.m < 1 || p.n < 1 || p.k < 1 || lda == 0 || ldb == 0 || ldc == 0) return std::nullopt;
  return ColumnMajorProduct{
      p.b_transposed, p.a_transposed, p.n, p.m, p.k, p.b, ldb, p.a, lda, p.c, ldc};
}

}  // namespace fused_lstm
