// A workspace handed out piece by piece.
#pragma once

#include "steps.h"
#include "stepwise.h"

namespace fused_lstm {
namespace cuda {

// Each piece is aligned; where there is no workspace, they are only counted.
class Pieces {
 public:
  explicit Pieces(void* base) : base_(static_cast<char*>(base)) {}
  // Null when not wanted.
  template <class T>
  void take(T*& piece, int64_t bytes, bool wanted = true) {
    piece = nullptr;
    if (!wanted) return;
    if (base_ != nullptr) piece = reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += aligned(bytes);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// Which dense products a backward of resident weights ends with, and the elements of the largest
// result.
struct DenseProducts {
  bool dw_ih = false, dw_hh = false;
  int64_t largest;
  DenseProducts(const Problem& p, const Gradients& gradients)
      : largest(gradients.dx != nullptr ? row_count(p) * p.I : 0) {
    for (int32_t d = 0; d < p.D; ++d) {
      dw_ih = dw_ih || gradients.weights[d].dw_ih != nullptr;
      dw_hh = dw_hh || gradients.weights[d].dw_hh != nullptr;
    }
    if (dw_ih && largest < 4 * p.H * p.I) largest = 4 * p.H * p.I;
    if (dw_hh && largest < 4 * p.H * p.H) largest = 4 * p.H * p.H;
  }
};

// Where it keeps what they need.
struct DenseScratch {
  void* dz;      // [D, N, 4H] as stored; gates that are computed again lie there first
  void* h_prev;  // [N, H] as stored: what a step read, for dw_hh and gates
  void* x;       // [N, I] where dw_ih or gates need it and x has to be gathered
  float* z;      // [z_rows, 4H] where gates of a 16-bit type are computed again
  float* db;     // [D, parts, 4H]
  float* sums;   // products of 16-bit types before they are rounded: the largest one
  int64_t z_rows, parts;
};

inline DenseScratch take_dense(Pieces& pieces, const Problem& p, const Gradients& gradients,
                               int64_t parts) {
  const int64_t rows = row_count(p), stored = element_bytes(p.dtype);
  const int64_t row_of_z = 4 * p.H * int64_t{sizeof(float)};
  const int64_t most = stepwise::kChunkBytes / row_of_z;  // longer calls: a stretch at a time
  const DenseProducts ends(p, gradients);
  DenseScratch dense;
  dense.parts = parts;
  dense.z_rows = stored == 4 || most > rows ? rows : most;
  pieces.take(dense.dz, p.D * rows * 4 * p.H * stored);
  pieces.take(dense.h_prev, rows * p.H * stored, ends.dw_hh || p.recompute);
  pieces.take(dense.x, rows * p.I * stored,
              (ends.dw_ih || p.recompute) && (p.marks != nullptr || !rows_of_x_are_uniform(p)));
  pieces.take(dense.z, dense.z_rows * row_of_z, p.recompute && stored == 2);
  pieces.take(dense.db, p.D * parts * 4 * p.H * int64_t{sizeof(float)});
  pieces.take(dense.sums, ends.largest * int64_t{sizeof(float)}, stored == 2 && ends.largest > 0);
  return dense;
}

}  // namespace cuda
}  // namespace fused_lstm
