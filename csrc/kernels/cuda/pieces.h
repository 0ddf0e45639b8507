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

}  // namespace cuda
}  // namespace fused_lstm
