// The kernels between the products of the stepwise family: the cell, forward and backward, one
// thread for all four gates of one unit of one row, and the few that move or add up rows.
// S is the stored type, E = Compute<S> what sums, c, dc and dh are held in.
#pragma once

#include "queue.cuh"
#include "scalar.cuh"

namespace fused_lstm {
namespace cuda {

using device::Compute;

// Of one unit in one row: its gates before activation, z [rows, 4H] and biases [4H] (?) added up.
template <class Call>
DEVICE auto pre_activations(const Call& p, int64_t row, int64_t unit) {
  using E = typename Call::E;
  const auto pre_activation = [&](int gate) {
    const int64_t at = gate * p.hidden + unit;
    E sum = p.z[row * 4 * p.hidden + at];
    if (p.b_ih) sum += device::to_float(p.b_ih[at]);
    if (p.b_hh) sum += device::to_float(p.b_hh[at]);
    return Scalar<E>{sum};
  };
  return Gates<Scalar<E>>{pre_activation(0), pre_activation(1), pre_activation(2),
                          pre_activation(3)};
}

// Its gates, or their gradients, in an array [rows, 4H].
template <class S>
DEVICE Gates<Scalar<Compute<S>>> load_gates(const S* all, int64_t hidden, int64_t row,
                                            int64_t unit) {
  const S* const from = all + row * 4 * hidden + unit;
  const auto gate_of = [&](int64_t gate) {
    return Scalar<Compute<S>>{device::to_float(from[gate * hidden])};
  };
  return {gate_of(0), gate_of(1), gate_of(2), gate_of(3)};
}
template <class S>
DEVICE void store_gates(const Gates<Scalar<Compute<S>>>& gate, S* all, int64_t hidden, int64_t row,
                        int64_t unit) {
  S* const to = all + row * 4 * hidden + unit;
  to[0] = device::from_float<S>(gate.i.value);
  to[hidden] = device::from_float<S>(gate.f.value);
  to[2 * hidden] = device::from_float<S>(gate.g.value);
  to[3 * hidden] = device::from_float<S>(gate.o.value);
}

// ? marks what may be null. In the order of a direction's walk, the first `before` rows of a step
// have a step before it, and the first `after` rows one after it; the others begin or end here.
template <class S>
struct CellForward {
  using E = Compute<S>;
  int64_t rows, hidden, before, after;
  const E* z;            // [rows, 4H] x W_ih^T + h W_hh^T
  const S *b_ih, *b_hh;  // ? [4H]
  const E* c_before;     // [before, H], may be c
  const S* c0;           // ? [B, H], zero where not given
  E* c;                  // [rows, H]
  S* gates;              // ? [rows, 4H] activated
  S* h;                  // [rows, H], its rows h_row apart
  int64_t h_row;
  S *h_n, *c_n;  // ? [B, H]; [B, H]: rows that end here
};

template <class S>
__global__ void cell_forward_kernel(CellForward<S> p) {
  using E = Compute<S>;
  for_each_element(p.rows, p.hidden, [&](int64_t row, int64_t unit) {
    const int64_t at = row * p.hidden + unit;
    Scalar<E> c_before = {0}, c, h;
    if (row < p.before) {
      c_before.value = p.c_before[at];
    } else if (p.c0) {
      c_before.value = device::to_float(p.c0[at]);
    }
    Gates<Scalar<E>> gate = pre_activations(p, row, unit);
    cell_forward(gate, c_before, c, h);
    const S stored_h = device::from_float<S>(h.value);
    p.c[at] = c.value;
    p.h[row * p.h_row + unit] = stored_h;
    if (p.gates) store_gates(gate, p.gates, p.hidden, row, unit);
    if (row >= p.after) {
      if (p.h_n) p.h_n[at] = stored_h;
      p.c_n[at] = device::from_float<S>(c.value);
    }
  });
}

template <class S>
struct CellBackward {
  using E = Compute<S>;
  int64_t rows, hidden, before, after;
  const S* gates;         // [rows, 4H] as forward saved them, may be dz
  const E *c, *c_before;  // [rows, H], [before, H]
  const S* c0;            // ? [B, H]
  const S* dy;            // ? [rows, H], its rows dy_row apart
  int64_t dy_row;
  const E* dh;  // [dh_rows, H] from the step after, or through a projection: of all rows
  int64_t dh_rows;
  const S *dh_n, *dc_n;  // ? [B, H]
  E* dc;                 // [B, H] from the step after, on return for the step before
  S* dz;                 // [rows, 4H]
  S* dc0;                // ? [B, H]
};

template <class S>
__global__ void cell_backward_kernel(CellBackward<S> p) {
  using E = Compute<S>;
  for_each_element(p.rows, p.hidden, [&](int64_t row, int64_t unit) {
    const int64_t at = row * p.hidden + unit;
    Scalar<E> c_before = {0}, dh = {0}, dc = {0};
    if (row < p.before) {
      c_before.value = p.c_before[at];
    } else if (p.c0) {
      c_before.value = device::to_float(p.c0[at]);
    }
    if (row < p.dh_rows) {
      dh.value = p.dh[at];
    } else if (p.dh_n) {
      dh.value = device::to_float(p.dh_n[at]);
    }
    if (row < p.after) {
      dc.value = p.dc[at];
    } else if (p.dc_n) {
      dc.value = device::to_float(p.dc_n[at]);
    }
    if (p.dy) dh.value += device::to_float(p.dy[row * p.dy_row + unit]);
    const Gates<Scalar<E>> gate = load_gates(p.gates, p.hidden, row, unit);
    store_gates(cell_backward(gate, c_before, Scalar<E>{p.c[at]}, dh, dc), p.dz, p.hidden, row,
                unit);
    p.dc[at] = dc.value;
    if (p.dc0 && row >= p.before) p.dc0[at] = device::from_float<S>(dc.value);
  });
}

// Gates that no forward saved, [rows, 4H], from what forward had them from.
template <class S>
struct Activate {
  using E = Compute<S>;
  int64_t rows, hidden;
  const E* z;            // [rows, 4H] x W_ih^T + h W_hh^T; where S is E this may be gates
  const S *b_ih, *b_hh;  // ? [4H]
  S* gates;
};

template <class S>
__global__ void activate_kernel(Activate<S> p) {
  for_each_element(p.rows, p.hidden, [&](int64_t row, int64_t unit) {
    auto gate = pre_activations(p, row, unit);
    activate(gate);
    store_gates(gate, p.gates, p.hidden, row, unit);
  });
}

// With a projection: h as computed by a product -> y, and h_n of the rows that end here.
template <class S>
struct StoreH {
  int64_t rows, features, after;
  const Compute<S>* from;  // [rows, P]
  S* y;                    // [rows, P], its rows y_row apart
  int64_t y_row;
  S* h_n;  // [B, P]
};

template <class S>
__global__ void store_h_kernel(StoreH<S> p) {
  for_each_element(p.rows, p.features, [&](int64_t row, int64_t unit) {
    const int64_t at = row * p.features + unit;
    const S h = device::from_float<S>(p.from[at]);
    p.y[row * p.y_row + unit] = h;
    if (row >= p.after) p.h_n[at] = h;
  });
}

// With a projection: all that arrives at h, as stored, for the products with W_hr.
template <class S>
struct GatherDh {
  int64_t rows, features, after;
  const S* dy;  // ? [rows, P], its rows dy_row apart
  int64_t dy_row;
  const Compute<S>* dh;  // [after, P] from the step after
  const S* dh_n;         // ? [B, P]
  S* to;                 // [rows, P]
};

template <class S>
__global__ void gather_dh_kernel(GatherDh<S> p) {
  for_each_element(p.rows, p.features, [&](int64_t row, int64_t unit) {
    const int64_t at = row * p.features + unit;
    Compute<S> sum = 0;
    if (row < p.after) {
      sum = p.dh[at];
    } else if (p.dh_n) {
      sum = device::to_float(p.dh_n[at]);
    }
    if (p.dy) sum += device::to_float(p.dy[row * p.dy_row + unit]);
    p.to[at] = device::from_float<S>(sum);
  });
}

// Blocks [rows, features] at even distances, made dense within; zeros when `from` is null.
template <class S>
struct CopyBlocks {
  int64_t blocks, rows, features;
  const S* from;  // ? [blocks, rows, features], strides from_block, from_row, 1
  int64_t from_block, from_row;
  S* to;  // stride to_block from block to block
  int64_t to_block;
};

template <class S>
__global__ void copy_blocks_kernel(CopyBlocks<S> p) {
  for_each_element(p.blocks * p.rows, p.features, [&](int64_t all, int64_t column) {
    const int64_t block = all / p.rows, row = all % p.rows;
    p.to[block * p.to_block + row * p.features + column] =
        p.from ? p.from[block * p.from_block + row * p.from_row + column]
               : device::from_float<S>(0);
  });
}

// Sums of columns over slices of the rows, each by one thread from top to bottom, so that the order
// never depends on the schedule; added to what is there when `add`.
template <class S>
struct SumSlices {
  int64_t rows, columns, slices;
  const S* from;     // [rows, columns]
  Compute<S>* sums;  // [slices, columns]
  bool add;
};

template <class S>
__global__ void sum_slices_kernel(SumSlices<S> p) {
  const int64_t each = (p.rows + p.slices - 1) / p.slices;
  for_each_element(p.slices, p.columns, [&](int64_t slice, int64_t column) {
    const int64_t first = slice * each, end = first + each < p.rows ? first + each : p.rows;
    Compute<S> sum = p.add ? p.sums[slice * p.columns + column] : 0;
    for (int64_t row = first; row < end; ++row) {
      sum += device::to_float(p.from[row * p.columns + column]);
    }
    p.sums[slice * p.columns + column] = sum;
  });
}

// to[i] = the sum over all slices of from[slice, i], rounded once: slices = 1 only rounds.
template <class S>
struct Round {
  int64_t slices, count;
  const Compute<S>* from;  // [slices, count]
  S* to;                   // [count]
};

template <class S>
__global__ void round_kernel(Round<S> p) {
  for_each_element(1, p.count, [&](int64_t, int64_t i) {
    Compute<S> sum = 0;
    for (int64_t slice = 0; slice < p.slices; ++slice) sum += p.from[slice * p.count + i];
    p.to[i] = device::from_float<S>(sum);
  });
}

}  // namespace cuda
}  // namespace fused_lstm
