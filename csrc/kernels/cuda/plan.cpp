// The choice of a family, the bytes that a call needs, and the line that explains them. Plain C++:
// nothing here touches a device.
#include "plan.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>

#include "reserve.h"
#include "single_block.h"
#include "stepwise.h"

namespace fused_lstm {
namespace cuda {

namespace {

// A step of the stepwise family, in one direction: two launches that wait for each other, W_hh and
// the rows' gates through L2 or memory, and the multiplications, each with what an H100 gives a
// library.
double stepwise_us(const Problem& p, const Launch& launch) {
  constexpr double kLaunchUs = 2.2, kBytesPerUs = 2.5e6;
  double flops_per_us = 4e8;  // 16 bits
  if (p.dtype == DType::kFloat32) flops_per_us = launch.math == Math::kTf32 ? 2e8 : 4e7;
  if (p.dtype == DType::kFloat64) flops_per_us = 3e7;
  const double H = static_cast<double>(p.H), P = static_cast<double>(p.P);
  const double B = static_cast<double>(p.B), bytes = static_cast<double>(element_bytes(p.dtype));
  const double moved = 4 * H * P * bytes + 12 * B * H * 4;
  const double launches = p.weights[0].w_hr != nullptr ? 4 : 2;
  return launches * kLaunchUs + moved / kBytesPerUs + 8 * H * P * B / flops_per_us;
}

}  // namespace

sliced::Plan sliced_plan(Family family, const Problem& problem, bool backward,
                         const Launch& launch) {
  return sliced::plan(problem, family == Family::kCluster, backward, launch);
}

double predicted_us(Family family, const Problem& problem, bool training, const Launch& launch) {
  if (!computes(family, problem, training, launch)) return INFINITY;
  double us = 0;
  for (const bool backward : {false, true}) {
    if (backward && !training) continue;
    switch (family) {
      case Family::kStepwise:
        us += problem.D * stepwise_us(problem, launch);
        break;
      case Family::kSingleBlock:
        us += single_block::plan(problem, backward, launch).us;
        break;
      case Family::kCluster:
      case Family::kGrid:
        us += sliced_plan(family, problem, backward, launch).us;
        break;
    }
  }
  return us;
}

// The one place where a family says what it can compute.
bool computes(Family family, const Problem& problem, bool training, const Launch& launch) {
  switch (family) {
    case Family::kStepwise:
      return true;
    case Family::kSingleBlock:
      return single_block::fits(problem, training, launch);
    case Family::kCluster:
    case Family::kGrid:
      return sliced_plan(family, problem, false, launch).refusal == nullptr &&
             (!training || sliced_plan(family, problem, true, launch).refusal == nullptr);
  }
  return false;
}

bool may_choose(Family family, const Launch& launch) {
  return launch.across_blocks || !is_sliced(family);
}

Footprint footprint(Family family, const Problem& problem, bool training, const Launch& launch) {
  Footprint most;
  for (const bool backward : {false, true}) {
    if (backward && !training) continue;
    Footprint one;
    if (family == Family::kSingleBlock) {
      // Registers and shared memory leave no multiprocessor room for a second block.
      one = {single_block::plan(problem, backward, launch).blocks * problem.D, launch.device.sms};
    } else if (is_sliced(family)) {
      const sliced::Plan plan = sliced_plan(family, problem, backward, launch);
      one = {plan.groups * plan.slices.blocks * plan.directions, plan.room};
    }
    // Of two passes the one that leaves less: by shares of the room, which differs for clusters.
    if (most.room == 0 || one.blocks * most.room > most.blocks * one.room) most = one;
  }
  return most;
}

// What was measured, where that may compute. Else one block wherever that fits: it waits for
// nobody. Elsewhere the quickest, among families whose blocks wait for each other only where those
// are wanted.
Family choose_family(const Problem& problem, bool training, const Launch& launch) {
  if (launch.forced) return launch.family;
  if (launch.measured && may_choose(launch.family, launch) &&
      computes(launch.family, problem, training, launch)) {
    return launch.family;
  }
  if (computes(Family::kSingleBlock, problem, training, launch)) return Family::kSingleBlock;
  Family best = Family::kStepwise;
  double least = predicted_us(best, problem, training, launch);
  for (const Family family : {Family::kCluster, Family::kGrid}) {
    if (!may_choose(family, launch)) continue;
    const double us = predicted_us(family, problem, training, launch);
    if (us < least) least = us, best = family;
  }
  return best;
}

size_t reserve_bytes(const Problem& problem) {
  return static_cast<size_t>(reserve_layout(problem).bytes);
}

// Where the device turns out to have no room for a sliced family, the stepwise one computes.
size_t forward_workspace_bytes(const Problem& problem, bool training, const Launch& launch) {
  const Family family = choose_family(problem, training, launch);
  int64_t bytes = 0;
  if (family == Family::kSingleBlock) {
    const single_block::Plan plan = single_block::plan(problem, false, launch);
    return static_cast<size_t>(single_block::forward_scratch(problem, plan, nullptr).bytes);
  }
  if (is_sliced(family)) {
    const sliced::Plan plan = sliced_plan(family, problem, false, launch);
    if (plan.refusal == nullptr) bytes = sliced::forward_scratch(problem, plan, nullptr).bytes;
  }
  const int64_t stepwise = stepwise::forward_scratch(problem, training, nullptr).bytes;
  return static_cast<size_t>(bytes > stepwise ? bytes : stepwise);
}

size_t backward_workspace_bytes(const Problem& problem, const Gradients& gradients,
                                const Launch& launch) {
  const Family family = choose_family(problem, true, launch);
  int64_t bytes = 0;
  if (family == Family::kSingleBlock) {
    const single_block::Plan plan = single_block::plan(problem, true, launch);
    return static_cast<size_t>(
        single_block::backward_scratch(problem, gradients, plan, nullptr).bytes);
  }
  if (is_sliced(family)) {
    const sliced::Plan plan = sliced_plan(family, problem, true, launch);
    if (plan.refusal == nullptr) {
      bytes = sliced::backward_scratch(problem, gradients, plan, nullptr).bytes;
    }
  }
  const int64_t stepwise = stepwise::backward_scratch(problem, gradients, nullptr).bytes;
  return static_cast<size_t>(bytes > stepwise ? bytes : stepwise);
}

namespace {

// What a switch that is off keeps the plan from, for the line about what computes instead.
const char* would_be_sliced(const Problem& problem, bool training, Launch launch) {
  if (launch.forced || launch.across_blocks) return "";
  launch.across_blocks = true;
  switch (choose_family(problem, training, launch)) {
    case Family::kCluster:
      return "; the cluster family, off by default, is predicted to be quicker";
    case Family::kGrid:
      return "; the grid family, off by default, is predicted to be quicker";
    default:
      return "";
  }
}

void describe(Family family, const Problem& problem, bool training, const Launch& launch,
              char* text, size_t text_bytes) {
  if (!computes(family, problem, training, launch)) {
    std::snprintf(text, text_bytes, "cuda sm_%d: the forced family cannot compute this call",
                  launch.device.arch);
    return;
  }
  if (family == Family::kSingleBlock) {
    single_block::explain(problem, training, launch, text, text_bytes);
    return;
  }
  if (is_sliced(family)) {
    sliced::explain(sliced_plan(family, problem, false, launch), training, launch, text,
                    text_bytes);
    return;
  }
  const int64_t rows = row_count(problem);
  const int64_t most = stepwise::forward_scratch(problem, training, nullptr).chunk_rows;
  std::snprintf(
      text, text_bytes,
      "cuda sm_%d: stepwise, a library product and one fused kernel per step%s; input "
      "projected ahead, %lld of %lld rows at a time; predicted %.1f us per step%s",
      launch.device.arch, problem.weights[0].w_hr ? ", two of each with a projection" : "",
      static_cast<long long>(most), static_cast<long long>(rows),
      predicted_us(family, problem, false, launch), would_be_sliced(problem, training, launch));
}

}  // namespace

void explain(const Problem& problem, bool training, const Launch& launch, char* text,
             size_t text_bytes) {
  const Family family = choose_family(problem, training, launch);
  describe(family, problem, training, launch, text, text_bytes);
  if (launch.forced || !launch.measured || family != launch.family) return;
  const size_t length = std::strlen(text);
  std::snprintf(text + length, text_bytes - length,
                "; chosen because it was measured to be the quickest here");
}

}  // namespace cuda
}  // namespace fused_lstm
