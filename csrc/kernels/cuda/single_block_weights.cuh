// W_hh of the tensor core kernels of the single-block family: packed in the order in which lanes
// want it, resident in a warp, and multiplied with the state of the rows.
//
// Lane l of a warp is (g, t) = (l / 4, l % 4), as in the PTX manual. Row g of a tile and row g + 8
// are given to neighbouring units, so that a lane always holds a pair of them:
//
//   forward:   a warp's four tiles are (q, j), q, j = 0, 1. Row g of tile (q, j) is gate 2j of unit
//              2g + q, row g + 8 is gate 2j + 1 of it. A lane so ends with i, f, g, o of units 2g
//              and 2g + 1 for batch rows 2t and 2t + 1: no shuffles, c never leaves its register.
//   backward:  row g of the tile is unit 2g, row g + 8 is unit 2g + 1.
//
// The strict kernels pack theirs here too; single_block_strict.cuh says in which order.
#pragma once

#include "single_block_operand.cuh"

namespace fused_lstm {
namespace cuda {
namespace single_block {

template <class Element>
DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<Element, Tf32>) {
    device::mma_tf32(d, a, b0, b1);
  } else {
    device::mma<Element>(d, a, b0, b1);
  }
}

// ---- packing: [D][warps][depth][tiles of a warp][lane] of 16 bytes -----------------------------

template <class T>
struct PackCall {
  const T* weights[2];  // forward: [4H, columns]; backward: W_hh [4H, H]
  uint4* packed;
  int32_t hidden, columns;
  int32_t units, depth;  // of the instance
};

// What meets depth k in the sum of one gate of a unit, zero past the end. In backward it is what
// meets dz of gate k / units, and the sum has no gate of its own.
template <bool kBackward, class T>
DEVICE float weight_at(const PackCall<T>& call, int direction, int unit, int gate, int k) {
  const int row_unit = kBackward ? k % call.units : unit, column = kBackward ? unit : k;
  const int row_gate = kBackward ? k / call.units : gate;
  if (row_unit >= call.hidden || column >= call.columns) return 0.0f;
  const int64_t row = int64_t{row_gate} * call.hidden + row_unit;
  return device::to_float(call.weights[direction][row * call.columns + column]);
}

DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
// Word i of a lane in the strict order, see single_block_strict.cuh: depth is 16 (group of k) +
// sum.
template <bool kBackward>
DEVICE uint32_t strict_word(const PackCall<float>& call, int direction, int warp, int depth,
                            int lane, int i) {
  const int sum = depth % 16, group = depth / 16;
  const int k = kBackward ? 4 * (32 * group + lane) + i : 4 * (8 * group + lane % 8) + i;
  const int unit = warp * kWarpUnits + (kBackward ? sum : 4 * (lane / 8) + sum / 4);
  return bits_of(weight_at<kBackward>(call, direction, unit, sum % 4, k));
}

// Word i of a lane: of a tensor core tile row g + 8 (i % 2), words t + 4 (i / 2).
template <class Element, bool kBackward>
DEVICE uint32_t packed_word(const PackCall<Stored<Element>>& call, int direction, int warp,
                            int depth, int tile, int lane, int i) {
  const int word = depth * kTileWords + lane % 4 + 4 * (i / 2);
  const int pair = warp * kWarpUnits + 2 * (lane / 4);
  const int unit = pair + (kBackward ? i % 2 : tile / 2), gate = 2 * (tile % 2) + i % 2;
  if constexpr (std::is_same_v<Element, Tf32>) {
    return device::to_tf32(weight_at<kBackward>(call, direction, unit, gate, word));
  } else {
    return device::pack(
        device::from_float<Element>(weight_at<kBackward>(call, direction, unit, gate, 2 * word)),
        device::from_float<Element>(
            weight_at<kBackward>(call, direction, unit, gate, 2 * word + 1)));
  }
}

constexpr int kPackThreads = 128;

template <class Element, bool kBackward>
__global__ void __launch_bounds__(kPackThreads) pack_weights(PackCall<Stored<Element>> call) {
  constexpr bool kStrict = std::is_same_v<Element, float>;
  constexpr int kTiles = kStrict || kBackward ? 1 : 4;
  const int index = int(blockIdx.x) * kPackThreads + int(threadIdx.x), direction = blockIdx.y;
  const int fragments = call.units / kWarpUnits * call.depth * kTiles * 32;
  if (index >= fragments) return;
  const int lane = index % 32, tile = index / 32 % kTiles, depth = index / 32 / kTiles % call.depth;
  const int warp = index / 32 / kTiles / call.depth;
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kStrict) {
      words[i] = strict_word<kBackward>(call, direction, warp, depth, lane, i);
    } else {
      words[i] = packed_word<Element, kBackward>(call, direction, warp, depth, tile, lane, i);
    }
  }
  call.packed[int64_t{direction} * fragments + index] =
      uint4{words[0], words[1], words[2], words[3]};
}

// What a lane hands to ldmatrix: 16 bytes of row lane % 8, out of four that follow each other.
DEVICE const uint32_t* operand_address(const uint32_t* rows, int pitch, int lane) {
  return rows + lane % 8 * pitch + lane / 8 * 4;
}

// W_hh of one warp. Forward keeps a sum for each of its four tiles; backward has one tile and
// spreads it over several sums, which the caller adds: a product need not wait for the one before.
template <class Element, int kUnits, int kRows, bool kBackward, bool kOptions>
struct ResidentWeights {
  static constexpr Tiles kTiles{kUnits, kRows,     int(sizeof(Stored<Element>)),
                                false,  kBackward, kOptions};
  static constexpr int kDepth = kTiles.depth(), kWarpTiles = kTiles.warp_tiles();
  static constexpr int kHeld = kTiles.depth_in_registers(), kRest = kTiles.depth_in_shared();
  static constexpr int kWarps = kTiles.warps(), kThreads = kTiles.threads();
  static constexpr int kRowTiles = kTiles.row_tiles(), kPitch = kTiles.pitch(0);
  static constexpr bool kRunsHere = runs_here(kTiles);
  static constexpr int kSums = kBackward ? 4 / kRowTiles : 4;
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
  DEVICE void multiply(float (&sums)[kSums][kRowTiles][4], const uint32_t* b, int pitch) {
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
            multiply_add<Element>(sums[kBackward ? k % kSums : tile][n], a,
                                  fragments[n][2 * (k - k2)], fragments[n][2 * (k - k2) + 1]);
          }
        }
      }
    }
  }
};

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
