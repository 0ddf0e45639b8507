// Backward of the single-block family: the recurrence from the last step to the first, with W_hh^T
// in one block's registers and shared memory. It leaves dz [N, 4H] for the products that make the
// gradients of weights and input, and writes dh0, dc0 and each block's part of db.
//
// One step, and its one barrier (dz lies twice in shared memory):
//
//   BARRIER | sums = W^T dz(s - 1) | cells -> dz(s) | fetch gates, cells, dy of step s + 1
//
// What is fetched waits in registers, and has the barrier and the next product to arrive in.
//
// The product comes one step late, so a row's dh0 appears in the sums of the step after its last:
// hence one step more than there are times. As in forward, rows sit out the steps they do not have.
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
struct BackwardCall {
  Sequence sequence;
  int32_t hidden;
  const uint4* w_hh;      // transposed, in fragment order
  const T* gates[2];      // [N, 4H]
  const float* cells[2];  // [N, H]
  const T* c0;            // ? [D, B, H]
  const T* dy;            // ?
  int64_t dy_t, dy_b;
  bool wide_dy;          // dy's pairs of units are aligned
  bool wide_states;      // and those of c0, dh_n and dc_n
  const T *dh_n, *dc_n;  // ? [D, B, H]
  T* dz[2];              // [N, 4H]
  T *dh0, *dc0;          // ? [D, B, H]
  float* db;             // [D, blocks, 4H]: each block's part
  StepOptions<T> options;
  const T* dcells;  // ? with options
  int64_t dcells_t, dcells_b;
  bool wide_dcells;
};

// One batch row as a lane sees it: a pair of units.
template <class T>
struct RowState {
  int begin, end;  // takes part in steps begin ... end - 1
  float c[2], dc[2];
  // What the next step needs, as it lies in memory.
  Pair<T> gates[4], dy;
  Pair<float> c_prev;

  DEVICE bool active(int s) const { return s >= begin && s < end; }
  DEVICE void place(const BlockRows& block, int row, const UnitPair& pair) {
    const bool exists = row < block.rows && pair.exists;
    const int length = block.length(row);
    begin = !exists ? block.steps + 1 : block.reverse() ? 0 : block.steps - length;
    end = !exists ? -1 : block.reverse() ? length : block.steps;
  }
};

template <class T>
DEVICE void begin_row(const BackwardCall<T>& call, const BlockRows& block, int row,
                      const UnitPair& pair, RowState<T>& state) {
  state.place(block, row, pair);
  state.dc[0] = state.dc[1] = 0.0f;
  if (state.end < 0 || call.dc_n == nullptr) return;
  const Pair<T> dc =
      load_pair(call.dc_n + block.state(row, call.hidden) + pair.unit, call.wide_states, pair.both);
  state.dc[0] = device::to_float(dc.first), state.dc[1] = device::to_float(dc.second);
}

// first, before: see Sequence, of step s and of the one before it in forward (here s + 1).
template <class T>
DEVICE void fetch_row(const BackwardCall<T>& call, const BlockRows& block, int row, int s,
                      int64_t first, int64_t before, const UnitPair& pair, RowState<T>& to) {
  if (!to.active(s)) return;
  const int hidden = call.hidden, b = block.first_row + row;
  const T* const gates = call.gates[block.direction] + (first + b) * 4 * hidden + pair.unit;
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
    to.gates[gate] = load_pair(gates + gate * hidden, pair.wide, pair.both);
  }
  if (call.dy != nullptr) {
    const int64_t start = call.sequence.row_start(block.time(s), first, b, call.dy_t, call.dy_b);
    to.dy =
        load_pair(call.dy + start + block.direction * hidden + pair.unit, call.wide_dy, pair.both);
  }
  const float* const cells = call.cells[block.direction] + pair.unit;
  to.c_prev = {0.0f, 0.0f};
  if (s + 1 < to.end) {
    to.c_prev = load_pair(cells + (before + b) * hidden, pair.wide, pair.both);
  } else if (call.c0 != nullptr) {
    const Pair<T> c0 =
        load_pair(call.c0 + block.state(row, hidden) + pair.unit, call.wide_states, pair.both);
    to.c_prev = {device::to_float(c0.first), device::to_float(c0.second)};
  }
  if (s == to.begin) {  // later steps have it from the one before
    const Pair<float> c = load_pair(cells + (first + b) * hidden, pair.wide, pair.both);
    to.c[0] = c.first, to.c[1] = c.second;
  }
}

