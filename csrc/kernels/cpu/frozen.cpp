// The entry points of ../frozen.h: checks what they are given, then the kernel of the active
// instruction set.
#include "../frozen.h"

#include <cstdio>

#include "kernels.h"
#include "plan.h"

namespace fused_lstm {
namespace cpu {
namespace {

Status check(const Problem& q, const Frozen& frozen, const Outputs& outputs) {
  if (q.dtype != DType::kFloat32 || projects(q)) return Status::kUnsupported;
  if (q.marks != nullptr || q.zoneout.on() || q.h_factors != nullptr || outputs.cells != nullptr ||
      outputs.reserve != nullptr) {
    return Status::kUnsupported;
  }
  if (q.T < 1 || q.B < 1 || q.I < 1 || q.H < 1 || q.D < 1 || q.D > 2 || q.x == nullptr ||
      outputs.y == nullptr || outputs.h_n == nullptr || outputs.c_n == nullptr) {
    return Status::kBadArgument;
  }
  for (int32_t d = 0; d < q.D; ++d) {
    const FrozenWeights& w = frozen.weights[d];
    const bool scaled = frozen.stored == Stored::kInt8;
    if (w.panels == nullptr || w.bias == nullptr || (w.scales != nullptr) != scaled) {
      return Status::kBadArgument;
    }
  }
  return valid_batch_sizes(q) ? Status::kOk : Status::kBadArgument;
}

// Scratch does not depend on how weights are stored.
Plan plan_of(const Problem& problem, int32_t threads) {
  Plan plan = plan_frozen(problem, threads);
  if (problem.H <= kMostBytes && problem.I <= kMostBytes) plan.byte_product = active_byte_product();
  return plan;
}

}  // namespace

size_t frozen_workspace_bytes(const Problem& problem, int32_t threads) {
  return active_kernels(DType::kFloat32).frozen_workspace(problem, plan_of(problem, threads));
}

Status frozen_forward(const Problem& problem, const Frozen& frozen, const Outputs& outputs,
                      void* workspace, size_t workspace_bytes, const Parallel& parallel) {
  const Status status = check(problem, frozen, outputs);
  if (status != Status::kOk) return status;
  if (workspace == nullptr) return Status::kBadArgument;
  const Kernels& kernels = active_kernels(DType::kFloat32);
  const Plan plan = plan_of(problem, parallel.threads);
  if (kernels.frozen_workspace(problem, plan) > workspace_bytes) return Status::kWorkspaceTooSmall;
  kernels.frozen(problem, frozen, outputs, plan, workspace, parallel);
  return Status::kOk;
}

void explain_frozen(const Problem& problem, Stored stored, int32_t threads, char* text,
                    size_t text_bytes) {
  const Plan plan = plan_of(problem, threads);
  const char* const names[] = {"float32", "bfloat16", "int8"};
  const bool bytes = stored == Stored::kInt8 && plan.byte_product.run != nullptr;
  std::snprintf(
      text, text_bytes, "cpu %s: frozen %s panels%s, input projected ahead in chunks, %d task%s%s",
      isa_name(active_isa()), names[static_cast<int32_t>(stored)],
      !bytes                     ? ""
      : plan.byte_product.halves ? " with products of 16-bit integers"
                                 : " with products of bytes",
      plan.threads, plan.threads == 1 ? "" : "s", plan.threads == 1 ? "" : " over hidden units");
}

}  // namespace cpu
}  // namespace fused_lstm
