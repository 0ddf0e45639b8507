// The single-block family in strict float32: the same steps as single_block_forward.cuh and
// single_block_backward.cuh, but every product is a float32 fma and every sum is rounded as float32
// rounds. There are no tiles of 8 rows here: each batch row costs its own multiplications, so a
// block has few of them.
//
// A warp has 16 units. Its lanes share the work on a row by splitting k, and each lane computes its
// part of 16 sums:
//
//   forward:   lane = 8 a + s. Sums: gate j % 4 of unit 4a + j / 4, j = 0 ... 15. k: 4 (8 i + s)
//   ... backward:  lane = s.       Sums: units j = 0 ... 15.                         k: 4 (32 i +
//   s) ...
//
// each with its next three, i = 0, 1, ...: a lane reads state and weights four at a time. Then the
// lanes add up their parts, halving what each of them holds with each exchange, until a lane has
// the sums of one pair of units of one row (with few rows several lanes have the same).
#pragma once

#include "scalar.cuh"
#include "single_block_backward.cuh"
#include "single_block_forward.cuh"

namespace fused_lstm {
namespace cuda {
namespace single_block {

template <int kUnits, int kRows, bool kBackward, bool kOptions>
struct StrictWeights {
  static constexpr Tiles kTiles{kUnits, kRows, 4, true, kBackward, kOptions};
  static constexpr int kDepth = kTiles.depth(), kHeld = kTiles.depth_in_registers();
  static constexpr int kRest = kTiles.depth_in_shared(), kPitch = kTiles.pitch(0);
  static constexpr int kWarps = kTiles.warps(), kProjectedPitch = kTiles.projected_pitch();
  static constexpr bool kRunsHere = runs_here(kTiles);
  static constexpr int kSums = 16, kLanes = kBackward ? 32 : 8;  // that split k

  float4 held[kHeld > 0 ? kHeld : 1];
  const float4* rest;  // in shared memory, this lane's

  DEVICE void load(const uint4* packed, float4* shared, int lane) {
    const float4* const from = reinterpret_cast<const float4*>(packed) + lane;
#pragma unroll
    for (int k = 0; k < kHeld; ++k) held[k] = from[k * 32];
    for (int k = 0; k < kRest; ++k) shared[k * 32 + lane] = from[(kHeld + k) * 32];
    rest = shared + lane;
  }

  // Of each row, the sums that this lane ends with: pair_of_lane and row_of_lane say whose.
  static constexpr int kParts = kRows * kSums, kLeast = kBackward ? 2 : 8;

  DEVICE void multiply(float (&parts)[kParts], const uint32_t* state, int pitch, int lane) const {
    const float* const row = reinterpret_cast<const float*>(state) + lane % kLanes * 4;
#pragma unroll
    for (int i = 0; i < kParts; ++i) parts[i] = 0.0f;
#pragma unroll
    for (int group = 0; group < kDepth / kSums; ++group) {
      float4 b[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        b[r] = *reinterpret_cast<const float4*>(row + r * pitch + group * 4 * kLanes);
      }
#pragma unroll
      for (int j = 0; j < kSums; ++j) {
        const int k = group * kSums + j;
        const float4 a = k < kHeld ? held[k < kHeld ? k : 0] : rest[(k - kHeld) * 32];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float& sum = parts[r * kSums + j];
          sum = fmaf(a.x, b[r].x, sum), sum = fmaf(a.y, b[r].y, sum);
          sum = fmaf(a.z, b[r].z, sum), sum = fmaf(a.w, b[r].w, sum);
        }
      }
    }
    add_up<kParts, kLanes / 2>(parts, lane);
  }

  // Adds the parts of lanes up to kDistance apart. While a lane holds more than it has to end with,
  // the lower one keeps the first half of them, and the upper one the second.
  template <int kLeft, int kDistance>
  static DEVICE void add_up(float (&parts)[kParts], int lane) {
    if constexpr (kDistance > 0 && kLeft > kLeast) {
      const bool upper = (lane & kDistance) != 0;
#pragma unroll
      for (int i = 0; i < kLeft / 2; ++i) {
        const float kept = upper ? parts[kLeft / 2 + i] : parts[i];
        const float sent = upper ? parts[i] : parts[kLeft / 2 + i];
        parts[i] = kept + __shfl_xor_sync(~0u, sent, kDistance);
      }
      add_up<kLeft / 2, kDistance / 2>(parts, lane);
    } else if constexpr (kDistance > 0) {
#pragma unroll
      for (int i = 0; i < kLeft; ++i) parts[i] += __shfl_xor_sync(~0u, parts[i], kDistance);
      add_up<kLeft, kDistance / 2>(parts, lane);
    }
  }

