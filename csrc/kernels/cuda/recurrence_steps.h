// The recurrence of the variants (../recurrence.h), stepwise: for each step a library product and
// one fused kernel.
//
// Forward, per step:   z = h_{t-1} W_hh^T     a product
//                      gates, c_t, h_t        one kernel; h_t goes straight into y
// Backward, per step:  dzx_t, dzh_t, dc       one kernel
//                      dh = dzh_t W_hh        a product
//
// Without LayerNorm a thread has one unit of one row; with it a block has a row, for the moments
// are those of all its numbers. The gradients of peepholes and of LayerNorm's weights are sums over
// all rows of all steps: each row sums its own from step to step, where nobody else writes, and the
// rows are added up at the end.
#pragma once

#include <algorithm>

#include "pieces.h"
#include "stepwise.h"

namespace fused_lstm {
namespace cuda {
namespace recurrence {

// Time of processing step s.
inline int64_t time_of(const Recurrence& q, int64_t s) { return q.reverse ? q.T - 1 - s : s; }

// What forward keeps of all steps for backward, in a reserve at `base`; null where it does not, or
// where there is no base, when only `bytes` means anything.
template <class E>
struct Records {
  E* gates;       // [T, B, G*H] activated
  E* cells;       // [T, B, H]
  E* normalised;  // [T, B, G*H] with LayerNorm: the products
  E* moments;     // [T, B, kMoments] likewise
  int64_t bytes;

  Records(const Recurrence& q, void* base) {
    constexpr int64_t kSize = sizeof(E);
    const int64_t rows = q.T * q.B, columns = q.gates * q.H;
    const bool normalises = q.ln_hh != nullptr;
    Pieces pieces(base);
    pieces.take(gates, rows * columns * kSize);
    pieces.take(cells, rows * q.H * kSize);
    pieces.take(normalised, rows * columns * kSize, normalises);
    pieces.take(moments, rows * kMoments * kSize, normalises);
    bytes = pieces.bytes();
  }

  static constexpr int64_t kMoments = 3;  // in the order of Moment
};
enum Moment { kScaleOfProducts, kMeanOfCell, kScaleOfCell };

template <class E>
struct ForwardScratch {
  E* z;  // [B, G*H]: products of the running step
  int64_t bytes;

  ForwardScratch(const Recurrence& q, void* base) {
    Pieces pieces(base);
    pieces.take(z, q.B * q.gates * q.H * static_cast<int64_t>(sizeof(E)));
    bytes = pieces.bytes();
  }
};

// Into how many slices the rows are cut before they are added up.
inline int64_t slice_count(const Recurrence& q) {
  return std::min(stepwise::kMostSlices, (q.B + 31) / 32);
}

template <class E>
struct BackwardScratch {
  E *dh, *dc;  // [B, H] for the step before
  // Each row's sums, where they are asked for: [B, n], n numbers of the weight; see above.
  E *peepholes, *ln_hh, *ln_c, *ln_c_bias;
  E* slices;  // [slice_count(), n]: the same of slices of the rows
  int64_t bytes;

  BackwardScratch(const Recurrence& q, const RecurrenceGradients& g, void* base) {
    constexpr int64_t kSize = sizeof(E);
    Pieces pieces(base);
    pieces.take(dh, q.B * q.H * kSize);
    pieces.take(dc, q.B * q.H * kSize);
    pieces.take(peepholes, q.B * (q.gates - 1) * q.H * kSize, g.dpeepholes != nullptr);
    pieces.take(ln_hh, q.B * q.gates * q.H * kSize, g.dln_hh != nullptr);
    pieces.take(ln_c, q.B * q.H * kSize, g.dln_c != nullptr);
    pieces.take(ln_c_bias, q.B * q.H * kSize, g.dln_c_bias != nullptr);
    pieces.take(slices, slice_count(q) * q.gates * q.H * kSize);
    bytes = pieces.bytes();
  }
};

template <class E>
Status forward(const Recurrence& q, const RecurrenceOutputs& outputs, void* workspace,
               const Launch& launch);
template <class E>
Status backward(const Recurrence& q, const RecurrenceGradients& gradients, void* workspace,
                const Launch& launch);

}  // namespace recurrence
}  // namespace cuda
}  // namespace fused_lstm