// The cells of a pair of units in one row at step s: dz [gate][unit]. dh: what the step after it in
// time sends back. False where the row has no such step.
template <class Number, class T>
DEVICE bool cell_gradients(const BackwardCall<T>& call, const BlockRows& block, int row, int s,
                           const UnitPair& pair, float (&dh)[2], RowState<T>& state,
                           float (&dz)[4][2]) {
  const int hidden = call.hidden;
  const int64_t at = block.state(row, hidden) + pair.unit;
  if (s == state.end) {
    if (call.dh0 != nullptr) store_pair(call.dh0 + at, dh[0], dh[1], pair.wide, pair.both);
    if (call.dc0 != nullptr) {
      store_pair(call.dc0 + at, state.dc[0], state.dc[1], pair.wide, pair.both);
    }
  }
  if (!state.active(s)) return false;
  if (s == state.begin) {  // no step after it: what came is zeros times weights, not all finite
    dh[0] = dh[1] = 0.0f;
    if (call.dh_n != nullptr) {
      const Pair<T> dh_n = load_pair(call.dh_n + at, call.wide_states, pair.both);
      dh[0] = device::to_float(dh_n.first), dh[1] = device::to_float(dh_n.second);
    }
  }
  if (call.dy != nullptr) {
    dh[0] += device::to_float(state.dy.first), dh[1] += device::to_float(state.dy.second);
  }
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    const auto gate = [&](int k) {
      return Number{device::to_float(q == 0 ? state.gates[k].first : state.gates[k].second)};
    };
    const Gates<Number> gates = {gate(0), gate(1), gate(2), gate(3)};
    const Number c_prev = {q == 0 ? state.c_prev.first : state.c_prev.second};
    Number dc = {state.dc[q]};
    const Gates<Number> d = cell_backward(gates, c_prev, Number{state.c[q]}, Number{dh[q]}, dc);
    state.dc[q] = dc.value;
    state.c[q] = c_prev.value;
    const bool exists = q == 0 || pair.both;  // beyond the end sums may hold anything
    dz[0][q] = exists ? d.i.value : 0.0f, dz[1][q] = exists ? d.f.value : 0.0f;
    dz[2][q] = exists ? d.g.value : 0.0f, dz[3][q] = exists ? d.o.value : 0.0f;
  }
  return true;
}

// What a lane keeps of a row with options. At step s the marks are those of steps s - 1 to s + 2,
// the last of them for what is fetched.
template <class T>
struct OptionRowState {
  static constexpr int kAfter = 3, kNow = 2, kBefore = 1;  // in the order of forward

  MarkWindow marks;
  float dc[2], kept[2];  // kept: what of dh passed by the cells of the step after
  // What the next step needs, as it lies in memory.
  Pair<T> gates[4], dy, dcells;
  Pair<float> c, c_prev;
  uint32_t keep;

