// The cell kernels of the stepwise family with the options of marks.cuh, and the few that gather
// what a chunk's products read. As in pointwise.cuh one thread has one unit of one row, and there
// is one launch a step: the kernel of a step also leaves what the next product reads as h, where
// that is not simply y. All steps have all B rows; a row without the step is zeros in every array
// that the step writes.
#pragma once

#include "marks.cuh"
#include "pointwise.cuh"

namespace fused_lstm {
namespace cuda {

template <class S>
struct OptionsForward {
  CellForward<S> cell;  // its rows are B; before and after mean nothing
  int32_t t;
  ReadH<S> read_h;
  Zones<Compute<S>> zones;
  const S* y_before;  // h of the step before, its rows cell.h_row apart
  S* next_h;          // ? [B, H]: what the gates of the next step read
  S* cells;           // ? c of this step, its rows cells_row apart
  int64_t cells_row;
};

template <class S>
__global__ void options_forward_kernel(OptionsForward<S> p) {
  using E = Compute<S>;
  using From = Marks::From;
  const CellForward<S>& cell = p.cell;
  const Marks& marks = p.read_h.marks;
  for_each_element(cell.rows, cell.hidden, [&](int64_t row, int64_t column) {
    const int32_t b = static_cast<int32_t>(row), unit = static_cast<int32_t>(column);
    const int64_t at = row * cell.hidden + unit;
    const From from = marks.from(p.t, b);
    const S* const h0 = p.read_h.h0 ? p.read_h.h0 + at : nullptr;
    Gates<Scalar<E>> gate = {};
    Scalar<E> c = {0}, h = {0};
    if (from != From::kNoStep) {
      Scalar<E> c_before = {0};
      if (from == From::kStepBefore) c_before.value = cell.c_before[at];
      if (from == From::kInitial && cell.c0) c_before.value = device::to_float(cell.c0[at]);
      gate = pre_activations(cell, row, unit);
      cell_forward(gate, c_before, c, h);
      if (p.zones.on) {
        const auto share = p.zones.at(int64_t{p.t} * marks.B + b, unit);
        E h_before = 0;
        if (from == From::kStepBefore) {
          h_before = device::to_float(p.y_before[row * cell.h_row + unit]);
        }
        if (from == From::kInitial && h0) h_before = device::to_float(*h0);
        h.value = kept(share.h, h_before, h.value);
        c.value = kept(share.c, c_before.value, c.value);
      }
    }
    S last_h = device::from_float<S>(h.value), last_c = device::from_float<S>(c.value);
    cell.c[at] = c.value;
    cell.h[row * cell.h_row + unit] = last_h;
    if (cell.gates) store_gates(gate, cell.gates, cell.hidden, row, unit);
    if (p.cells) p.cells[row * p.cells_row + unit] = last_c;
    if (p.next_h && marks.exists(marks.after(p.t))) {
      p.next_h[at] = p.read_h(marks.after(p.t), b, unit, &last_h);
    }
    if (from == From::kNoStep) {
      if (!Marks::is_first_of_all(p.t)) return;
      last_h = h0 ? *h0 : device::from_float<S>(0);
      last_c = cell.c0 ? cell.c0[at] : device::from_float<S>(0);
    } else if (!marks.ends(p.t, b)) {
      return;
    }
    cell.h_n[at] = last_h;
    cell.c_n[at] = last_c;
  });
}

// What a step hands back as the gradient of the h before it.
template <class S>
struct HandBack {
  using E = Compute<S>;
  Marks marks;
  int64_t hidden;
  const E* dh;       // [B, H] dz W_hh of that step
  E* dh_kept;        // ? [B, H] what zoneout passed by its cells; with zoneout only
  const S* factors;  // ? [B, H]
  S* dh0;            // ? [B, H]

