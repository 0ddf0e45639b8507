// Forward of the single-block family: one block takes `kRows` batch rows of one direction through
// all steps, with W_hh in its registers and shared memory. Nothing crosses blocks.
//
// One step, and its one barrier (h, x and the projected input lie twice in shared memory):
//
//   wait for input(s) | BARRIER | fetch input(s + 1) | sums = W [h(s - 1); x(s)] | cells -> h(s), y
//
// All rows of a block are at the same time t; a packed row that is over, or whose reverse direction
// has not begun, sits the step out and keeps its state.
#pragma once

#include "activation.cuh"
#include "single_block_operand.cuh"

namespace fused_lstm {
namespace cuda {
namespace single_block {

// Pointers marked ? may be null.
template <class T>
struct ForwardCall {
  Sequence sequence;
  int32_t inputs, hidden;
  int32_t input_depth;  // tiles of x and W_ih; 0: x comes projected
  const T* x;
  int64_t x_t, x_b;
  const float* projected[2];   // ? [N, 4H] x W_ih^T
  const uint4 *w_hh, *w_ih;    // in fragment order; w_ih ?
  const T *b_ih[2], *b_hh[2];  // ? [4H]
  const T *h0, *c0;            // ? [D, B, H]
  T* y;
  int64_t y_t, y_b;
  bool wide_y;      // y's pairs of units are aligned
  T *h_n, *c_n;     // [D, B, H]
  T* gates[2];      // ? [N, 4H] activated, for backward
  float* cells[2];  // ? [N, H]
};

// The input of one step on its way into shared memory. Projected rows are copied there directly; x
// goes through registers, because its rows may begin anywhere. A warp takes whole rows, a lane
// features lane and lane + 32 of them.
template <class Element, int kUnits, int kRows>
struct StepInput {
  using T = Stored<Element>;
  static constexpr int kWarps = kUnits / kWarpUnits, kRowsOfWarp = (kRows + kWarps - 1) / kWarps;
  T x[kRowsOfWarp][2];

  // active(row): the row takes part in this step. first: of Sequence, for this step.
  template <class Active>
  DEVICE void fetch(const ForwardCall<T>& call, int first_row, int time, int64_t first,
                    float* projected, int pitch, const Active& active) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
      const int row = warp + r * kWarps;
      if (row >= kRows || !active(row)) continue;
      if (call.input_depth == 0) {
        const int64_t width = 4 * call.hidden;
        const float* from = call.projected[blockIdx.y] + (first + first_row + row) * width;
        for (int i = lane; i < call.hidden; i += 32) {
          device::cp_async<16>(projected + row * pitch + 4 * i, from + 4 * i);
        }
      } else {
        const T* from =
            call.x + call.sequence.row_start(time, first, first_row + row, call.x_t, call.x_b);
        if (lane < call.inputs) x[r][0] = from[lane];
        if (lane + 32 < call.inputs) x[r][1] = from[lane + 32];
      }
    }
    device::cp_async_commit();
  }

  // Behind h in the operand's rows. Rows that were not fetched hold something finite or not: a row
  // meets no other, and nobody looks at this one.
  DEVICE void put_x(const ForwardCall<T>& call, uint32_t* operand, int pitch) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (call.input_depth == 0) return;
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
      const int row = warp + r * kWarps;
      if (row >= kRows) continue;
      uint32_t* const to = operand + row * pitch;
      if (lane < call.inputs) put<Element>(to, kUnits + lane, device::to_float(x[r][0]));
      if (lane + 32 < call.inputs) put<Element>(to, kUnits + lane + 32, device::to_float(x[r][1]));
    }
  }
};

// The gates of two neighbouring units before their activations, [gate][unit].
DEVICE void add_projected(float (&z)[4][2], const float* row, int hidden, bool wide, bool both) {
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
    const Pair<float> pair = load_pair(row + gate * hidden, wide, both);
    z[gate][0] += pair.first;
    z[gate][1] += pair.second;
  }
}

