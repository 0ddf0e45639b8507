// The single-block family: one block holds all of W_hh in registers and shared memory and takes its
// batch rows through the whole sequence; grid = groups of rows x directions, one launch, nothing
// between blocks. For H up to what a multiprocessor holds: bfloat16, float16 and float32 as TF32 on
// tensor cores, strict float32 without.
//
// Forward:   pack weights | x W_ih^T for all steps, where x is not read directly | recurrence
// Backward:  pack W_hh^T | recurrence -> dz [N, 4H] | dW_ih, dW_hh, dx as products over all rows
//
// Where the reserve holds no gates, products and one kernel put them where dz will be, before the
// recurrence. The options of marks.cuh have instances of their own.
//
// Both copy packed lengths to the device by launch parameters, so that a call can be captured.
#pragma once

#include "cuda.h"
#include "pieces.h"
#include "single_block_tiles.h"

namespace fused_lstm {
namespace cuda {
namespace single_block {

// How one pass of a call is computed, or why it is not.
struct Plan {
  const char* refusal = nullptr;  // null: it fits
  Tiles tiles;
  int32_t input_depth = 0;  // forward: of x read directly, see Tiles; 0: x comes projected
  int64_t blocks = 0;       // groups of rows, per direction
  int64_t shared_bytes = 0;
  double us = 0;  // of one step, by a model
};
Plan plan(const Problem& problem, bool backward, const Launch& launch);
// Whether this family computes the call, and its backward where one follows.
bool fits(const Problem& problem, bool training, const Launch& launch);

// Where a pass keeps what, in a workspace at `base`; with a null base only `bytes` means anything.
struct ForwardScratch {
  int32_t* lengths;   // [B], packed input only
  int64_t* offsets;   // [T], packed input only
  void *w_hh, *w_ih;  // in fragment order, all directions; w_ih where x is read directly
  float* projected;   // [D, N, 4H] where it is not
  void* x;            // [N, I] where x is projected and its rows lie at no one distance
  int64_t bytes;
};
ForwardScratch forward_scratch(const Problem& problem, const Plan& plan, void* base);

struct BackwardScratch {
  int32_t* lengths;
  int64_t* offsets;
  void* w_hh;          // transposed, in fragment order, all directions
  DenseScratch dense;  // parts: blocks
  int64_t bytes;
};
BackwardScratch backward_scratch(const Problem& problem, const Gradients& gradients,
                                 const Plan& plan, void* base);

// Only for calls that fit. workspace: at least the scratch's bytes, 256-byte aligned.
Status forward(const Problem& problem, const Outputs& outputs, void* workspace,
               const Launch& launch);
Status backward(const Problem& problem, const Gradients& gradients, void* workspace,
                const Launch& launch);
// One line about a call that fits.
void explain(const Problem& problem, bool training, const Launch& launch, char* text,
             size_t text_bytes);

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
