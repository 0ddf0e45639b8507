// One run of the CPU kernels: torch's threads, and a workspace of the scratch pool.
#pragma once

#include "../kernels/frozen.h"
#include "../kernels/lstm.h"
#include "place_cpu.h"

namespace fused_lstm {

constexpr uintptr_t kReserveAlignment = 64;

// What forward keeps for backward: of its size where something is to be saved, else empty.
Tensor new_reserve(const CpuPlace& place, const Problem& problem, bool saves, Outputs* outputs);

// Nothing to do for an empty batch. Errors name the operator.
void run_forward(const Problem& problem, const Outputs& outputs, const char* op);
void run_backward(const Problem& problem, const Gradients& gradients, const char* op);
void run_frozen(const Problem& problem, const Frozen& frozen, const Outputs& outputs);

}  // namespace fused_lstm
