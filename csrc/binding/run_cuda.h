// One run of the CUDA kernels: everything on the current stream, workspace and reserve from torch's
// caching allocator. The twin of run_cpu.h.
#pragma once

#include "../kernels/lstm.h"
#include "place_cuda.h"

namespace fused_lstm {

constexpr uintptr_t kDeviceReserveAlignment = 256;

Tensor new_bytes(const CudaPlace& place, size_t bytes);  // uint8, contents undefined

// What forward keeps for backward: of its size where something is to be saved, else empty.
Tensor new_reserve(const CudaPlace& place, const Problem& problem, bool saves, Outputs* outputs);

// Nothing to do for an empty batch. Errors name the operator.
void run_forward(const CudaPlace& place, const Problem& problem, const Outputs& outputs, bool tf32,
                 const char* op);
void run_backward(const CudaPlace& place, const Problem& problem, const Gradients& gradients,
                  bool tf32, const char* op);

}  // namespace fused_lstm
