// The entry points of cuda.h: checks what they are given and hands it to a family.
#include <cstdarg>
#include <cstdio>

#include "options.h"
#include "plan.h"
#include "queue.cuh"
#include "single_block.h"
#include "stepwise.h"

namespace fused_lstm {
namespace cuda {
namespace {

thread_local char error_line[256] = "";

Status check_sizes(const Problem& p) {
  switch (p.dtype) {
    case DType::kFloat32:
    case DType::kFloat64:
    case DType::kBFloat16:
    case DType::kFloat16:
      break;
    default:
      return Status::kUnsupported;
  }
  if (p.T < 1 || p.B < 1 || p.I < 1 || p.H < 1 || p.P < 1 || p.D < 1 || p.D > 2) {
    return Status::kBadArgument;
  }
  if (has_options(p)) {
    if (p.batch_sizes != nullptr) return Status::kBadArgument;
    if (p.weights[0].w_hr != nullptr) return Status::kUnsupported;
    if (p.T > INT32_MAX || p.B > INT32_MAX || p.H > INT32_MAX) return Status::kUnsupported;
  }
  if (p.batch_sizes == nullptr) return Status::kOk;
  int64_t before = p.B;
  for (int64_t t = 0; t < p.T; ++t) {
    if (p.batch_sizes[t] < 1 || p.batch_sizes[t] > before) return Status::kBadArgument;
    before = p.batch_sizes[t];
  }
  return p.batch_sizes[0] == p.B ? Status::kOk : Status::kBadArgument;
}

Status check(const Problem& p, bool training, const Launch& launch) {
  const Status status = check_sizes(p);
  if (status != Status::kOk) return status;
  if (p.x == nullptr || launch.blas.multiply == nullptr) return Status::kBadArgument;
  const bool projects = p.weights[0].w_hr != nullptr;
  if (!projects && p.P != p.H) return Status::kBadArgument;
  for (int32_t d = 0; d < p.D; ++d) {
    const Weights& w = p.weights[d];
    if (w.w_ih == nullptr || w.w_hh == nullptr) return Status::kBadArgument;
    if ((w.w_hr != nullptr) != projects) return Status::kBadArgument;
  }
  const Family family = choose_family(p, training, launch);
  return computes(family, p, training, launch) ? Status::kOk : Status::kUnsupported;
}

}  // namespace

void set_last_error(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(error_line, sizeof error_line, format, arguments);
  va_end(arguments);
}

const char* last_error() { return error_line; }

namespace {

// What nobody forces is computed stepwise instead.
Status no_room() {
  set_last_error("the device has no room for all blocks of the forced family at once");
  return Status::kLaunchFailed;
}

}  // namespace

Status forward(const Problem& problem, const Outputs& outputs, void* workspace,
               size_t workspace_bytes, const Launch& launch) {
  const bool training = outputs.reserve != nullptr;
  const Status status = check(problem, training, launch);
  if (status != Status::kOk) return status;
  if (!outputs.y || !outputs.h_n || !outputs.c_n || !workspace) return Status::kBadArgument;
  if (outputs.cells && !problem.cells) return Status::kBadArgument;
  if (forward_workspace_bytes(problem, training, launch) > workspace_bytes) {
    return Status::kWorkspaceTooSmall;
  }
  const Family family = choose_family(problem, training, launch);
  if (family == Family::kSingleBlock) {
    return single_block::forward(problem, outputs, workspace, launch);
  }
  if (is_sliced(family)) {
    const sliced::Plan plan = sliced_plan(family, problem, false, launch);
    Status done;
    if (sliced::forward(problem, outputs, plan, workspace, launch, &done)) return done;
    if (launch.forced) return no_room();
  }
  return stepwise::forward(problem, outputs, workspace, launch);
}

Status backward(const Problem& problem, const Gradients& gradients, void* workspace,
                size_t workspace_bytes, const Launch& launch) {
  const Status status = check(problem, true, launch);
  if (status != Status::kOk) return status;
  if (!gradients.y || !gradients.reserve || !workspace) return Status::kBadArgument;
  if (gradients.dcells && !problem.cells) return Status::kBadArgument;
  if (backward_workspace_bytes(problem, gradients, launch) > workspace_bytes) {
    return Status::kWorkspaceTooSmall;
  }
  const Family family = choose_family(problem, true, launch);
  if (family == Family::kSingleBlock) {
    return single_block::backward(problem, gradients, workspace, launch);
  }
  if (is_sliced(family)) {
    const sliced::Plan plan = sliced_plan(family, problem, true, launch);
    Status done;
    if (sliced::backward(problem, gradients, plan, workspace, launch, &done)) return done;
    if (launch.forced) return no_room();
  }
  return stepwise::backward(problem, gradients, workspace, launch);
}

}  // namespace cuda
}  // namespace fused_lstm