  // Step s will be fetched next.
  DEVICE void place(const BackwardCall<T>& call, const BlockRows& block, int row, int s) {
    marks.bytes = 0;
    for (int i = s - 1; i < s + 2; ++i) marks.push(mark_at(call.options, block, row, i));
  }
  DEVICE void begin(const BackwardCall<T>& call, const BlockRows& block, int row,
                    const UnitPair& pair) {
    place(call, block, row, 0);
    dc[0] = dc[1] = kept[0] = kept[1] = 0.0f;
    if (call.dc_n == nullptr || row >= block.rows || !pair.exists) return;
    const Pair<T> dc_n = load_pair(call.dc_n + block.state(row, call.hidden) + pair.unit,
                                   call.wide_states, pair.both);
    dc[0] = device::to_float(dc_n.first), dc[1] = device::to_float(dc_n.second);
  }
  // As fetch_row, before step s's own marks come into the window.
  DEVICE void fetch(const BackwardCall<T>& call, const BlockRows& block, int row, int s,
                    int64_t first, int64_t before, const UnitPair& pair) {
    if (marks.ended(kNow - 1) || row >= block.rows || !pair.exists) return;
    const int hidden = call.hidden, b = block.first_row + row, time = block.time(s);
    const int64_t columns = block.direction * hidden + pair.unit;
    const T* const from = call.gates[block.direction] + (first + b) * 4 * hidden + pair.unit;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      gates[gate] = load_pair(from + gate * hidden, pair.wide, pair.both);
    }
    const auto fetch_step = [&](const T* all, int64_t stride_t, int64_t stride_b, bool wide) {
      const int64_t start = call.sequence.row_start(time, first, b, stride_t, stride_b);
      return load_pair(all + start + columns, wide, pair.both);
    };
    if (call.dy != nullptr) dy = fetch_step(call.dy, call.dy_t, call.dy_b, call.wide_dy);
    if (call.dcells != nullptr) {
      dcells = fetch_step(call.dcells, call.dcells_t, call.dcells_b, call.wide_dcells);
    }
    keep = keep_at(call.options, block, row, s, hidden, pair);
    const float* const cells = call.cells[block.direction] + pair.unit;
    c = load_pair(cells + (first + b) * hidden, pair.wide, pair.both);
    c_prev = {0.0f, 0.0f};
    if (marks.resets(kNow - 1)) return;
    if (!marks.ended(kBefore - 1)) {
      c_prev = load_pair(cells + (before + b) * hidden, pair.wide, pair.both);
    } else if (call.c0 != nullptr) {
      const Pair<T> c0 =
          load_pair(call.c0 + block.state(row, hidden) + pair.unit, call.wide_states, pair.both);
      c_prev = {device::to_float(c0.first), device::to_float(c0.second)};
    }
  }
};

// What reaches h of step s, or of the initial state where that is what came before: from the step
// after, dh on entry, or from h_n.
template <class T>
DEVICE void hand_back(const BackwardCall<T>& call, const BlockRows& block, int row,
                      const UnitPair& pair, const OptionRowState<T>& state, float (&dh)[2]) {
  using Row = OptionRowState<T>;
  const int64_t at = block.state(row, call.hidden) + pair.unit;
  if (state.marks.ended(Row::kAfter)) {  // what came is zeros times weights, not all finite
    dh[0] = dh[1] = 0.0f;
    if (call.dh_n == nullptr) return;
    const Pair<T> dh_n = load_pair(call.dh_n + at, call.wide_states, pair.both);
    dh[0] = device::to_float(dh_n.first), dh[1] = device::to_float(dh_n.second);
    return;
  }
  if (state.marks.resets(Row::kAfter)) {
    dh[0] = dh[1] = 0.0f;
  } else {
    const float2 factor = factors_at(call.options, block, row, call.hidden, pair);
    dh[0] = dh[0] * factor.x + state.kept[0], dh[1] = dh[1] * factor.y + state.kept[1];
  }
  if (state.marks.ended(Row::kNow) && call.dh0 != nullptr) {
    store_pair(call.dh0 + at, dh[0], dh[1], pair.wide, pair.both);
  }
}

