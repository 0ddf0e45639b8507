// Forward of the single-block family: one block takes `kRows` batch rows of one direction through
// all steps, with W_hh in its registers and shared memory. Nothing crosses blocks.
//
// One step, and its one barrier (h, x and the projected input lie twice in shared memory):
//
//   wait for input(s) | BARRIER | fetch input(s + 1) | sums = W [h(s - 1); x(s)] | cells -> h(s), y
//
// All rows of a block are at the same time t; a packed row that is over, or whose reverse direction
// has not begun, sits the step out and keeps its state.
//
// Here are the tensor core kernel and what it shares with the strict one.
#pragma once

#include "activation.cuh"
#include "single_block_options.cuh"
#include "single_block_weights.cuh"

namespace fused_lstm {
namespace cuda {
namespace single_block {

// Pointers marked ? may be null.
template <class T>
struct ForwardCall {
  Sequence sequence;
  int32_t inputs, hidden;
  int32_t input_depth;  // see Tiles; 0: x comes projected
  const T* x;
  int64_t x_t, x_b;
  const float* projected[2];   // ? [N, 4H] x W_ih^T
  const uint4 *w_hh, *w_ih;    // in fragment order; w_ih ?, and not used by the strict kernel
  const T* w_ih_rows[2];       // [4H, I]
  const T *b_ih[2], *b_hh[2];  // ? [4H]
  const T *h0, *c0;            // ? [D, B, H]
  T* y;
  int64_t y_t, y_b;
  bool wide_y, wide_c0;  // their pairs of units are aligned
  T *h_n, *c_n;          // [D, B, H]
  T* gates[2];           // ? [N, 4H] activated, for backward
  float* cells[2];       // ? [N, H]
  StepOptions<T> options;
  T* all_cells;  // ? [T, B, D*H], with options
  bool wide_all_cells;
};

// The input of one step on its way into shared memory. Projected rows are copied there directly; x
// goes through registers, because its rows may begin anywhere. A warp takes whole rows, a lane
// features lane and lane + 32 of them.
template <class Element, int kUnits, int kRows>
struct StepInput {
  using T = Stored<Element>;
  static constexpr int kWarps = kUnits / kWarpUnits, kRowsOfWarp = (kRows + kWarps - 1) / kWarps;
  T x[kRowsOfWarp][2] = {};

  // first: see Sequence, of step s. projected: where the rows of that step go.
  DEVICE void fetch(const ForwardCall<T>& call, const BlockRows& block, int s, int64_t first,
                    float* projected, int pitch) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, time = block.time(s);
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
      const int row = warp + r * kWarps, b = block.first_row + row;
      if (row >= kRows || time >= block.length(row)) continue;
      if (call.input_depth == 0) {
        const float* from =
            call.projected[block.direction] + (first + b) * int64_t{4} * call.hidden;
        for (int i = lane; i < call.hidden; i += 32) {
          device::cp_async<16>(projected + row * pitch + 4 * i, from + 4 * i);
        }
      } else {
        const T* from = call.x + call.sequence.row_start(time, first, b, call.x_t, call.x_b);
        if (lane < call.inputs) x[r][0] = from[lane];
        if (lane + 32 < call.inputs) x[r][1] = from[lane + 32];
      }
    }
    device::cp_async_commit();
  }

  // Behind h in the rows of the state. What rows that were not fetched hold does not matter: no row
  // meets another, and they sit out.
  DEVICE void put_x(const ForwardCall<T>& call, uint32_t* state, int pitch) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (call.input_depth == 0) return;
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
      const int row = warp + r * kWarps;
      if (row >= kRows) continue;
      uint32_t* const to = state + row * pitch;
      if (lane < call.inputs) put<Element>(to, kUnits + lane, device::to_float(x[r][0]));
      if (lane + 32 < call.inputs) put<Element>(to, kUnits + lane + 32, device::to_float(x[r][1]));
    }
  }
};