template <class Element, int kUnits, int kRows>
__global__ void __launch_bounds__(
    (Tiles{kUnits, kRows, int(sizeof(Stored<Element>)), false}.threads()), 1)
    forward_kernel(ForwardCall<Stored<Element>> call) {
  using T = Stored<Element>;
  using Resident = ResidentWeights<Element, kUnits, kRows, false>;
  constexpr int kWarps = Resident::kWarps, kRowTiles = Resident::kRowTiles;
  constexpr int kProjectedPitch = Resident::kProjectedPitch;

  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, t = lane % 4, unit = warp * kWarpUnits + 2 * g;
  const int hidden = call.hidden, direction = blockIdx.y, row_of_warp = direction * kWarps + warp;
  const bool reverse = direction == 1, wide = hidden % 2 == 0, both = unit + 1 < hidden;
  const Sequence& sequence = call.sequence;
  const int first_row = int(blockIdx.x) * kRows;
  const int left = sequence.batch - first_row, rows = left < kRows ? left : kRows;
  const int steps = sequence.length(first_row);  // of the block's longest row
  const auto time_of = [&](int s) { return reverse ? steps - 1 - s : s; };
  const auto first_of = [&](int s) { return s < steps ? sequence.first(time_of(s)) : 0; };
  const auto length_of = [&](int row) { return row < rows ? sequence.length(first_row + row) : 0; };
  const int64_t state = (int64_t{direction} * sequence.batch + first_row) * hidden;

  // Shared memory, in the order of Tiles::shared_bytes.
  const int pitch = Resident::kPitch + call.input_depth * kTileWords;
  uint4* const shared_hh = device::dynamic_shared<uint4>();
  uint4* const shared_ih = shared_hh + kWarps * Resident::kRest * 4 * 32;
  float4* const bias =  // [kUnits], gates side by side
      reinterpret_cast<float4*>(shared_ih + kWarps * call.input_depth * 4 * 32);
  uint32_t* const operands = reinterpret_cast<uint32_t*>(bias + kUnits);
  float* const projected = reinterpret_cast<float*>(operands + 2 * kRows * pitch);
  const auto operand_of = [&](int s) { return operands + (s & 1) * kRows * pitch; };
  const auto projected_of = [&](int s) { return projected + (s & 1) * kRows * kProjectedPitch; };

  StepInput<Element, kUnits, kRows> input;
  const auto fetch = [&](int s, int64_t first) {
    const int time = time_of(s);
    input.fetch(call, first_row, time, first, projected_of(s), kProjectedPitch,
                [&](int row) { return time < length_of(row); });
  };
  fetch(0, first_of(0));

  Resident w_hh;
  w_hh.load(call.w_hh + int64_t{row_of_warp} * Resident::kDepth * 4 * 32,
            shared_hh + warp * Resident::kRest * 4 * 32, lane);
  uint4* const w_ih = shared_ih + warp * call.input_depth * 4 * 32 + lane;  // each lane its own
  for (int i = 0; i < call.input_depth * 4; ++i) {
    w_ih[i * 32] = call.w_ih[(int64_t{row_of_warp} * call.input_depth * 4 + i) * 32 + lane];
  }

  float c[kRowTiles][2][2];
  int length[kRowTiles][2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      const int row = 8 * n + 2 * t + e;
      length[n][e] = length_of(row);
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const bool given = call.c0 != nullptr && row < rows && unit + q < hidden;
        c[n][e][q] =
            given ? device::to_float(call.c0[state + int64_t{row} * hidden + unit + q]) : 0.0f;
      }
    }
  }

  for (int i = thread; i < 4 * kUnits; i += Resident::kThreads) {
    const int of_unit = i / 4, at = i % 4 * hidden + of_unit;
    const T *b_ih = call.b_ih[direction], *b_hh = call.b_hh[direction];
    float sum = 0.0f;
    if (of_unit < hidden && b_ih != nullptr) sum += device::to_float(b_ih[at]);
    if (of_unit < hidden && b_hh != nullptr) sum += device::to_float(b_hh[at]);
    reinterpret_cast<float*>(bias)[i] = sum;
  }
  // Padding of the operand is zero for good: its weights are, and 0 * NaN is NaN.
  for (int i = thread; i < 2 * kRows * pitch; i += Resident::kThreads) operands[i] = 0;
  // Both buffers begin with h0: who knows in which a row finds it that joins later.
  __syncthreads();
  for (int row = warp; call.h0 != nullptr && row < rows; row += kWarps) {
    for (int k = lane; k < hidden; k += 32) {
      const float h0 = device::to_float(call.h0[state + int64_t{row} * hidden + k]);
      put<Element>(operand_of(0) + row * pitch, k, h0);
      put<Element>(operand_of(1) + row * pitch, k, h0);
    }
  }
  input.put_x(call, operands, pitch);

  int64_t first = first_of(0), next_first = first_of(1);
  for (int s = 0; s < steps; ++s) {
    device::cp_async_wait<0>();
    __syncthreads();
    if (s + 1 < steps) fetch(s + 1, next_first);
    const int64_t after_next_first = first_of(s + 2);

    float sums[4][kRowTiles][4];  // tile (q, j), see single_block_operand.cuh
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const float4 start = bias[unit + q];
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        sums[2 * q][n][0] = sums[2 * q][n][1] = start.x;
        sums[2 * q][n][2] = sums[2 * q][n][3] = start.y;
        sums[2 * q + 1][n][0] = sums[2 * q + 1][n][1] = start.z;
        sums[2 * q + 1][n][2] = sums[2 * q + 1][n][3] = start.w;
      }
    }
    const uint32_t* const b = operand_address(operand_of(s), pitch, lane);
    w_hh.multiply(sums, b, pitch);
    for (int k = 0; k < call.input_depth; ++k) {
      // Lanes beyond 15 hand over addresses that ldmatrix_x2 ignores.
      const uint32_t* const from = b + (Resident::kDepth + k) * kTileWords - (lane / 16) * 8;
      uint32_t x[kRowTiles][2];
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) device::ldmatrix_x2(x[n], from + 8 * n * pitch);
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        const uint4 v = w_ih[(k * 4 + tile) * 32];
        const uint32_t a[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n)
          multiply_add<Element>(sums[tile][n], a, x[n][0], x[n][1]);
      }
    }

    const int time = time_of(s);
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = 8 * n + 2 * t + e;
        if (unit >= hidden || time >= length[n][e]) continue;
        float z[4][2];