// With options; dz is not touched where the row has no such step.
template <class Number, class T>
DEVICE bool cell_gradients(const BackwardCall<T>& call, const BlockRows& block, int row, int s,
                           const UnitPair& pair, float (&dh)[2], OptionRowState<T>& state,
                           float (&dz)[4][2]) {
  using Row = OptionRowState<T>;
  const StepOptions<T>& options = call.options;
  const int64_t at = block.state(row, call.hidden) + pair.unit;
  hand_back(call, block, row, pair, state, dh);
  if (state.marks.ended(Row::kNow)) {
    if (s < block.steps && Marks::is_first_of_all(block.time(s))) {  // dh is dh_n
      if (call.dh0 != nullptr) store_pair(call.dh0 + at, dh[0], dh[1], pair.wide, pair.both);
      if (call.dc0 != nullptr) {
        store_pair(call.dc0 + at, state.dc[0], state.dc[1], pair.wide, pair.both);
      }
    }
    return false;
  }
  if (call.dy != nullptr) {
    dh[0] += device::to_float(state.dy.first), dh[1] += device::to_float(state.dy.second);
  }
  if (call.dcells != nullptr) {
    state.dc[0] += device::to_float(state.dcells.first);
    state.dc[1] += device::to_float(state.dcells.second);
  }
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    const auto gate = [&](int k) {
      return Number{device::to_float(q == 0 ? state.gates[k].first : state.gates[k].second)};
    };
    const Gates<Number> gates = {gate(0), gate(1), gate(2), gate(3)};
    const Number c_prev = {q == 0 ? state.c_prev.first : state.c_prev.second};
    Number c = {q == 0 ? state.c.first : state.c.second}, dc = {state.dc[q]};
    float dc_kept = 0.0f;
    if (options.zones) {  // the cell's own part, and what its gates had made of c
      state.kept[q] = share(options, state.keep, kKeepH, q) * dh[q];
      dh[q] -= state.kept[q];
      dc_kept = share(options, state.keep, kKeepC, q) * dc.value;
      dc.value -= dc_kept;
      c = cell_state(gates, c_prev);
    }
    const Gates<Number> d = cell_backward(gates, c_prev, c, Number{dh[q]}, dc);
    state.dc[q] = state.marks.resets(Row::kNow) ? 0.0f : dc.value + dc_kept;
    const bool exists = q == 0 || pair.both;  // beyond the end sums may hold anything
    dz[0][q] = exists ? d.i.value : 0.0f, dz[1][q] = exists ? d.f.value : 0.0f;
    dz[2][q] = exists ? d.g.value : 0.0f, dz[3][q] = exists ? d.o.value : 0.0f;
  }
  if (state.marks.ended(Row::kBefore) && call.dc0 != nullptr) {
    store_pair(call.dc0 + at, state.dc[0], state.dc[1], pair.wide, pair.both);
  }
  return true;
}

// dz to memory and into db [gate][unit].
template <class T>
DEVICE void store_dz(const BackwardCall<T>& call, const BlockRows& block, int row, int64_t first,
                     const UnitPair& pair, const float (&dz)[4][2], float (&db)[4][2]) {
  const int hidden = call.hidden;
  T* const to = call.dz[block.direction] + (first + block.first_row + row) * 4 * hidden + pair.unit;
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
    store_pair(to + gate * hidden, dz[gate][0], dz[gate][1], pair.wide, pair.both);
    db[gate][0] += dz[gate][0], db[gate][1] += dz[gate][1];
  }
}

// Both; dz goes into the row of the next state [gate][kUnits] besides.
template <class Number, class Element, int kUnits>
DEVICE void backward_cells(const BackwardCall<Stored<Element>>& call, const BlockRows& block,
                           int row, int s, int64_t first, const UnitPair& pair, float (&dh)[2],
                           RowState<Stored<Element>>& state, uint32_t* next_state,
                           float (&db)[4][2]) {
  float dz[4][2];
  if (!cell_gradients<Number>(call, block, row, s, pair, dh, state, dz)) return;
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
    put_pair<Element>(next_state, gate * kUnits + pair.unit, dz[gate][0], dz[gate][1]);
  }
  store_dz(call, block, row, first, pair, dz, db);
}

// The same with options. A row without this step leaves zeros in memory; what the next state holds
// of it nobody reads.
template <class Number, class Element, int kUnits>
DEVICE void backward_cells(const BackwardCall<Stored<Element>>& call, const BlockRows& block,
                           int row, int s, int64_t first, const UnitPair& pair, float (&dh)[2],
                           OptionRowState<Stored<Element>>& state, uint32_t* next_state,
                           float (&db)[4][2]) {
  if (row >= block.rows || !pair.exists) return;
  float dz[4][2] = {};
  state.marks.push(mark_at(call.options, block, row, s + 2));
  if (cell_gradients<Number>(call, block, row, s, pair, dh, state, dz)) {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      put_pair<Element>(next_state, gate * kUnits + pair.unit, dz[gate][0], dz[gate][1]);
    }
  }
  if (s < block.steps) store_dz(call, block, row, first, pair, dz, db);
}