// Bias and the state before the first step, twice [rows][pitch] words, by all threads of a block.
template <class Element, int kUnits, int kRows, bool kOptions>
DEVICE void begin_block(const ForwardCall<Stored<Element>>& call, const BlockRows& block,
                        float4* bias, uint32_t* state, int pitch) {
  using T = Stored<Element>;
  const int thread = threadIdx.x, threads = 2 * kUnits, hidden = call.hidden;
  const T *b_ih = call.b_ih[block.direction], *b_hh = call.b_hh[block.direction];
  for (int i = thread; i < 4 * kUnits; i += threads) {
    const int unit = i / 4, at = i % 4 * hidden + unit;
    float sum = 0.0f;
    if (unit < hidden && b_ih != nullptr) sum += device::to_float(b_ih[at]);
    if (unit < hidden && b_hh != nullptr) sum += device::to_float(b_hh[at]);
    reinterpret_cast<float*>(bias)[i] = sum;
  }
  // Padding is zero for good: its weights are, and 0 * NaN is NaN.
  for (int i = thread; i < 2 * kRows * pitch; i += threads) state[i] = 0;
  __syncthreads();
  // h0 goes into both buffers: who knows in which a row finds it that joins later.
  for (int row = thread / 32; call.h0 != nullptr && row < block.rows; row += threads / 32) {
    if (kOptions && (mark_at(call.options, block, row, 0) & kMarkReset) != 0) continue;
    for (int k = thread % 32; k < hidden; k += 32) {
      float h0 = device::to_float(call.h0[block.state(row, hidden) + k]);
      if (kOptions && call.options.h_factors != nullptr) {
        h0 *= device::to_float(call.options.h_factors[block.state(row, hidden) + k]);
      }
      put<Element>(state + row * pitch, k, h0);
      put<Element>(state + (kRows + row) * pitch, k, h0);
    }
  }
}

template <class T>
DEVICE void load_c0(const ForwardCall<T>& call, const BlockRows& block, int row,
                    const UnitPair& pair, float (&c)[2]) {
  c[0] = c[1] = 0.0f;
  if (call.c0 == nullptr || row >= block.rows || !pair.exists) return;
  const Pair<T> c0 =
      load_pair(call.c0 + block.state(row, call.hidden) + pair.unit, call.wide_c0, pair.both);
  c[0] = device::to_float(c0.first), c[1] = device::to_float(c0.second);
}

// The cells of a pair of units in one row: z [gate][unit] becomes the activated gates, c the state.
template <class Number>
DEVICE void compute_cells(float (&z)[4][2], float (&c)[2], float (&h)[2]) {
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    Gates<Number> gates = {{z[0][q]}, {z[1][q]}, {z[2][q]}, {z[3][q]}};
    Number new_c, new_h;
    cell_forward(gates, Number{c[q]}, new_c, new_h);
    c[q] = new_c.value, h[q] = new_h.value;
    z[0][q] = gates.i.value, z[1][q] = gates.f.value;
    z[2][q] = gates.g.value, z[3][q] = gates.o.value;
  }
}

// What they leave in memory: y, in training gates and cells, and h_n and c_n when this is the row's
// last step.
template <class T>
DEVICE void store_cells(const ForwardCall<T>& call, const BlockRows& block, int row, int time,
                        bool last, int64_t first, const UnitPair& pair, const float (&z)[4][2],
                        const float (&c)[2], const float (&h)[2]) {
  const int hidden = call.hidden, b = block.first_row + row;
  T* const y = call.y + call.sequence.row_start(time, first, b, call.y_t, call.y_b) +
               block.direction * hidden + pair.unit;
  store_pair(y, h[0], h[1], call.wide_y, pair.both);
  if (call.cells[0] != nullptr) {
    store_pair(call.cells[block.direction] + (first + b) * hidden + pair.unit, c[0], c[1],
               pair.wide, pair.both);
  }
  if (call.gates[0] != nullptr) {
    T* const gates = call.gates[block.direction] + (first + b) * 4 * hidden + pair.unit;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      store_pair(gates + gate * hidden, z[gate][0], z[gate][1], pair.wide, pair.both);
    }
  }
  if (last) {
    const int64_t at = block.state(row, hidden) + pair.unit;
    store_pair(call.h_n + at, h[0], h[1], pair.wide, pair.both);
    store_pair(call.c_n + at, c[0], c[1], pair.wide, pair.both);
  }
}

