// The entry points of the recurrence: checks, then the kernels of the active instruction set.
#include "../recurrence.h"

#include "../recurrence_checks.h"
#include "kernels.h"

namespace fused_lstm {
namespace cpu {
namespace {

int64_t element_bytes(const Recurrence& q) { return q.dtype == DType::kFloat64 ? 8 : 4; }

}  // namespace

// As Records in recurrence_rows.h lays it out, in whole lines of 64 bytes.
size_t recurrence_reserve_bytes(const Recurrence& q) {
  const int64_t line = 64 / element_bytes(q), units = (q.H + line - 1) / line * line;
  const int64_t normalised = q.ln_hh != nullptr ? units * q.gates + line : 0;
  return static_cast<size_t>(q.T * q.B * (units * (1 + q.gates) + normalised) * element_bytes(q));
}

size_t recurrence_forward_workspace_bytes(const Recurrence& q, bool training, int32_t threads) {
  static char somewhere;  // the size does not depend on where the reserve is
  RecurrenceOutputs outputs;
  outputs.reserve = training ? &somewhere : nullptr;
  return active_kernels(q.dtype).recurrence.forward_workspace(q, outputs,
                                                              plan_recurrence(q, threads));
}

size_t recurrence_backward_workspace_bytes(const Recurrence& q, int32_t threads) {
  return active_kernels(q.dtype).recurrence.backward_workspace(q, RecurrenceGradients{},
                                                               plan_recurrence(q, threads));
}

Status recurrence_forward(const Recurrence& q, const RecurrenceOutputs& outputs, void* workspace,
                          size_t workspace_bytes, const Parallel& parallel) {
  const Status status = check(q, outputs, workspace);
  if (status != Status::kOk) return status;
  const RecurrencePlan plan = plan_recurrence(q, parallel.threads);
  const RecurrenceKernels& kernels = active_kernels(q.dtype).recurrence;
  if (kernels.forward_workspace(q, outputs, plan) > workspace_bytes) {
    return Status::kWorkspaceTooSmall;
  }
  kernels.forward(q, outputs, plan, workspace, parallel);
  return Status::kOk;
}

Status recurrence_backward(const Recurrence& q, const RecurrenceGradients& gradients,
                           void* workspace, size_t workspace_bytes, const Parallel& parallel) {
  const Status status = check(q, gradients, workspace);
  if (status != Status::kOk) return status;
  const RecurrencePlan plan = plan_recurrence(q, parallel.threads);
  const RecurrenceKernels& kernels = active_kernels(q.dtype).recurrence;
  if (kernels.backward_workspace(q, gradients, plan) > workspace_bytes) {
    return Status::kWorkspaceTooSmall;
  }
  kernels.backward(q, gradients, plan, workspace, parallel);
  return Status::kOk;
}

}  // namespace cpu
}  // namespace fused_lstm