// Either kind of row.
template <class T>
DEVICE void begin_row(const BackwardCall<T>& call, const BlockRows& block, int row,
                      const UnitPair& pair, OptionRowState<T>& state) {
  state.begin(call, block, row, pair);
}
template <class T>
DEVICE void fetch_row(const BackwardCall<T>& call, const BlockRows& block, int row, int s,
                      int64_t first, int64_t before, const UnitPair& pair, OptionRowState<T>& to) {
  to.fetch(call, block, row, s, first, before, pair);
}
template <class T, bool kOptions>
using RowStateOf = std::conditional_t<kOptions, OptionRowState<T>, RowState<T>>;

// ---- the tensor core kernel ---------------------------------------------------------------------

template <class Element, int kUnits, int kRows, bool kOptions>
__global__ void __launch_bounds__(2 * kUnits, 1)
    backward_kernel(BackwardCall<Stored<Element>> call) {
  using T = Stored<Element>;
  using Resident = ResidentWeights<Element, kUnits, kRows, true, kOptions>;
  if constexpr (!Resident::kRunsHere) return device::refuse();
  constexpr int kWarps = Resident::kWarps, kRowTiles = Resident::kRowTiles;
  constexpr int kPitch = Resident::kPitch;

  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, t = lane % 4;
  const BlockRows block(call.sequence, kRows, true);
  const UnitPair pair(warp * kWarpUnits + 2 * g, call.hidden);

  uint4* const shared_hh = device::dynamic_shared<uint4>();
  uint32_t* const state = reinterpret_cast<uint32_t*>(shared_hh + kWarps * Resident::kRest * 32);
  const auto state_of = [&](int s) { return state + (s & 1) * kRows * kPitch; };

  int64_t first = block.first(0), next_first = block.first(1), after_next_first = block.first(2);
  RowStateOf<T, kOptions> rows[kRowTiles][2];  // 8n + 2t + e
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    const int row = 8 * (i / 2) + 2 * t + i % 2;
    begin_row(call, block, row, pair, rows[i / 2][i % 2]);
    fetch_row(call, block, row, 0, first, next_first, pair, rows[i / 2][i % 2]);
  }
  Resident w_hh;
  w_hh.load(call.w_hh + int64_t{block.direction * kWarps + warp} * Resident::kDepth * 32,
            shared_hh + warp * Resident::kRest * 32, lane);
  // Zeros past the end meet zero weights, and 0 * NaN is NaN.
  for (int i = thread; i < 2 * kRows * kPitch; i += Resident::kThreads) state[i] = 0;

  float db[4][2] = {};
  for (int s = 0; s <= block.steps; ++s) {
    __syncthreads();
    const int64_t third_first = block.first(s + 3);
    float sums[Resident::kSums][kRowTiles][4] = {};
    w_hh.multiply(sums, operand_address(state_of(s), kPitch, lane), kPitch);
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      const int n = i / 2, e = i % 2, row = 8 * n + 2 * t + e;
      float dh[2];
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        dh[q] = sums[0][n][2 * q + e];
#pragma unroll
        for (int k = 1; k < Resident::kSums; ++k) dh[q] += sums[k][n][2 * q + e];
      }
      backward_cells<Quick, Element, kUnits>(call, block, row, s, first, pair, dh, rows[n][e],
                                             state_of(s + 1) + row * kPitch, db);
      fetch_row(call, block, row, s + 1, next_first, after_next_first, pair, rows[n][e]);
    }
    first = next_first;
    next_first = after_next_first;
    after_next_first = third_first;
  }

  // The four lanes of a pair of units hold different rows.
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int gate = i / 2, q = i % 2;
    float sum = db[gate][q];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (t == 0 && pair.exists && (q == 0 || pair.both)) {
      const int64_t part = int64_t{block.direction} * gridDim.x + blockIdx.x;
      call.db[(part * 4 + gate) * call.hidden + pair.unit + q] = sum;
    }
  }
}

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
