// A workspace handed out piece by piece.
#pragma once

#include "reserve.h"

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

}  // namespace cuda
}  // namespace fused_lstm