// The row's part of a projected input, onto z.
template <class T>
DEVICE void add_projected(const ForwardCall<T>& call, const UnitPair& pair, const float* projected,
                          float (&z)[4][2]) {
  if (call.input_depth != 0) return;
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
    const Pair<float> x =
        load_pair(projected + gate * call.hidden + pair.unit, pair.wide, pair.both);
    z[gate][0] += x.first, z[gate][1] += x.second;
  }
}

// Both, from z before activation, bias and x included unless x comes projected; projected: the
// row's. h goes into the row of the next state besides.
template <class Number, class Element>
DEVICE void forward_cells(const ForwardCall<Stored<Element>>& call, const BlockRows& block, int row,
                          int length, int time, int64_t first, const UnitPair& pair,
                          float (&z)[4][2], const float* projected, float (&c)[2],
                          uint32_t* next_state) {
  add_projected(call, pair, projected, z);
  float h[2];
  compute_cells<Number>(z, c, h);
  // The unit past the end meets zero weights only, but what it holds may not be finite.
  put_pair<Element>(next_state, pair.unit, h[0], pair.both ? h[1] : 0.0f);
  store_cells(call, block, row, time, block.is_last(time, length), first, pair, z, c, h);
}

// What a lane keeps of a row for the options.
template <class T>
struct ForwardRow {
  float h[2];        // as it is in y
  MarkWindow marks;  // of the present step and of the next; keep lies where older ones would

  // Step s will be fetched next.
  DEVICE void place(const ForwardCall<T>& call, const BlockRows& block, int row, int s) {
    marks.bytes = 0;
    marks.push(mark_at(call.options, block, row, s));
  }
  // Step 0 will. The state in shared memory is h0.
  DEVICE void begin(const ForwardCall<T>& call, const BlockRows& block, int row,
                    const UnitPair& pair) {
    h[0] = h[1] = 0.0f;
    place(call, block, row, 0);
    if (call.h0 == nullptr || row >= block.rows || !pair.exists) return;
    const T* const h0 = call.h0 + block.state(row, call.hidden) + pair.unit;
    h[0] = device::to_float(h0[0]);
    if (pair.both) h[1] = device::to_float(h0[1]);
  }
  DEVICE void fetch(const ForwardCall<T>& call, const BlockRows& block, int row, int s,
                    const UnitPair& pair) {
    marks.push(mark_at(call.options, block, row, s + 1));
    const uint32_t keep = keep_at(call.options, block, row, s, call.hidden, pair);
    marks.bytes = (marks.bytes & 0xffff0000u) | keep;
  }
};

// compute_cells with options; state.h is a state as c is. stored_h, stored_c: what y and the cells
// of every step show. A row without this step keeps its states and leaves zeros.
template <class Number, class T>
DEVICE void compute_cells_with_options(const ForwardCall<T>& call, float (&z)[4][2], float (&c)[2],
                                       ForwardRow<T>& state, float (&stored_h)[2],
                                       float (&stored_c)[2]) {
  const StepOptions<T>& options = call.options;
  if (state.marks.ended(1)) {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) z[gate][0] = z[gate][1] = 0.0f;
    stored_h[0] = stored_h[1] = stored_c[0] = stored_c[1] = 0.0f;
    return;
  }
  if (state.marks.resets(1)) c[0] = c[1] = state.h[0] = state.h[1] = 0.0f;
  const float before[2] = {c[0], c[1]};
  compute_cells<Number>(z, c, stored_h);
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    if (options.zones) {
      stored_h[q] = kept(share(options, state.marks.bytes, kKeepH, q), state.h[q], stored_h[q]);
      c[q] = kept(share(options, state.marks.bytes, kKeepC, q), before[q], c[q]);
    }
    state.h[q] = device::to_float(device::from_float<T>(stored_h[q]));
    stored_c[q] = c[q];
  }
}

// The h that the gates of the next step read. False where the row has no next step.
template <class T>
DEVICE bool next_h(const ForwardCall<T>& call, const BlockRows& block, int row,
                   const UnitPair& pair, const ForwardRow<T>& state, float (&h)[2]) {
  h[0] = h[1] = 0.0f;
  if (state.marks.ended(0)) return false;
  if (state.marks.resets(0)) return true;
  const float2 factor = factors_at(call.options, block, row, call.hidden, pair);
  h[0] = state.h[0] * factor.x, h[1] = state.h[1] * factor.y;
  return true;
}

