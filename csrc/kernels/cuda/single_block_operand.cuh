// What the forward and the backward kernel of the single-block family share: the operands of their
// tensor core products, weights packed in the order in which lanes want them, and two neighbouring
// units read or written at once.
//
// Lane l of a warp is (g, t) = (l / 4, l % 4), as in the PTX manual. Row g of a tile and row g + 8
// are given to neighbouring units, so that a lane always holds a pair of them:
//
//   forward:   a warp's four tiles are (q, j), q, j = 0, 1. Row g of tile (q, j) is gate 2j of unit
//              2g + q, row g + 8 is gate 2j + 1 of it. A lane so ends with i, f, g, o of units 2g
//              and 2g + 1 for batch rows 2t and 2t + 1: no shuffles, c never leaves its register.
//   backward:  row g of the tile is unit 2g, row g + 8 is unit 2g + 1.
#pragma once

#include "../gate_math.h"
#include "device.cuh"
#include "single_block_tiles.h"

namespace fused_lstm {
namespace cuda {
namespace single_block {

struct Tf32 {};  // float32 in memory, rounded to TF32 where it is multiplied

template <class Element>
struct ElementOf {
  using Stored = Element;
};
template <>
struct ElementOf<Tf32> {
  using Stored = float;
};
template <class Element>
using Stored = typename ElementOf<Element>::Stored;

template <class Element>
DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<Element, Tf32>) {
    device::mma_tf32(d, a, b0, b1);
  } else {
    device::mma<Element>(d, a, b0, b1);
  }
}

// Puts `value` at depth k of one row of an operand in shared memory.
template <class Element>
DEVICE void put(uint32_t* row, int k, float value) {
  if constexpr (std::is_same_v<Element, Tf32>) {
    row[k] = device::to_tf32(value);
  } else {
    reinterpret_cast<Element*>(row)[k] = device::from_float<Element>(value);
  }
}
// The same for depths k and k + 1, k even.
template <class Element>
DEVICE void put_pair(uint32_t* row, int k, float first, float second) {
  if constexpr (std::is_same_v<Element, Tf32>) {
    *reinterpret_cast<uint2*>(row + k) = uint2{device::to_tf32(first), device::to_tf32(second)};
  } else {
    row[k / 2] =
        device::pack(device::from_float<Element>(first), device::from_float<Element>(second));
  }
}

// Two neighbouring elements of global memory as they lie there.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};

// wide: the address is aligned to both. Where it is not, the second may lie outside: both says.
template <class T>
DEVICE Pair<T> load_pair(const T* from, bool wide, bool both) {
  if (wide) return *reinterpret_cast<const Pair<T>*>(from);
  return {from[0], both ? from[1] : device::from_float<T>(0.0f)};
}
template <class T>
DEVICE void store_pair(T* to, float first, float second, bool wide, bool both) {
  const Pair<T> pair = {device::from_float<T>(first), device::from_float<T>(second)};
  if (wide) {
    *reinterpret_cast<Pair<T>*>(to) = pair;
    return;
  }
  to[0] = pair.first;
  if (both) to[1] = pair.second;
}

// How the rows of a call lie in memory. Row b of step t is row `first(t) + b` of what is stored
// without gaps; in what the caller strides it begins at t * stride_t + b * stride_b (packed:
// (first(t) + b) * stride_b), and stride_t is 0 where packed.
struct Sequence {
  int32_t steps, batch;
  const int32_t* lengths;  // [B] non-increasing, or null: all rows take part in all steps
  const int64_t* offsets;  // [T] first rows, where lengths are given

