#include "run_cpu.h"

namespace fused_lstm {

Tensor new_reserve(const CpuPlace& place, const Problem& problem, bool saves, Outputs* outputs) {
  if (!saves || problem.B == 0) return place.empty({0}, torch_uint8());
  Tensor reserve = place.empty_scratch(cpu::reserve_bytes(problem));
  outputs->reserve = write_data(reserve);
  return reserve;
}

void run_forward(const Problem& problem, const Outputs& outputs, const char* op) {
  run_in_workspace(
      problem.B, op,
      [&](int32_t threads) {
        return cpu::forward_workspace_bytes(problem, outputs.reserve != nullptr, threads);
      },
      [&](void* workspace, size_t bytes, const Parallel& parallel) {
        return cpu::forward(problem, outputs, workspace, bytes, parallel);
      });
}

void run_frozen(const Problem& problem, const Frozen& frozen, const Outputs& outputs,
                const char* op) {
  run_in_workspace(
      problem.B, op, [&](int32_t threads) { return cpu::frozen_workspace_bytes(problem, threads); },
      [&](void* workspace, size_t bytes, const Parallel& parallel) {
        return cpu::frozen_forward(problem, frozen, outputs, workspace, bytes, parallel);
      });
}

void run_backward(const Problem& problem, const Gradients& gradients, const char* op) {
  run_in_workspace(
      problem.B, op,
      [&](int32_t threads) { return cpu::backward_workspace_bytes(problem, gradients, threads); },
      [&](void* workspace, size_t bytes, const Parallel& parallel) {
        return cpu::backward(problem, gradients, workspace, bytes, parallel);
      });
}

}  // namespace fused_lstm
