#include "run_cpu.h"

#include "call.h"
#include "runtime.h"
#include "scratch.h"

namespace fused_lstm {

Tensor new_reserve(const CpuPlace& place, const Problem& problem, bool saves, Outputs* outputs) {
  if (!saves || problem.B == 0) return place.empty({0}, torch_uint8());
  Tensor reserve = place.empty_scratch(cpu::reserve_bytes(problem));
  outputs->reserve = write_data(reserve);
  return reserve;
}

void run_forward(const Problem& problem, const Outputs& outputs, const char* op) {
  if (problem.B == 0) return;
  const Parallel parallel = runtime::parallel();
  const size_t bytes =
      cpu::forward_workspace_bytes(problem, outputs.reserve != nullptr, parallel.threads);
  const scratch::Buffer workspace(bytes);
  const Status status = cpu::forward(problem, outputs, workspace.data(), bytes, parallel);
  runtime::check_parallel();
  check_status(status, op, "");
}

void run_backward(const Problem& problem, const Gradients& gradients, const char* op) {
  if (problem.B == 0) return;
  const Parallel parallel = runtime::parallel();
  const size_t bytes = cpu::backward_workspace_bytes(problem, gradients, parallel.threads);
  const scratch::Buffer workspace(bytes);
  const Status status = cpu::backward(problem, gradients, workspace.data(), bytes, parallel);
  runtime::check_parallel();
  check_status(status, op, "");
}

void run_frozen(const Problem& problem, const Frozen& frozen, const Outputs& outputs) {
  if (problem.B == 0) return;
  const Parallel parallel = runtime::parallel();
  const size_t bytes = cpu::frozen_workspace_bytes(problem, parallel.threads);
  const scratch::Buffer workspace(bytes);
  const Status status =
      cpu::frozen_forward(problem, frozen, outputs, workspace.data(), bytes, parallel);
  runtime::check_parallel();
  check_status(status, "frozen_forward", "");
}

}  // namespace fused_lstm
