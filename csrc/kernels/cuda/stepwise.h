// The stepwise family: for each step a library product and one fused pointwise kernel. It computes
// every call, whatever the sizes, dtype, strides and device, and is what the others are measured
// by.
//
// Forward, per direction and chunk of steps:       z [rows, 4H] = x W_ih^T         one product
//   per step:  z_t += h_{t-1} W_hh^T               a product, on the rows that have a state
//              gates, c_t, h_t                     one kernel; h_t goes straight into y
// Backward, per direction and chunk, from the end: per step
//              dz_t, dc                            one kernel
//              dh = dz_t W_hh                      a product
//   per chunk: dW_ih += dz^T x, dW_hh += dz^T h_{t-1}, dx = dz W_ih, db: whatever is asked for
// A projection adds a product and a small kernel to each step. The options of marks.cuh have
// kernels of their own (stepwise_options.cuh) and add no launch to a step. Where the reserve holds
// no gates, each chunk of backward begins with a product that gives them again, into dz's place.
//
// dz is kept in the stored type: a product takes both its operands in one type, and W and x are
// stored so; halving what is moved costs half a unit of the 16-bit types once per step. What sums
// up (z, c, dc, dh, weight gradients) stays in float, or double for double.
#pragma once

#include "steps.h"

namespace fused_lstm {
namespace cuda {
namespace stepwise {

// Most bytes of z, or of dz, that are kept at a time: longer sequences are worked on in chunks of
// steps. tests/simt sets it low, to see chunks at all.
#ifndef FUSED_LSTM_CHUNK_BYTES
#define FUSED_LSTM_CHUNK_BYTES (int64_t{256} << 20)
#endif
constexpr int64_t kChunkBytes = FUSED_LSTM_CHUNK_BYTES;
// Rows of partial sums for db.
constexpr int64_t kMostSlices = 64;

// Where forward keeps what, in a workspace at `base`; with a null base only `bytes` means anything.
// E: as computed, S: as stored. Null: not needed.
struct ForwardScratch {
  void* z;          // E [chunk_rows, 4H]
  void* x;          // S [chunk_rows, I]: x, where its rows do not lie at one distance
  void* c;          // E [B, H] in inference; training keeps every c in the reserve
  void* before_hr;  // S [B, H] in inference with a projection: o * tanh(c)
  void* h;          // E [B, P] with a projection
  void* next_h;     // S [B, H] what the gates of the next step read, where that is not simply y
  int64_t chunk_rows;
  int64_t bytes;
};
ForwardScratch forward_scratch(const Problem& problem, bool training, void* base);

struct BackwardScratch {
  void* dz;         // S [chunk_rows, 4H]
  void* z;          // E [chunk_rows, 4H] where gates are computed again; dz itself where E is S
  void* x;          // S [chunk_rows, I]: as in forward, for dw_ih and gates; zeros past a row's end
  void* h_before;   // S [chunk_rows, P]: the h that each row's gates read, for dw_hh and gates
  void* dh;         // E [B, P]
  void* dc;         // E [B, H]
  void* dh_kept;    // E [B, H] with zoneout: gradient of h that passes by a step's cells
  void* dh_stored;  // S [chunk_rows, P] with a projection: all that arrives at h
  void* dm;         // E [B, H] with a projection: gradient of o * tanh(c)
  void* db;         // E [slices, 4H]
  // Sums before they are rounded, for 16-bit types only: others are summed where they belong.
  void *dw_ih, *dw_hh, *dw_hr;  // E [4H, I], [4H, P], [P, H]
  void* dx;                     // E [N, I], or [chunk_rows, I] with one direction
  int64_t chunk_rows, slices;
  int64_t bytes;
};
BackwardScratch backward_scratch(const Problem& problem, const Gradients& gradients, void* base);

Status forward(const Problem& problem, const Outputs& outputs, void* workspace,
               const Launch& launch);
Status backward(const Problem& problem, const Gradients& gradients, void* workspace,
                const Launch& launch);

}  // namespace stepwise
}  // namespace cuda
}  // namespace fused_lstm
