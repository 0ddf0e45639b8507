// What a block of the sliced families knows of itself in either pass: its place in the grid, its
// shared memory, which part of the product each warp has and which cells each thread.
#pragma once

#include "sliced_product.cuh"

namespace fused_lstm {
namespace cuda {
namespace sliced {

using single_block::BlockRows;
using single_block::Sequence;
using single_block::UnitPair;

// Numbers of Slices, and which steps and directions a launch is for. A grid is [blocks of a group]
// x [batch groups] x [directions].
struct Cut {
  Meeting meeting;
  int32_t units, parts, group_rows, passes;
  int32_t pieces, pieces_of_warp, depth;  // depth: of the packed weights, in tiles (strict: sums)
  int32_t rest_fragments;                 // of a warp, in shared memory
  int32_t sums_pitch;
  int32_t first_direction, begin, end;
  float* carried;        // [states, D, B, H]: what cells keep, from one launch to the next
  int64_t carried_each;  // D * B * H
};

// Shared memory in the order of Slices::shared_bytes.
struct Room {
  uint4* weights;   // [kWarps][rest_fragments][32]
  uint32_t* state;  // [2][exchange_words], in a cluster
  float* sums;      // [parts][rows][sums_pitch]
  float* cells;     // [group_rows][units / 2][states][2]
  float* bias;      // [4][units], forward
  uint32_t* flag;

  DEVICE Room(const Cut& cut, int rows, int states, bool cluster, bool backward) {
    weights = device::dynamic_shared<uint4>();
    state = reinterpret_cast<uint32_t*>(weights + kWarps * cut.rest_fragments * 32);
    sums = reinterpret_cast<float*>(state + (cluster ? 2 * cut.meeting.exchange_words : 0));
    cells = sums + cut.parts * rows * cut.sums_pitch;
    bias = cells + states * cut.group_rows * cut.units;
    flag = reinterpret_cast<uint32_t*>(bias + (backward ? 0 : 4 * cut.units));
  }
};

// A warp's share of the product, and where the packed weights of its 16 units begin.
struct WarpPlace {
  WarpShare share;
  int part, first_unit;  // among those of the block
  int64_t fragments;     // before its own

  DEVICE WarpPlace(const Cut& cut, int direction, int warp_tiles) {
    const int warp = threadIdx.x / 32, group = warp / cut.parts, groups = cut.units / kWarpUnits;
    part = warp % cut.parts;
    first_unit = group * kWarpUnits;
    share.first = part * cut.pieces_of_warp;
    share.end = share.first + cut.pieces_of_warp;
    if (share.end > cut.pieces) share.end = cut.pieces;
    share.pieces = cut.pieces_of_warp;
    share.all_pieces = cut.pieces;
    share.depth = cut.depth;
    share.lane = threadIdx.x % 32;
    const int before = (direction * int(gridDim.x) + int(blockIdx.x)) * groups + group;
    fragments = int64_t{before} * cut.depth * warp_tiles * 32;
  }
};

// The pair of units that a thread has in one row of each pass; threads beyond the rows have none.
struct ThreadPlace {
  int row, unit;  // of a pass; among those of the block
  bool exists;
  DEVICE ThreadPlace(const Cut& cut, int rows) {
    const int pairs = cut.units / 2;
    row = int(threadIdx.x) / pairs;
    unit = int(threadIdx.x) % pairs * 2;
    exists = row < rows;
  }
};

// What a thread's cells keep between shared memory and what goes from one launch to the next: of
// all its rows, a pair of units each. kOut: out of shared memory.
template <bool kOut, int kStates>
DEVICE void carry_cells(const Cut& cut, const BlockRows& block, const ThreadPlace& thread, int rows,
                        int hidden, const UnitPair& pair, float* cells) {
  for (int pass = 0; thread.exists && pair.exists && pass < cut.passes; ++pass) {
    const int row = pass * rows + thread.row;
    if (row >= block.rows) break;
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      float* const carried =
          cut.carried + i * cut.carried_each + block.state(row, hidden) + pair.unit;
      float* const held = cells + kStates * pass * rows * cut.units + 2 * i;
      if constexpr (kOut) {
        carried[0] = held[0];
        if (pair.both) carried[1] = held[1];
      } else {
        held[0] = carried[0];
        held[1] = pair.both ? carried[1] : 0.0f;
      }
    }
  }
}

// The sum of all parts, in order.
DEVICE float2 add_parts(const float* sums, int parts, int stride) {
  float2 total = {0.0f, 0.0f};
  for (int part = 0; part < parts; ++part) {
    const float2 more = *reinterpret_cast<const float2*>(sums + part * stride);
    total.x += more.x, total.y += more.y;
  }
  return total;
}

}  // namespace sliced
}  // namespace cuda
}  // namespace fused_lstm
