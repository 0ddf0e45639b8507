// Dense products by the cuBLAS that torch has loaded, on torch's own handle: its stream, workspace
// and settings are then those of every other product of the program. cuBLAS is not linked, so that
// the extension needs no cuBLAS of its own.
#pragma once

#include <string>

#include "../kernels/cuda/cuda.h"

namespace fused_lstm {

// Must not move between blas() and the last product: the context is this object.
class TorchBlas {
 public:
  cuda::Blas blas() { return {this, multiply}; }
  // Why a product was refused; empty when none was.
  const std::string& error() const { return error_; }

 private:
  static bool multiply(void* context, const cuda::Product& product);
  bool queue(const cuda::Product& product);

  void* handle_ = nullptr;  // cublasHandle_t, asked for by the first product
  std::string error_;
};

}  // namespace fused_lstm
