// The kernels between the products of the variants' recurrence (recurrence_steps.h), each in two
// layouts: element by element, and row by row where LayerNorm takes the moments of a row. There a
// block walks over its row several times; a thread sees the same units each time, so that what it
// leaves in global memory for itself needs no barrier.
#pragma once

#include "queue.cuh"
#include "recurrence_steps.h"
#include "scalar.cuh"

namespace fused_lstm {
namespace cuda {
namespace recurrence {

// ---- what both passes know of the cells
// ----------------------------------------------------------

// ? marks what may be null.
template <class E>
struct Cells {
  int64_t rows, hidden;
  bool coupled, clips_cell, clips_hidden;
  E cell_clip, hidden_clip;
  const E* peepholes;                 // ? [G-1, H]
  const E *ln_hh, *ln_c, *ln_c_bias;  // ? [G*H], [H], ? [H]

  // The gates' places among G: i, f, g, o, or i, g, o.
  DEVICE int64_t gates() const { return coupled ? 3 : 4; }
  DEVICE int64_t g_place() const { return coupled ? 1 : 2; }
  DEVICE int64_t o_place() const { return coupled ? 2 : 3; }
  DEVICE int64_t columns() const { return gates() * hidden; }

  DEVICE CellVariant<Scalar<E>> of(int64_t unit) const {
    CellVariant<Scalar<E>> v = {};
    v.coupled = coupled;
    v.peepholes = peepholes != nullptr;
    v.clips_cell = clips_cell;
    v.clips_hidden = clips_hidden;
    v.cell_clip = {cell_clip};
    v.hidden_clip = {hidden_clip};
    if (!v.peepholes) return v;
    v.p_i = {peepholes[unit]};
    if (!coupled) v.p_f = {peepholes[hidden + unit]};
    v.p_o = {peepholes[g_place() * hidden + unit]};
    return v;
  }