  DEVICE int32_t length(int32_t row) const { return lengths != nullptr ? lengths[row] : steps; }
  DEVICE int64_t first(int32_t t) const {
    return offsets != nullptr ? offsets[t] : int64_t{t} * batch;
  }
  DEVICE int64_t row_start(int32_t t, int64_t first, int32_t b, int64_t stride_t,
                           int64_t stride_b) const {
    return t * stride_t + (offsets != nullptr ? first + b : b) * stride_b;
  }
};

// ---- weights in fragment order
// -------------------------------------------------------------------- [D][warps][depth][tiles of a
// warp][lane] of 16 bytes: word i of lane (g, t) is row g + 8 (i % 2), words t + 4 (i / 2) of the
// tile. Rows and depths past the end hold zeros.

template <class T>
struct PackCall {
  const T* weights[2];  // forward: [4H, columns]; backward: W_hh [4H, H]
  uint4* packed;
  int32_t hidden, columns;
  int32_t units, depth;  // of the instance
};

template <class Element, bool kBackward>
DEVICE float packed_weight(const PackCall<Stored<Element>>& call, int direction, int warp, int tile,
                           int row, int k) {
  const Stored<Element>* w = call.weights[direction];
  const int first_unit = warp * kWarpUnits + 2 * (row % 8);
  if constexpr (kBackward) {
    const int unit = first_unit + row / 8, gate = k / call.units, from = k % call.units;
    if (unit >= call.hidden || from >= call.hidden) return 0.0f;
    return device::to_float(w[(int64_t{gate} * call.hidden + from) * call.hidden + unit]);
  } else {
    const int unit = first_unit + tile / 2, gate = 2 * (tile % 2) + row / 8;
    if (unit >= call.hidden || k >= call.columns) return 0.0f;
    return device::to_float(w[(int64_t{gate} * call.hidden + unit) * call.columns + k]);
  }
}

constexpr int kPackThreads = 128;

template <class Element, bool kBackward>
__global__ void __launch_bounds__(kPackThreads) pack_weights(PackCall<Stored<Element>> call) {
  constexpr int kTiles = kBackward ? 1 : 4;
  const int index = int(blockIdx.x) * kPackThreads + int(threadIdx.x), direction = blockIdx.y;
  const int fragments = call.units / kWarpUnits * call.depth * kTiles * 32;
  if (index >= fragments) return;
  const int g = index % 32 / 4, t = index % 4, tile = index / 32 % kTiles;
  const int depth = index / 32 / kTiles % call.depth, warp = index / 32 / kTiles / call.depth;
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i % 2), word = depth * kTileWords + t + 4 * (i / 2);
    if constexpr (std::is_same_v<Element, Tf32>) {
      words[i] = device::to_tf32(
          packed_weight<Element, kBackward>(call, direction, warp, tile, row, word));
    } else {
      float halves[2];
      for (int e = 0; e < 2; ++e) {
        halves[e] =
            packed_weight<Element, kBackward>(call, direction, warp, tile, row, 2 * word + e);
      }
      words[i] = device::pack(device::from_float<Element>(halves[0]),
                              device::from_float<Element>(halves[1]));
    }
  }
  call.packed[int64_t{direction} * fragments + index] =
      uint4{words[0], words[1], words[2], words[3]};
}

// ---- weights in a warp, and their product with the state of the rows
// -----------------------------

// What a lane hands to ldmatrix: 16 bytes of row lane % 8, out of four that follow each other.
DEVICE const uint32_t* operand_address(const uint32_t* rows, int pitch, int lane) {
  return rows + lane % 8 * pitch + lane / 8 * 4;
}

// W_hh of one warp. Forward keeps a sum for each of its four tiles; backward has one tile and
// spreads it over four sums, which the caller adds, so that a product need not wait for the one
// before.
template <class Element, int kUnits, int kRows, bool kBackward>
struct ResidentWeights {
  static constexpr Tiles kTiles{kUnits, kRows, int(sizeof(Stored<Element>)), kBackward};
  static constexpr int kDepth = kTiles.depth(), kWarpTiles = kTiles.warp_tiles();
  static constexpr int kHeld = kTiles.depth_in_registers(), kRest = kTiles.depth_in_shared();
  static constexpr int kWarps = kTiles.warps(), kThreads = kTiles.threads();
  static constexpr int kRowTiles = kTiles.row_tiles(), kPitch = kTiles.pitch(0);
  static constexpr int kProjectedPitch = kTiles.projected_pitch();

  uint32_t held[kHeld > 0 ? kHeld : 1][kWarpTiles][4];
  const uint4* rest;  // in shared memory, this lane's

  // packed: this warp's fragments; shared: room for kRest * kWarpTiles of them. Each lane reads
  // back only what it wrote: no barrier.
  DEVICE void load(const uint4* packed, uint4* shared, int lane) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
#pragma unroll
      for (int tile = 0; tile < kWarpTiles; ++tile) {
        const uint4 v = packed[(k * kWarpTiles + tile) * 32 + lane];
        held[k][tile][0] = v.x, held[k][tile][1] = v.y;
        held[k][tile][2] = v.z, held[k][tile][3] = v.w;
      }
    }
    for (int i = 0; i < kRest * kWarpTiles; ++i) {
      shared[i * 32 + lane] = packed[(kHeld * kWarpTiles + i) * 32 + lane];
    }
    rest = shared + lane;
  }

  // b: see operand_address.
  DEVICE void multiply(float (&sums)[4][kRowTiles][4], const uint32_t* b, int pitch) {
#pragma unroll
    for (int k2 = 0; k2 < kDepth; k2 += 2) {
      uint32_t fragments[kRowTiles][4];  // of two tiles
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        device::ldmatrix_x4(fragments[n], b + 8 * n * pitch + k2 * kTileWords);
      }
#pragma unroll
      for (int k = k2; k < k2 + 2; ++k) {
#pragma unroll
        for (int tile = 0; tile < kWarpTiles; ++tile) {
          uint32_t loaded[4];
          if (k >= kHeld) {
            const uint4 v = rest[((k - kHeld) * kWarpTiles + tile) * 32];
            loaded[0] = v.x, loaded[1] = v.y, loaded[2] = v.z, loaded[3] = v.w;
          }
          const uint32_t (&a)[4] = k < kHeld ? held[k < kHeld ? k : 0][tile] : loaded;
#pragma unroll
          for (int n = 0; n < kRowTiles; ++n) {
            multiply_add<Element>(sums[kBackward ? k % 4 : tile][n], a, fragments[n][2 * (k - k2)],
                                  fragments[n][2 * (k - k2) + 1]);
          }
        }
      }
    }
  }
};

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
