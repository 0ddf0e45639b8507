// One run of the CPU kernels: torch's threads, and a workspace of the scratch pool.
#pragma once

#include "../kernels/frozen.h"
#include "../kernels/lstm.h"
#include "call.h"
#include "place_cpu.h"
#include "runtime.h"
#include "scratch.h"

namespace fused_lstm {

constexpr uintptr_t kReserveAlignment = 64;

// What forward keeps for backward: of its size where something is to be saved, else empty.
Tensor new_reserve(const CpuPlace& place, const Problem& problem, bool saves, Outputs* outputs);

void run_forward(const Problem& problem, const Outputs& outputs, const char* op);
void run_frozen(const Problem& problem, const Frozen& frozen, const Outputs& outputs,
                const char* op);
void run_backward(const Problem& problem, const Gradients& gradients, const char* op);

// Any kernel: bytes(threads) says how much workspace it takes, run(workspace, bytes, parallel)
// calls it. Nothing to do for an empty batch. Errors name the operator.
template <class Bytes, class Run>
void run_in_workspace(int64_t B, const char* op, const Bytes& bytes, const Run& run) {
  if (B == 0) return;
  const Parallel parallel = runtime::parallel();
  const size_t count = bytes(parallel.threads);
  const scratch::Buffer workspace(count);
  const Status status = run(workspace.data(), count, parallel);
  runtime::check_parallel();
  check_status(status, op, "");
}

}  // namespace fused_lstm