  // The gates of a unit, at(k) being number k of a row [G*H]; coupled, f is 1 - i.
  template <class At>
  DEVICE Gates<Scalar<E>> gates_of(int64_t unit, const At& at) const {
    const Scalar<E> i = {at(unit)};
    return {i,
            coupled ? one_minus(i) : Scalar<E>{at(hidden + unit)},
            {at(g_place() * hidden + unit)},
            {at(o_place() * hidden + unit)}};
  }
  // Calls body(k, value) for each of them, k being its place in such a row.
  template <class Body>
  DEVICE void each_gate(const Gates<Scalar<E>>& gate, int64_t unit, const Body& body) const {
    body(unit, gate.i.value);
    if (!coupled) body(hidden + unit, gate.f.value);
    body(g_place() * hidden + unit, gate.g.value);
    body(o_place() * hidden + unit, gate.o.value);
  }
};

template <class E>
Cells<E> cells_of(const Recurrence& q) {
  Cells<E> cells = {};
  cells.rows = q.B;
  cells.hidden = q.H;
  cells.coupled = q.gates == 3;
  cells.clips_cell = q.cell_clip != kNoClip;
  cells.clips_hidden = q.hidden_clip != kNoClip;
  cells.cell_clip = static_cast<E>(q.cell_clip);
  cells.hidden_clip = static_cast<E>(q.hidden_clip);
  cells.peepholes = static_cast<const E*>(q.peepholes);
  cells.ln_hh = static_cast<const E*>(q.ln_hh);
  cells.ln_c = static_cast<const E*>(q.ln_c);
  cells.ln_c_bias = static_cast<const E*>(q.ln_c_bias);
  return cells;
}

// ---- rows
// ---------------------------------------------------------------------------------------

constexpr int64_t kRowThreads = 512;

// A block for each row, in it a thread for each unit, as far as threads go.
inline device::Launch cover_rows(int64_t rows, int64_t hidden, size_t element) {
  device::Launch how;
  how.block = dim3(static_cast<unsigned>(std::min(kRowThreads, (hidden + 31) / 32 * 32)));
  how.grid = dim3(static_cast<unsigned>(rows));
  how.shared = 2 * kRowThreads / 32 * element;
  return how;
}
template <class Body>
DEVICE void for_each_of_row(int64_t count, const Body& body) {
  for (int64_t k = threadIdx.x; k < count; k += blockDim.x) body(k);
}

// Sums over the threads of a block, handed to all of them: the same bits whoever comes first.
template <class E, int N>
DEVICE void sum_over_block(E (&sums)[N]) {
  static_assert(N <= 2, "as many as cover_rows has room for");
  E* const parts = device::dynamic_shared<E>();  // [warps][N]
  for (int i = 0; i < N; ++i) {
    for (int bits = 16; bits > 0; bits /= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], bits);
  }
  __syncthreads();  // those of before have been read
  if (threadIdx.x % 32 == 0) {
    for (int i = 0; i < N; ++i) parts[threadIdx.x / 32 * N + i] = sums[i];
  }
  __syncthreads();
  for (int i = 0; i < N; ++i) {
    sums[i] = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sums[i] += parts[warp * N + i];
  }
}

// Of `count` numbers of a row: the mean and 1 / sqrt(variance + epsilon), the variance by a second
// pass, so that nothing cancels.
template <class E>
struct Moments {
  E mean, scale;
};
template <class E>
DEVICE Moments<E> moments_of(const E* x, int64_t count) {
  E mean[1] = {0}, variance[1] = {0};
  for_each_of_row(count, [&](int64_t k) { mean[0] += x[k]; });
  sum_over_block(mean);
  mean[0] /= static_cast<E>(count);
  for_each_of_row(count, [&](int64_t k) { variance[0] += (x[k] - mean[0]) * (x[k] - mean[0]); });
  sum_over_block(variance);
  variance[0] = variance[0] / static_cast<E>(count) + static_cast<E>(kLayerNormEpsilon);
  return {mean[0], 1 / square_root(Scalar<E>{variance[0]}).value};
}

// ---- forward
// ------------------------------------------------------------------------------------

// One step.
template <class E>
struct StepForward {
  Cells<E> cells;
  const E* z;   // [B, G*H] h W_hh^T
  const E* zx;  // [B, G*H], its rows zx_row apart
  int64_t zx_row;
  const E* c_before;        // ? [B, H], zero where not given; may be c
  E *c, *y;                 // [B, H]
  E *h_n, *c_n;             // ? [B, H]: at the end
  E* gates;                 // ? [B, G*H] activated
  E *normalised, *moments;  // ? [B, G*H], [B, kMoments]
};

// Gates before activation of one unit -> c, and what is kept of both. Returns o.
template <class E>
DEVICE Scalar<E> step_state(const StepForward<E>& p, int64_t row, int64_t unit,
                            Gates<Scalar<E>> gate, Scalar<E>& c) {
  const int64_t at = row * p.cells.hidden + unit;
  const Scalar<E> c_before = {p.c_before ? p.c_before[at] : E(0)};
  variant_state(gate, c_before, p.cells.of(unit), c);
  p.c[at] = c.value;
  if (p.c_n) p.c_n[at] = c.value;
  if (p.gates) {
    E* const kept = p.gates + row * p.cells.columns();
    p.cells.each_gate(gate, unit, [&](int64_t k, E value) { kept[k] = value; });
  }
  return gate.o;
}
// And from o and the state that tanh sees -> h.
template <class E>
DEVICE void step_output(const StepForward<E>& p, int64_t row, int64_t unit, Scalar<E> o,
                        Scalar<E> state) {
  const int64_t at = row * p.cells.hidden + unit;
  const E h = variant_output(o, state, p.cells.of(unit)).value;
  p.y[at] = h;
  if (p.h_n) p.h_n[at] = h;
}

template <class E>
__global__ void step_forward_kernel(StepForward<E> p) {
  for_each_element(p.cells.rows, p.cells.hidden, [&](int64_t row, int64_t unit) {
    const E* const z = p.z + row * p.cells.columns();
    const E* const zx = p.zx + row * p.zx_row;
    Scalar<E> c;
    const auto gate = p.cells.gates_of(unit, [&](int64_t k) { return z[k] + zx[k]; });
    const Scalar<E> o = step_state(p, row, unit, gate, c);
    step_output(p, row, unit, o, c);
  });
}

template <class E>
__global__ void __launch_bounds__(kRowThreads) step_forward_rows_kernel(StepForward<E> p) {
  const Cells<E>& cells = p.cells;
  const int64_t row = blockIdx.x;
  const E* const z = p.z + row * cells.columns();
  const E* const zx = p.zx + row * p.zx_row;
  E* const y = p.y + row * cells.hidden;
  const E* const c_row = p.c + row * cells.hidden;
  const Moments<E> of_z = moments_of(z, cells.columns());
  for_each_of_row(cells.hidden, [&](int64_t unit) {
    const auto gate = cells.gates_of(unit, [&](int64_t k) {
      const E normalised = (z[k] - of_z.mean) * of_z.scale;
      if (p.normalised) p.normalised[row * cells.columns() + k] = normalised;
      return cells.ln_hh[k] * normalised + zx[k];
    });
    Scalar<E> c;
    y[unit] = step_state(p, row, unit, gate, c).value;  // o, until h takes its place
  });
  const Moments<E> of_c = moments_of(c_row, cells.hidden);
  for_each_of_row(cells.hidden, [&](int64_t unit) {
    const E normalised = (c_row[unit] - of_c.mean) * of_c.scale;
    const E bias = cells.ln_c_bias ? cells.ln_c_bias[unit] : E(0);
    step_output(p, row, unit, Scalar<E>{y[unit]}, Scalar<E>{cells.ln_c[unit] * normalised + bias});
  });
  if (p.moments && threadIdx.x == 0) {
    E* const kept = p.moments + row * Records<E>::kMoments;
    kept[kScaleOfProducts] = of_z.scale;
    kept[kMeanOfCell] = of_c.mean;
    kept[kScaleOfCell] = of_c.scale;
  }
}

// ---- backward
// -----------------------------------------------------------------------------------

// What the gradients of the small weights are sums of, for each row from step to step.
template <class E>
struct RowSums {
  E *peepholes, *ln_hh, *ln_c, *ln_c_bias;  // ? [B, (G-1)*H], [B, G*H], [B, H], [B, H]
  bool begins;                              // nothing is there yet

