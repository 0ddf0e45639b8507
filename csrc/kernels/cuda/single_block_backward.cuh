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
#pragma once

#include "activation.cuh"
#include "single_block_operand.cuh"

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
  const T *dh_n, *dc_n;  // ? [D, B, H]
  T* dz[2];              // [N, 4H]
  T *dh0, *dc0;          // ? [D, B, H]
  float* db;             // [D, blocks, 4H]: each block's part
};

// What one step of one batch row needs, as it lies in memory: two neighbouring units of each.
template <class T>
struct SavedStep {
  Pair<T> gates[4];
  Pair<T> dy;
  Pair<float> c_prev;
};

template <class Element, int kUnits, int kRows>
__global__ void __launch_bounds__(
    (Tiles{kUnits, kRows, int(sizeof(Stored<Element>)), true}.threads()), 1)
    backward_kernel(BackwardCall<Stored<Element>> call) {
  using T = Stored<Element>;
  using Resident = ResidentWeights<Element, kUnits, kRows, true>;
  constexpr int kWarps = Resident::kWarps, kRowTiles = Resident::kRowTiles;
  constexpr int kPitch = Resident::kPitch;

  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, t = lane % 4, unit = warp * kWarpUnits + 2 * g;
  const int hidden = call.hidden, direction = blockIdx.y;
  const bool reverse = direction == 1, wide = hidden % 2 == 0, both = unit + 1 < hidden;
  const Sequence& sequence = call.sequence;
  const int first_row = int(blockIdx.x) * kRows;
  const int left = sequence.batch - first_row, rows = left < kRows ? left : kRows;
  const int steps = sequence.length(first_row);  // of the block's longest row
  const auto time_of = [&](int s) { return reverse ? s : steps - 1 - s; };
  const auto first_of = [&](int s) { return s < steps ? sequence.first(time_of(s)) : 0; };
  const int64_t state = (int64_t{direction} * sequence.batch + first_row) * hidden;

  uint4* const shared_hh = device::dynamic_shared<uint4>();
  uint32_t* const operands = reinterpret_cast<uint32_t*>(shared_hh + kWarps * Resident::kRest * 32);
  const auto operand_of = [&](int s) { return operands + (s & 1) * kRows * kPitch; };

  // Row (n, e) takes part in steps begin ... end - 1.
  int begin[kRowTiles][2], end[kRowTiles][2];
  float c[kRowTiles][2][2], dc[kRowTiles][2][2], db[4][2] = {};
#pragma unroll
  for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int row = 8 * n + 2 * t + e;
      const bool exists = row < rows && unit < hidden;
      const int length = row < rows ? sequence.length(first_row + row) : 0;
      begin[n][e] = !exists ? steps + 1 : reverse ? 0 : steps - length;
      end[n][e] = !exists ? -1 : reverse ? length : steps;
      dc[n][e][0] = dc[n][e][1] = 0.0f;
      if (exists && call.dc_n != nullptr) {
        const Pair<T> pair =
            load_pair(call.dc_n + state + int64_t{row} * hidden + unit, wide, both);
        dc[n][e][0] = device::to_float(pair.first), dc[n][e][1] = device::to_float(pair.second);
      }
    }
  }

  SavedStep<T> saved[kRowTiles][2];
  // first, before: first rows of this step and of the one that came before it in forward.
  const auto fetch = [&](int s, int64_t first, int64_t before) {
    const int time = time_of(s);
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (s < begin[n][e] || s >= end[n][e]) continue;
        const int row = first_row + 8 * n + 2 * t + e;
        const T* const gates = call.gates[direction] + (first + row) * 4 * hidden + unit;
        SavedStep<T>& to = saved[n][e];
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          to.gates[gate] = load_pair(gates + gate * hidden, wide, both);
        }
        if (call.dy != nullptr) {
          to.dy = load_pair(call.dy + sequence.row_start(time, first, row, call.dy_t, call.dy_b) +
                                direction * hidden + unit,
                            call.wide_dy, both);
        }
        const float* const cells = call.cells[direction] + unit;
        if (s + 1 < end[n][e]) {
          to.c_prev = load_pair(cells + (before + row) * hidden, wide, both);
        } else if (call.c0 != nullptr) {
          const Pair<T> c0 = load_pair(
              call.c0 + (int64_t{direction} * sequence.batch + row) * hidden + unit, wide, both);
          to.c_prev = {device::to_float(c0.first), device::to_float(c0.second)};
        } else {
          to.c_prev = {0.0f, 0.0f};
        }
        if (s == begin[n][e]) {
          const Pair<float> now = load_pair(cells + (first + row) * hidden, wide, both);
          c[n][e][0] = now.first, c[n][e][1] = now.second;
        }
      }
    }
  };

  int64_t first = first_of(0), next_first = first_of(1), after_next_first = first_of(2);
  fetch(0, first, next_first);
  Resident w_hh;
  w_hh.load(call.w_hh + int64_t{direction * kWarps + warp} * Resident::kDepth * 32,
            shared_hh + warp * Resident::kRest * 32, lane);
  // Zeros past the end meet zero weights; zeros in a row that has not begun make its first sums
  // zero.
  for (int i = thread; i < 2 * kRows * kPitch; i += Resident::kThreads) operands[i] = 0;

  for (int s = 0; s <= steps; ++s) {
    __syncthreads();
    const int64_t third_first = first_of(s + 3);
    float sums[4][kRowTiles][4] = {};
    w_hh.multiply(sums, operand_address(operand_of(s), kPitch, lane), kPitch);

#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = 8 * n + 2 * t + e;
        float dh[2];
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          const int i = 2 * q + e;
          dh[q] = (sums[0][n][i] + sums[1][n][i]) + (sums[2][n][i] + sums[3][n][i]);
        }
        const int64_t at = state + int64_t{row} * hidden + unit;
        if (s == end[n][e]) {
          if (call.dh0 != nullptr) store_pair(call.dh0 + at, dh[0], dh[1], wide, both);
          if (call.dc0 != nullptr) {
            store_pair(call.dc0 + at, dc[n][e][0], dc[n][e][1], wide, both);
          }
        }
        if (s < begin[n][e] || s >= end[n][e]) continue;
        const SavedStep<T>& step = saved[n][e];
        if (call.dy != nullptr) {
          dh[0] += device::to_float(step.dy.first), dh[1] += device::to_float(step.dy.second);
        }
        if (s == begin[n][e] && call.dh_n != nullptr) {
          const Pair<T> dh_n = load_pair(call.dh_n + at, wide, both);
          dh[0] += device::to_float(dh_n.first), dh[1] += device::to_float(dh_n.second);
        }
        float dz[4][2];
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          const auto gate = [&](int k) {
            return Quick{device::to_float(q == 0 ? step.gates[k].first : step.gates[k].second)};
          };
          const Gates<Quick> gates = {gate(0), gate(1), gate(2), gate(3)};
          Quick dc_q = {dc[n][e][q]};
          const Quick c_prev = {q == 0 ? step.c_prev.first : step.c_prev.second};
          const Gates<Quick> d =
              cell_backward(gates, c_prev, Quick{c[n][e][q]}, Quick{dh[q]}, dc_q);
          dc[n][e][q] = dc_q.value;
          c[n][e][q] = c_prev.value;
          const bool exists = q == 0 || both;  // a unit past the end would bring in what lies there
          dz[0][q] = exists ? d.i.value : 0.0f, dz[1][q] = exists ? d.f.value : 0.0f;
          dz[2][q] = exists ? d.g.value : 0.0f, dz[3][q] = exists ? d.o.value : 0.0f;
        }
        T* const to = call.dz[direction] + (first + first_row + row) * 4 * hidden + unit;
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          put_pair<Element>(operand_of(s + 1) + row * kPitch, gate * kUnits + unit, dz[gate][0],
                            dz[gate][1]);
          store_pair(to + gate * hidden, dz[gate][0], dz[gate][1], wide, both);
          db[gate][0] += dz[gate][0], db[gate][1] += dz[gate][1];
        }
      }
    }
    fetch(s + 1, next_first, after_next_first);
    first = next_first;
    next_first = after_next_first;
    after_next_first = third_first;
  }

  // The four lanes of a pair of units hold different rows.
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      float sum = db[gate][q];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (t == 0 && unit + q < hidden) {
        const int64_t block = int64_t{direction} * gridDim.x + blockIdx.x;
        call.db[(block * 4 + gate) * hidden + unit + q] = sum;
      }
    }
  }
}

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
