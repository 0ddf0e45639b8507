// The entry points of the recurrence: checks, the sizes of what it keeps, and the choice of a type.
#include "../recurrence_checks.h"
#include "recurrence_steps.h"

namespace fused_lstm {
namespace cuda {
namespace {

// With LayerNorm each row is a block of the grid's first dimension.
bool fits(const Recurrence& q) { return q.ln_hh == nullptr || q.B <= INT32_MAX; }

// Calls f(e) with a number of the type that q is computed in.
template <class F>
auto with_type(const Recurrence& q, const F& f) {
  return q.dtype == DType::kFloat64 ? f(double{}) : f(float{});
}

}  // namespace

size_t recurrence_reserve_bytes(const Recurrence& q) {
  return with_type(q, [&](auto e) {
    return static_cast<size_t>(recurrence::Records<decltype(e)>(q, nullptr).bytes);
  });
}

size_t recurrence_forward_workspace_bytes(const Recurrence& q) {
  return with_type(q, [&](auto e) {
    return static_cast<size_t>(recurrence::ForwardScratch<decltype(e)>(q, nullptr).bytes);
  });
}

size_t recurrence_backward_workspace_bytes(const Recurrence& q, const RecurrenceGradients& g) {
  return with_type(q, [&](auto e) {
    return static_cast<size_t>(recurrence::BackwardScratch<decltype(e)>(q, g, nullptr).bytes);
  });
}

Status recurrence_forward(const Recurrence& q, const RecurrenceOutputs& outputs, void* workspace,
                          size_t workspace_bytes, const Launch& launch) {
  const Status status = check(q, outputs, workspace);
  if (status != Status::kOk) return status;
  if (launch.blas.multiply == nullptr) return Status::kBadArgument;
  if (!fits(q)) return Status::kUnsupported;
  if (recurrence_forward_workspace_bytes(q) > workspace_bytes) return Status::kWorkspaceTooSmall;
  return with_type(
      q, [&](auto e) { return recurrence::forward<decltype(e)>(q, outputs, workspace, launch); });
}

Status recurrence_backward(const Recurrence& q, const RecurrenceGradients& gradients,
                           void* workspace, size_t workspace_bytes, const Launch& launch) {
  const Status status = check(q, gradients, workspace);
  if (status != Status::kOk) return status;
  if (launch.blas.multiply == nullptr) return Status::kBadArgument;
  if (!fits(q)) return Status::kUnsupported;
  if (recurrence_backward_workspace_bytes(q, gradients) > workspace_bytes) {
    return Status::kWorkspaceTooSmall;
  }
  return with_type(q, [&](auto e) {
    return recurrence::backward<decltype(e)>(q, gradients, workspace, launch);
  });
}

}  // namespace cuda
}  // namespace fused_lstm