#pragma unroll
        for (int i = 0; i < 8; ++i) z[i / 2][i % 2] = sums[i % 2 * 2 + i / 4][n][i / 2 % 2 * 2 + e];
        if (call.input_depth == 0) {
          add_projected(z, projected_of(s) + row * kProjectedPitch + unit, hidden, wide, both);
        }
        float h[2];
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          Gates<Quick> gates = {{z[0][q]}, {z[1][q]}, {z[2][q]}, {z[3][q]}};
          Quick new_c, new_h;
          cell_forward(gates, Quick{c[n][e][q]}, new_c, new_h);
          c[n][e][q] = new_c.value;
          h[q] = new_h.value;
          z[0][q] = gates.i.value, z[1][q] = gates.f.value;
          z[2][q] = gates.g.value, z[3][q] = gates.o.value;
        }
        // Where H is odd, h of the unit past the end meets zero weights only.
        put_pair<Element>(operand_of(s + 1) + row * pitch, unit, h[0], h[1]);
        T* const y = call.y + sequence.row_start(time, first, first_row + row, call.y_t, call.y_b) +
                     direction * hidden + unit;
        store_pair(y, h[0], h[1], call.wide_y, both);
        if (call.gates[0] != nullptr) {
          const int64_t at = first + first_row + row;
          T* const gates = call.gates[direction] + at * 4 * hidden + unit;
#pragma unroll
          for (int gate = 0; gate < 4; ++gate) {
            store_pair(gates + gate * hidden, z[gate][0], z[gate][1], wide, both);
          }
          store_pair(call.cells[direction] + at * hidden + unit, c[n][e][0], c[n][e][1], wide,
                     both);
        }
        if (time == (reverse ? 0 : length[n][e] - 1)) {
          const int64_t at = state + int64_t{row} * hidden + unit;
          store_pair(call.h_n + at, h[0], h[1], wide, both);
          store_pair(call.c_n + at, c[n][e][0], c[n][e][1], wide, both);
        }
      }
    }
    if (s + 1 < steps) input.put_x(call, operand_of(s + 1), pitch);
    first = next_first;
    next_first = after_next_first;
  }
}

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