  // Lanes that hold the same sums follow each other; the first of them computes their cells.
  static constexpr int kOwners = kParts / kLeast, kSame = kLanes / kOwners;
  static DEVICE bool is_owner(int lane) { return lane % kSame == 0; }
  static DEVICE int row_of(int lane) { return lane % kLanes / kSame / (kOwners / kRows); }
  static DEVICE int unit_of(int lane) {  // first of the pair, among the warp's
    return lane / kLanes * 4 + lane % kLanes / kSame % (kOwners / kRows) * 2;
  }
  static_assert(kOwners <= kLanes, "a lane holds one pair of units of one row");
};

template <int kUnits, int kRows, bool kOptions>
__global__ void __launch_bounds__(2 * kUnits, 1) strict_forward_kernel(ForwardCall<float> call) {
  using Resident = StrictWeights<kUnits, kRows, false, kOptions>;
  if constexpr (!Resident::kRunsHere) return device::refuse();
  constexpr int kWarps = Resident::kWarps, kProjectedPitch = Resident::kProjectedPitch;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, hidden = call.hidden;
  const BlockRows block(call.sequence, kRows, false);
  const UnitPair pair(warp * kWarpUnits + Resident::unit_of(lane), hidden);
  const int row = Resident::row_of(lane), steps = block.steps;

  // Shared memory, in the order of Tiles::shared_bytes.
  const int pitch = Resident::kPitch + (call.input_depth + 7) / 8 * kTileWords;
  float4* const shared_hh = device::dynamic_shared<float4>();
  float4* const w_ih =
      shared_hh + kWarps * Resident::kRest * 32;          // [I][kUnits], gates side by side
  float4* const bias = w_ih + call.input_depth * kUnits;  // [kUnits]
  uint32_t* const state = reinterpret_cast<uint32_t*>(bias + kUnits);
  float* const projected = reinterpret_cast<float*>(state + 2 * kRows * pitch);
  const auto state_of = [&](int s) { return state + (s & 1) * kRows * pitch; };
  const auto projected_of = [&](int s) { return projected + (s & 1) * kRows * kProjectedPitch; };

  StepInput<float, kUnits, kRows> input;
  int64_t first = block.first(0), next_first = block.first(1);
  input.fetch(call, block, 0, first, projected_of(0), kProjectedPitch);
  Resident w_hh;
  w_hh.load(call.w_hh + int64_t{block.direction * kWarps + warp} * Resident::kDepth * 32,
            shared_hh + warp * Resident::kRest * 32, lane);
  for (int i = threadIdx.x; i < call.input_depth * 4 * kUnits; i += 2 * kUnits) {
    const int unit = i / 4 % kUnits, from = i % 4 * hidden + unit, k = i / 4 / kUnits;
    reinterpret_cast<float*>(w_ih)[i] =
        unit < hidden ? call.w_ih_rows[block.direction][int64_t{from} * call.inputs + k] : 0.0f;
  }
  begin_block<float, kUnits, kRows, kOptions>(call, block, bias, state, pitch);
  input.put_x(call, state, pitch);
  const int length = block.length(row);
  float c[2];
  load_c0(call, block, row, pair, c);
  [[maybe_unused]] ForwardRow<float> row_state;
  if constexpr (kOptions) row_state.begin(call, block, row, pair);

  for (int s = 0; s < steps; ++s) {
    device::cp_async_wait<0>();
    __syncthreads();
    if (s + 1 < steps) {
      input.fetch(call, block, s + 1, next_first, projected_of(s + 1), kProjectedPitch);
    }
    const int64_t after_next_first = block.first(s + 2);
    if constexpr (kOptions) row_state.fetch(call, block, row, s, pair);
    float parts[Resident::kParts];
    w_hh.multiply(parts, state_of(s), pitch, lane);
    const int time = block.time(s);
    if (Resident::is_owner(lane) && pair.exists && time < length) {
      const float* const x = reinterpret_cast<const float*>(state_of(s)) + row * pitch + kUnits;
      float z[4][2];
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        float4 sum = bias[pair.unit + q];
        for (int k = 0; k < call.input_depth; ++k) {
          const float4 w = w_ih[k * kUnits + pair.unit + q];
          sum.x = fmaf(w.x, x[k], sum.x), sum.y = fmaf(w.y, x[k], sum.y);
          sum.z = fmaf(w.z, x[k], sum.z), sum.w = fmaf(w.w, x[k], sum.w);
        }
        z[0][q] = parts[4 * q] + sum.x, z[1][q] = parts[4 * q + 1] + sum.y;
        z[2][q] = parts[4 * q + 2] + sum.z, z[3][q] = parts[4 * q + 3] + sum.w;
      }
      const float* const row_projected = projected_of(s) + row * kProjectedPitch;
      uint32_t* const next_state = state_of(s + 1) + row * pitch;
      if constexpr (kOptions) {
        forward_cells_with_options<Scalar<float>, float>(call, block, row, time, first, pair, z,
                                                         row_projected, c, row_state, next_state);
      } else {
        forward_cells<Scalar<float>, float>(call, block, row, length, time, first, pair, z,
                                            row_projected, c, next_state);
      }
    }
    if (s + 1 < steps) input.put_x(call, state_of(s + 1), pitch);
    first = next_first;
    next_first = after_next_first;
  }
}

template <int kUnits, int kRows, bool kOptions>
__global__ void __launch_bounds__(2 * kUnits, 1) strict_backward_kernel(BackwardCall<float> call) {
  using Resident = StrictWeights<kUnits, kRows, true, kOptions>;
  if constexpr (!Resident::kRunsHere) return device::refuse();
  constexpr int kWarps = Resident::kWarps, kPitch = Resident::kPitch;

  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const BlockRows block(call.sequence, kRows, true);
  const UnitPair pair(warp * kWarpUnits + Resident::unit_of(lane), call.hidden);
  const int row = Resident::row_of(lane);

  float4* const shared_hh = device::dynamic_shared<float4>();
  uint32_t* const state = reinterpret_cast<uint32_t*>(shared_hh + kWarps * Resident::kRest * 32);
  const auto state_of = [&](int s) { return state + (s & 1) * kRows * kPitch; };

  int64_t first = block.first(0), next_first = block.first(1), after_next_first = block.first(2);
  RowStateOf<float, kOptions> row_state;
  begin_row(call, block, row, pair, row_state);
  fetch_row(call, block, row, 0, first, next_first, pair, row_state);
  Resident w_hh;
  w_hh.load(call.w_hh + int64_t{block.direction * kWarps + warp} * Resident::kDepth * 32,
            shared_hh + warp * Resident::kRest * 32, lane);
  for (int i = thread; i < 2 * kRows * kPitch; i += 2 * kUnits) state[i] = 0;

  float db[4][2] = {};
  for (int s = 0; s <= block.steps; ++s) {
    __syncthreads();
    const int64_t third_first = block.first(s + 3);
    float parts[Resident::kParts];
    w_hh.multiply(parts, state_of(s), kPitch, lane);
    if (Resident::is_owner(lane)) {
      float dh[2] = {parts[0], parts[1]};
      backward_cells<Scalar<float>, float, kUnits>(call, block, row, s, first, pair, dh, row_state,
                                                   state_of(s + 1) + row * kPitch, db);
      fetch_row(call, block, row, s + 1, next_first, after_next_first, pair, row_state);
    }
    first = next_first;
    next_first = after_next_first;
    after_next_first = third_first;
  }

  // Lanes of other rows of the pair are 8 apart; those that own nothing hold zeros.
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int gate = i / 2, q = i % 2;
    float sum = db[gate][q];
    if constexpr (kRows > 1) {
      sum += __shfl_xor_sync(~0u, sum, 8);
      sum += __shfl_xor_sync(~0u, sum, 16);
    }
    if (row == 0 && Resident::is_owner(lane) && pair.exists && (q == 0 || pair.both)) {
      const int64_t part = int64_t{block.direction} * gridDim.x + blockIdx.x;
      call.db[(part * 4 + gate) * call.hidden + pair.unit + q] = sum;
    }
  }
}

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