// store_cells with options, and the states of a row that has no step at all.
template <class T>
DEVICE void store_cells_with_options(const ForwardCall<T>& call, const BlockRows& block, int row,
                                     int time, int64_t first, const UnitPair& pair,
                                     const float (&z)[4][2], const float (&c)[2],
                                     const ForwardRow<T>& state, const float (&stored_h)[2],
                                     const float (&stored_c)[2]) {
  const bool ended = state.marks.ended(1), stays = !state.marks.ended(0);
  store_cells(call, block, row, time, !ended && !stays, first, pair, z, stored_c, stored_h);
  if (call.all_cells != nullptr) {
    const int64_t step_row = first + block.first_row + row;
    const int64_t at = (step_row * call.options.directions + block.direction) * call.hidden;
    store_pair(call.all_cells + at + pair.unit, stored_c[0], stored_c[1], call.wide_all_cells,
               pair.both);
  }
  if (ended && Marks::is_first_of_all(time)) {  // h and c are the initial ones
    const int64_t at = block.state(row, call.hidden) + pair.unit;
    store_pair(call.h_n + at, state.h[0], state.h[1], pair.wide, pair.both);
    store_pair(call.c_n + at, c[0], c[1], pair.wide, pair.both);
  }
}

// forward_cells with options.
template <class Number, class Element>
DEVICE void forward_cells_with_options(const ForwardCall<Stored<Element>>& call,
                                       const BlockRows& block, int row, int time, int64_t first,
                                       const UnitPair& pair, float (&z)[4][2],
                                       const float* projected, float (&c)[2],
                                       ForwardRow<Stored<Element>>& state, uint32_t* next_state) {
  add_projected(call, pair, projected, z);
  float stored_h[2], stored_c[2], h[2];
  compute_cells_with_options<Number>(call, z, c, state, stored_h, stored_c);
  // The unit past the end meets zero weights only, but what it holds may not be finite.
  if (next_h(call, block, row, pair, state, h)) {
    put_pair<Element>(next_state, pair.unit, h[0], pair.both ? h[1] : 0.0f);
  }
  store_cells_with_options(call, block, row, time, first, pair, z, c, state, stored_h, stored_c);
}

// ---- the tensor core kernel ---------------------------------------------------------------------

