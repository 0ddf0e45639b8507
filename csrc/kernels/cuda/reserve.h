// Where the arrays of a reserve begin, and how many rows a call has: the part of cuda.h's contract
// that every kernel family shares.
#pragma once

#include <cstdint>

#include "cuda.h"

namespace fused_lstm {
namespace cuda {

constexpr int64_t kAlignment = 256;
constexpr int64_t aligned(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

constexpr int64_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// N: rows of x and y.
inline int64_t row_count(const Problem& p) {
  if (p.batch_sizes == nullptr) return p.T * p.B;
  int64_t rows = 0;
  for (int64_t t = 0; t < p.T; ++t) rows += p.batch_sizes[t];
  return rows;
}

struct ReserveLayout {
  int64_t gates[2];      // [N, 4H] as stored; nothing where they are computed again
  int64_t cells[2];      // [N, H] as computed
  int64_t projected[2];  // [N, H] as stored, with a projection only
  int64_t bytes;
};

inline ReserveLayout reserve_layout(const Problem& p) {
  const int64_t rows = row_count(p), stored = element_bytes(p.dtype);
  const int64_t computed = p.dtype == DType::kFloat64 ? 8 : 4;
  const bool projects = p.weights[0].w_hr != nullptr;
  ReserveLayout layout = {};
  const auto take = [&](int64_t (&where)[2], int64_t bytes) {
    for (int32_t d = 0; d < p.D; ++d) {
      where[d] = layout.bytes;
      layout.bytes += aligned(bytes);
    }
  };
  take(layout.gates, p.recompute ? 0 : rows * 4 * p.H * stored);
  take(layout.cells, rows * p.H * computed);
  if (projects) take(layout.projected, rows * p.H * stored);
  return layout;
}

}  // namespace cuda
}  // namespace fused_lstm
