// The choice of a family, the bytes that a call needs, and the line that explains them. Plain C++:
// nothing here touches a device.
#include "plan.h"

#include <cstdio>

#include "reserve.h"
#include "single_block.h"
#include "stepwise.h"

namespace fused_lstm {
namespace cuda {

// The one place where a family says what it can compute.
bool computes(Family family, const Problem& problem, bool training, const Launch& launch) {
  switch (family) {
    case Family::kStepwise:
      return true;
    case Family::kSingleBlock:
      return single_block::fits(problem, training, launch);
  }
  return false;
}

Family choose_family(const Problem& problem, bool training, const Launch& launch) {
  if (launch.forced) return launch.family;
  const bool fits = computes(Family::kSingleBlock, problem, training, launch);
  return fits ? Family::kSingleBlock : Family::kStepwise;
}

size_t reserve_bytes(const Problem& problem) {
  return static_cast<size_t>(reserve_layout(problem).bytes);
}

size_t forward_workspace_bytes(const Problem& problem, bool training, const Launch& launch) {
  if (choose_family(problem, training, launch) == Family::kSingleBlock) {
    const single_block::Plan plan = single_block::plan(problem, false, launch);
    return static_cast<size_t>(single_block::forward_scratch(problem, plan, nullptr).bytes);
  }
  return static_cast<size_t>(stepwise::forward_scratch(problem, training, nullptr).bytes);
}

size_t backward_workspace_bytes(const Problem& problem, const Gradients& gradients,
                                const Launch& launch) {
  if (choose_family(problem, true, launch) == Family::kSingleBlock) {
    const single_block::Plan plan = single_block::plan(problem, true, launch);
    return static_cast<size_t>(
        single_block::backward_scratch(problem, gradients, plan, nullptr).bytes);
  }
  return static_cast<size_t>(stepwise::backward_scratch(problem, gradients, nullptr).bytes);
}

void explain(const Problem& problem, bool training, const Launch& launch, char* text,
             size_t text_bytes) {
  const Family family = choose_family(problem, training, launch);
  if (!computes(family, problem, training, launch)) {
    std::snprintf(text, text_bytes, "cuda sm_%d: the forced family cannot compute this call",
                  launch.device.arch);
    return;
  }
  if (family == Family::kSingleBlock) {
    single_block::explain(problem, training, launch, text, text_bytes);
    return;
  }
  const int64_t rows = row_count(problem);
  const int64_t most = stepwise::forward_scratch(problem, training, nullptr).chunk_rows;
  std::snprintf(text, text_bytes,
                "cuda sm_%d: stepwise, a library product and one fused kernel per step%s; input "
                "projected ahead, %lld of %lld rows at a time",
                launch.device.arch,
                problem.weights[0].w_hr ? ", two of each with a projection" : "",
                static_cast<long long>(most), static_cast<long long>(rows));
}

}  // namespace cuda
}  // namespace fused_lstm