template <class Element, int kUnits, int kRows, bool kOptions>
__global__ void __launch_bounds__(2 * kUnits, 1) forward_kernel(ForwardCall<Stored<Element>> call) {
  using Resident = ResidentWeights<Element, kUnits, kRows, false, kOptions>;
  if constexpr (!Resident::kRunsHere) return device::refuse();
  constexpr int kWarps = Resident::kWarps, kRowTiles = Resident::kRowTiles;
  constexpr int kProjectedPitch = Resident::kProjectedPitch;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const BlockRows block(call.sequence, kRows, false);
  const UnitPair pair(warp * kWarpUnits + 2 * g, call.hidden);
  const int steps = block.steps, warp_of_all = block.direction * kWarps + warp;

  // Shared memory, in the order of Tiles::shared_bytes.
  const int pitch = Resident::kPitch + call.input_depth * kTileWords;
  uint4* const shared_hh = device::dynamic_shared<uint4>();
  uint4* const shared_ih = shared_hh + kWarps * Resident::kRest * 4 * 32;
  float4* const bias =  // [kUnits], gates side by side
      reinterpret_cast<float4*>(shared_ih + kWarps * call.input_depth * 4 * 32);
  uint32_t* const state = reinterpret_cast<uint32_t*>(bias + kUnits);
  float* const projected = reinterpret_cast<float*>(state + 2 * kRows * pitch);
  const auto state_of = [&](int s) { return state + (s & 1) * kRows * pitch; };
  const auto projected_of = [&](int s) { return projected + (s & 1) * kRows * kProjectedPitch; };

  StepInput<Element, kUnits, kRows> input;
  int64_t first = block.first(0), next_first = block.first(1);
  input.fetch(call, block, 0, first, projected_of(0), kProjectedPitch);
  Resident w_hh;
  w_hh.load(call.w_hh + int64_t{warp_of_all} * Resident::kDepth * 4 * 32,
            shared_hh + warp * Resident::kRest * 4 * 32, lane);
  uint4* const w_ih = shared_ih + warp * call.input_depth * 4 * 32 + lane;  // each lane its own
  for (int i = 0; i < call.input_depth * 4; ++i) {
    w_ih[i * 32] = call.w_ih[(int64_t{warp_of_all} * call.input_depth * 4 + i) * 32 + lane];
  }
  begin_block<Element, kUnits, kRows, kOptions>(call, block, bias, state, pitch);
  input.put_x(call, state, pitch);

  float c[kRowTiles][2][2];  // of rows 8n + 2t + e
  int length[kRowTiles][2];
  [[maybe_unused]] ForwardRow<Stored<Element>> rows[kOptions ? kRowTiles : 1][2];
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    const int row = 8 * (i / 2) + 2 * t + i % 2;
    length[i / 2][i % 2] = block.length(row);
    load_c0(call, block, row, pair, c[i / 2][i % 2]);
    if constexpr (kOptions) rows[i / 2][i % 2].begin(call, block, row, pair);
  }

  for (int s = 0; s < steps; ++s) {
    device::cp_async_wait<0>();
    __syncthreads();
    if (s + 1 < steps) {
      input.fetch(call, block, s + 1, next_first, projected_of(s + 1), kProjectedPitch);
    }
    const int64_t after_next_first = block.first(s + 2);
    if constexpr (kOptions) {
#pragma unroll
      for (int i = 0; i < 2 * kRowTiles; ++i) {
        rows[i / 2][i % 2].fetch(call, block, 8 * (i / 2) + 2 * t + i % 2, s, pair);
      }
    }

    float sums[4][kRowTiles][4];  // of tile 2q + j, see single_block_weights.cuh
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const float4 start = bias[pair.unit + q];
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        sums[2 * q][n][0] = sums[2 * q][n][1] = start.x;
        sums[2 * q][n][2] = sums[2 * q][n][3] = start.y;
        sums[2 * q + 1][n][0] = sums[2 * q + 1][n][1] = start.z;
        sums[2 * q + 1][n][2] = sums[2 * q + 1][n][3] = start.w;
      }
    }
    const uint32_t* const b = operand_address(state_of(s), pitch, lane);
    w_hh.multiply(sums, b, pitch);
    for (int k = 0; k < call.input_depth; ++k) {
      // Lanes beyond 15 hand over addresses that ldmatrix_x2 ignores.
      const uint32_t* const from = b + (Resident::kDepth + k) * kTileWords - lane / 16 * 8;
      uint32_t x[kRowTiles][2];
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) device::ldmatrix_x2(x[n], from + 8 * n * pitch);
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        const uint4 v = w_ih[(k * 4 + tile) * 32];
        const uint32_t a[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) {
          multiply_add<Element>(sums[tile][n], a, x[n][0], x[n][1]);
        }
      }
    }

    const int time = block.time(s);
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      const int n = i / 2, e = i % 2, row = 8 * n + 2 * t + e;
      if (!pair.exists || time >= length[n][e]) continue;
      float z[4][2];
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
#pragma unroll
        for (int q = 0; q < 2; ++q) z[gate][q] = sums[2 * q + gate / 2][n][gate % 2 * 2 + e];
      }
      const float* const row_projected = projected_of(s) + row * kProjectedPitch;
      uint32_t* const next_state = state_of(s + 1) + row * pitch;
      if constexpr (kOptions) {
        forward_cells_with_options<Quick, Element>(call, block, row, time, first, pair, z,
                                                   row_projected, c[n][e], rows[n][e], next_state);
      } else {
        forward_cells<Quick, Element>(call, block, row, length[n][e], time, first, pair, z,
                                      row_projected, c[n][e], next_state);
      }
    }
    if (s + 1 < steps) input.put_x(call, state_of(s + 1), pitch);
    first = next_first;
    next_first = after_next_first;
  }
}

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