  // Of step t. Where that was the row's first, the result is also the gradient of its initial
  // state.
  DEVICE E operator()(int32_t t, int32_t b, int64_t at) const {
    const Marks::From from = marks.from(t, b);
    if (from == Marks::From::kNoStep) return 0;
    E value = 0;
    if (from != Marks::From::kZeros) {
      value = dh[at];
      if (factors) value *= device::to_float(factors[at]);
      if (dh_kept) value += dh_kept[at];
    }
    if (dh0 && marks.starts(t, b)) dh0[at] = device::from_float<S>(value);
    return value;
  }
};

template <class S>
struct OptionsBackward {
  CellBackward<S> cell;  // its rows are B; before, after and dh mean nothing
  int32_t t;
  HandBack<S> hand_back;
  Zones<Compute<S>> zones;
  const S* dcells;  // ? [B, H], its rows dcells_row apart
  int64_t dcells_row;
};

template <class S>
__global__ void options_backward_kernel(OptionsBackward<S> p) {
  using E = Compute<S>;
  using From = Marks::From;
  const CellBackward<S>& cell = p.cell;
  const Marks& marks = p.hand_back.marks;
  for_each_element(cell.rows, cell.hidden, [&](int64_t row, int64_t unit) {
    const int32_t b = static_cast<int32_t>(row), after = marks.after(p.t);
    const int64_t at = row * cell.hidden + unit;
    const From from = marks.from(p.t, b);
    const auto given = [&](const S* state) { return state ? device::to_float(state[at]) : E(0); };
    E dh = 0;
    if (marks.exists(after)) dh = p.hand_back(after, b, at);
    if (marks.ends(p.t, b)) dh = given(cell.dh_n);
    Scalar<E> dc = {marks.exists(after) ? cell.dc[at] : given(cell.dc_n)};
    if (from == From::kNoStep) {
      cell.dc[at] = dc.value;
      store_gates({}, cell.dz, cell.hidden, row, unit);
      if (!Marks::is_first_of_all(p.t)) return;
      if (p.hand_back.dh0) p.hand_back.dh0[at] = device::from_float<S>(given(cell.dh_n));
      if (cell.dc0) cell.dc0[at] = device::from_float<S>(given(cell.dc_n));
      return;
    }
    if (cell.dy) dh += device::to_float(cell.dy[row * cell.dy_row + unit]);
    if (p.dcells) dc.value += device::to_float(p.dcells[row * p.dcells_row + unit]);
    Scalar<E> c_before = {0}, c = {cell.c[at]};
    if (from == From::kStepBefore) c_before.value = cell.c_before[at];
    if (from == From::kInitial) c_before.value = given(cell.c0);
    const Gates<Scalar<E>> gate = load_gates(cell.gates, cell.hidden, row, unit);
    E dc_kept = 0;
    if (p.zones.on) {  // the cell's own part, and what its gates had made of c
      const auto share = p.zones.at(int64_t{p.t} * marks.B + b, static_cast<int32_t>(unit));
      p.hand_back.dh_kept[at] = share.h * dh;
      dh -= share.h * dh;
      dc_kept = share.c * dc.value;
      dc.value -= dc_kept;
      c = cell_state(gate, c_before);
    }
    store_gates(cell_backward(gate, c_before, c, Scalar<E>{dh}, dc), cell.dz, cell.hidden, row,
                unit);
    dc.value = from == From::kZeros ? 0 : dc.value + dc_kept;
    cell.dc[at] = dc.value;
    if (cell.dc0 && marks.starts(p.t, b)) cell.dc0[at] = device::from_float<S>(dc.value);
  });
}

// The gradient of the initial states of rows whose first step is the direction's own first.
template <class S>
struct FinishDh0 {
  int64_t rows;
  int32_t t;  // of that step
  HandBack<S> hand_back;
};

template <class S>
__global__ void finish_dh0_kernel(FinishDh0<S> p) {
  for_each_element(p.rows, p.hand_back.hidden, [&](int64_t row, int64_t unit) {
    p.hand_back(p.t, static_cast<int32_t>(row), row * p.hand_back.hidden + unit);
  });
}

// The h that the gates of a stretch of steps read, side by side.
template <class S>
struct GatherH {
  ReadH<S> read_h;
  int64_t first, rows;  // of all T * B
  const S* y;           // this direction's columns
  int64_t y_t, y_b;
  S* to;  // [rows, H]
};

template <class S>
__global__ void gather_h_kernel(GatherH<S> p) {
  const Marks& marks = p.read_h.marks;
  for_each_element(p.rows, p.read_h.hidden, [&](int64_t row, int64_t unit) {
    const int32_t t = static_cast<int32_t>((p.first + row) / marks.B);
    const int32_t b = static_cast<int32_t>((p.first + row) % marks.B);
    const S* const h = p.y + marks.before(t) * p.y_t + b * p.y_b + unit;
    p.to[row * p.read_h.hidden + unit] = p.read_h(t, b, static_cast<int32_t>(unit), h);
  });
}

// x of a stretch of steps, zeros where a row has ended: what lies there may be no number, and no
// factor of zero would keep it from a sum over rows.
template <class S>
struct GatherX {
  Marks marks;
  int64_t first, rows, features;
  const S* x;
  int64_t x_t, x_b;
  S* to;  // [rows, I]
};

template <class S>
__global__ void gather_x_kernel(GatherX<S> p) {
  for_each_element(p.rows, p.features, [&](int64_t row, int64_t column) {
    const int32_t t = static_cast<int32_t>((p.first + row) / p.marks.B);
    const int32_t b = static_cast<int32_t>((p.first + row) % p.marks.B);
    p.to[row * p.features + column] =
        p.marks.ended(t, b) ? device::from_float<S>(0) : p.x[t * p.x_t + b * p.x_b + column];
  });
}

}  // namespace cuda
}  // namespace fused_lstm
