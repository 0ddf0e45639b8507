// The sliced families, for H beyond what one block holds: W_hh is cut into slices that stay in the
// registers and shared memory of the blocks of a batch group, and those hand each other h
// (backward: dz) every step. Groups of batch rows each have a copy of W_hh and nothing to do with
// each other.
//
//   grid     one cooperative launch spread over the device; a group meets on a counter in global
//            memory. To about H = 1800 in 16 bits and 1280 in float32.
//   cluster  a group is a cluster of up to 16 blocks and meets in its shared memory. To about
//            H = 512 in 16 bits and 400 in float32; sm_90.
//
// Forward:   clear counters, h0 and c0 | pack weights | x W_ih^T for all steps | recurrence
// Backward:  clear, dc_n | pack W_hh^T | recurrence -> dz [N, 4H] | dW_ih, dW_hh, dx as products
//
// Where the reserve holds no gates, products and one kernel put them where dz will be, before the
// recurrence. The options of marks.cuh have instances of their own.
//
// A sequence of more than kMostSteps steps takes several launches, so that no launch holds the
// device for long. A block that waits in vain for another gives up after Launch::patience, sets
// Launch::fault and returns, and so do the others.
#pragma once

#include "cuda.h"
#include "pieces.h"
#include "sliced_tiles.h"

namespace fused_lstm {
namespace cuda {
namespace sliced {

#ifdef FUSED_LSTM_SLICED_STEPS
constexpr int64_t kMostSteps = FUSED_LSTM_SLICED_STEPS;
#else
constexpr int64_t kMostSteps = 4096;
#endif

// How one pass of a call is computed, or why it is not.
struct Plan {
  const char* refusal = nullptr;  // null: it fits
  bool cluster = false;
  Slices slices;
  int64_t groups = 0;        // of batch rows, per direction
  int32_t directions = 1;    // of a launch
  int64_t shared_bytes = 0;  // of a block
  double us = 0;             // of one step of all directions, by a model
  int64_t room = 0;          // blocks that run at once, of this launch and others like it
};
Plan plan(const Problem& problem, bool cluster, bool backward, const Launch& launch);

struct ForwardScratch {
  int32_t* lengths;   // [B], packed input only
  int64_t* offsets;   // [T], packed input only
  void* w_hh;         // in fragment order, all directions
  float* projected;   // [D, N, 4H]
  void* x;            // [N, I] where its rows lie at no one distance
  uint32_t* meeting;  // one word for all, counters, and the state of all groups: cleared
  float* carried;     // [states, D, B, H], see Slices
  int64_t bytes;
};
ForwardScratch forward_scratch(const Problem& problem, const Plan& plan, void* base);

struct BackwardScratch {
  int32_t* lengths;
  int64_t* offsets;
  void* w_hh;          // transposed
  DenseScratch dense;  // parts: groups; db begins cleared
  uint32_t* meeting;
  float* carried;
  int64_t bytes;
};
BackwardScratch backward_scratch(const Problem& problem, const Gradients& gradients,
                                 const Plan& plan, void* base);
// Words of `meeting`: what comes before the state, and all of it.
int64_t counter_words(const Problem& problem, const Plan& plan);
int64_t meeting_words(const Problem& problem, const Plan& plan);

// Only for plans that fit. True and nothing of use was queued when the device has no room for all
// blocks at once: another family has to compute the call.
bool forward(const Problem& problem, const Outputs& outputs, const Plan& plan, void* workspace,
             const Launch& launch, Status* status);
bool backward(const Problem& problem, const Gradients& gradients, const Plan& plan, void* workspace,
              const Launch& launch, Status* status);
// One line about a plan that fits.
void explain(const Plan& plan, bool training, const Launch& launch, char* text, size_t text_bytes);

}  // namespace sliced
}  // namespace cuda
}  // namespace fused_lstm