  DEVICE void add(E* sums, int64_t at, E value) const {
    if (sums) sums[at] = begins ? value : sums[at] + value;
  }
};

// One step.
template <class E>
struct StepBackward {
  Cells<E> cells;
  const E* gates;                 // [B, G*H] activated
  const E *c, *c_before;          // [B, H]; ? [B, H]
  const E *normalised, *moments;  // ? [B, G*H], [B, kMoments]
  const E* dy;                    // ? [B, H], its rows dy_row apart
  int64_t dy_row;
  const E *dh, *dc_after;  // ? [B, H] from the step after
  E* dc;                   // ? [B, H] for the step before, may be dc_after
  E* dzx;                  // [B, G*H]
  E* dzh;                  // ? [B, G*H]
  RowSums<E> sums;

  DEVICE Scalar<E> dh_of(int64_t row, int64_t unit) const {
    const E later = dh ? dh[row * cells.hidden + unit] : E(0);
    return {dy ? later + dy[row * dy_row + unit] : later};
  }
};

// Of one unit: the gradient of c from h, and dz of the gate o -> the gradients of all gates, in
// place too, and of c before.
template <class E>
DEVICE Gates<Scalar<E>> step_state_backward(const StepBackward<E>& p, int64_t row, int64_t unit,
                                            const Gates<Scalar<E>>& gate, Scalar<E> dc_of_h,
                                            Scalar<E> dz_o) {
  const Cells<E>& cells = p.cells;
  const int64_t at = row * cells.hidden + unit;
  const Scalar<E> c_before = {p.c_before ? p.c_before[at] : E(0)};
  Scalar<E> dc = {p.dc_after ? p.dc_after[at] + dc_of_h.value : dc_of_h.value};
  const Gates<Scalar<E>> dz = variant_state_backward(gate, c_before, dz_o, cells.of(unit), dc);
  if (p.dc) p.dc[at] = dc.value;
  E* const dzx = p.dzx + row * cells.columns();
  cells.each_gate(dz, unit, [&](int64_t k, E value) { dzx[k] = value; });
  const int64_t sums = row * (cells.columns() - cells.hidden) + unit;
  p.sums.add(p.sums.peepholes, sums, dz.i.value * c_before.value);
  if (!cells.coupled) {
    p.sums.add(p.sums.peepholes, sums + cells.hidden, dz.f.value * c_before.value);
  }
  p.sums.add(p.sums.peepholes, sums + cells.g_place() * cells.hidden, dz.o.value * p.c[at]);
  return dz;
}

template <class E>
__global__ void step_backward_kernel(StepBackward<E> p) {
  const Cells<E>& cells = p.cells;
  for_each_element(cells.rows, cells.hidden, [&](int64_t row, int64_t unit) {
    const E* const kept = p.gates + row * cells.columns();
    const auto gate = cells.gates_of(unit, [&](int64_t k) { return kept[k]; });
    const Scalar<E> c = {p.c[row * cells.hidden + unit]};
    Scalar<E> dz_o;
    const Scalar<E> dc =
        variant_output_backward(gate.o, c, p.dh_of(row, unit), cells.of(unit), dz_o);
    step_state_backward(p, row, unit, gate, dc, dz_o);
  });
}

template <class E>
__global__ void __launch_bounds__(kRowThreads) step_backward_rows_kernel(StepBackward<E> p) {
  const Cells<E>& cells = p.cells;
  const int64_t row = blockIdx.x;
  const int64_t first = row * cells.columns(), first_unit = row * cells.hidden;
  const E* const kept = p.gates + first;
  const E* const normalised = p.normalised + first;
  E* const dzx = p.dzx + first;
  const E* const moments = p.moments + row * Records<E>::kMoments;
  const E scale = moments[kScaleOfCell];
  const auto normalised_c = [&](int64_t unit) {
    return (p.c[first_unit + unit] - moments[kMeanOfCell]) * scale;
  };
  // Through h to the normalised c. Two places of dzx hold what comes of it until all sums are
  // known: that of i the gradient times the gain, that of o the gradient of its gate.
  const int64_t o_place = cells.o_place() * cells.hidden;
  E of_c[2] = {0, 0};
  for_each_of_row(cells.hidden, [&](int64_t unit) {
    const E own = normalised_c(unit), gain = cells.ln_c[unit];
    const E bias = cells.ln_c_bias ? cells.ln_c_bias[unit] : E(0);
    Scalar<E> dz_o;
    const E ds =
        variant_output_backward(Scalar<E>{kept[o_place + unit]}, Scalar<E>{gain * own + bias},
                                p.dh_of(row, unit), cells.of(unit), dz_o)
            .value;
    p.sums.add(p.sums.ln_c, first_unit + unit, ds * own);
    p.sums.add(p.sums.ln_c_bias, first_unit + unit, ds);
    dzx[unit] = ds * gain;
    dzx[o_place + unit] = dz_o.value;
    of_c[0] += ds * gain;
    of_c[1] += ds * gain * own;
  });
  sum_over_block(of_c);
  // Through c to the gates.
  const E units = static_cast<E>(cells.hidden);
  E of_z[2] = {0, 0};
  for_each_of_row(cells.hidden, [&](int64_t unit) {
    const auto gate = cells.gates_of(unit, [&](int64_t k) { return kept[k]; });
    const E apart = dzx[unit] - of_c[0] / units;
    const Scalar<E> dc = {scale * (apart - normalised_c(unit) * (of_c[1] / units))};
    const auto dz = step_state_backward(p, row, unit, gate, dc, Scalar<E>{dzx[o_place + unit]});
    cells.each_gate(dz, unit, [&](int64_t k, E value) {
      p.sums.add(p.sums.ln_hh, first + k, value * normalised[k]);
      of_z[0] += value * cells.ln_hh[k];
      of_z[1] += value * cells.ln_hh[k] * normalised[k];
    });
  });
  sum_over_block(of_z);
  // Through LayerNorm to the products; a barrier lies between this and other threads' dzx.
  const E count = static_cast<E>(cells.columns());
  for_each_of_row(cells.columns(), [&](int64_t k) {
    const E apart = dzx[k] * cells.ln_hh[k] - of_z[0] / count;
    p.dzh[first + k] = moments[kScaleOfProducts] * (apart - normalised[k] * (of_z[1] / count));
  });
}

}  // namespace recurrence
}  // namespace cuda
}  // namespace fused_lstm
