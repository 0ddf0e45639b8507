// The product of one warp of the sliced families: 16 units times its part of the depth, for the
// rows of a pass. Weights are packed as the single-block family packs them; the state comes from an
// exchange in the order in which lanes want it.
#pragma once

#include "single_block_strict.cuh"
#include "sliced_exchange.cuh"
#include "sliced_tiles.h"

namespace fused_lstm {
namespace cuda {
namespace sliced {

using single_block::Stored;
using single_block::Tf32;

// Which part of the product is a warp's.
struct WarpShare {
  int first, end;  // of all pieces
  int pieces;      // of every warp: those past the end are zero
  int all_pieces;  // of the depth
  int depth;       // in tiles of the packed weights (strict: sums)
  int lane;
};

// ---- tensor cores -------------------------------------------------------------------------------

template <class Element_, int kRows_, bool kBackward>
class TensorProduct {
 public:
  using Element = Element_;
  using Number = Quick;
  static constexpr int kRows = kRows_, kRowTiles = kRows / 8, kWarpTiles = kBackward ? 1 : 4;
  static constexpr int kFragments = piece_fragments(false, kBackward);
  static constexpr int kHeld = held_pieces(false, kBackward, kRows);
  // Pieces of the state on their way at once; as many again are being multiplied. TF32's backward
  // would spill with more than one on sm_80.
  static constexpr int kFour = 4 / kRowTiles < kHeld ? 4 / kRowTiles : kHeld;
  static constexpr int kBatch = kBackward && std::is_same_v<Element, Tf32> ? 1 : kFour;
  // Backward spreads its one tile over several sums: a product need not wait for the one before.
  static constexpr int kSums = kBackward ? 4 / kRowTiles : 4;
  static_assert(kHeld % kBatch == 0, "batches are held or not as a whole");

  // Where word `word` of row `row` lies in a copy of the state: piece by piece, lane by lane.
  static DEVICE int place(int row, int word, int all_pieces) {
    const int lane = row % 8 * 4 + word % 4, piece = row / 8 * all_pieces + word / 16;
    return (piece * 32 + lane) * 4 + word / 8 % 2 * 2 + word / 4 % 2;
  }
  template <class Exchange>
  static DEVICE void publish(Exchange& exchange, int s, int row, int k, float first, float second,
                             int all_pieces) {
    if constexpr (std::is_same_v<Element, Tf32>) {
      const int at = place(row, k, all_pieces);  // k is even: its neighbour is the next lane's
      exchange.publish(s, at, device::to_tf32(first));
      exchange.publish(s, at + 4, device::to_tf32(second));
    } else {
      exchange.publish(
          s, place(row, k / 2, all_pieces),
          device::pack(device::from_float<Element>(first), device::from_float<Element>(second)));
    }
  }

  // packed: the fragments of the warp's units; shared: room for those that are not held. Each lane
  // reads back only what it wrote: no barrier.
  DEVICE void load(const uint4* packed, uint4* shared, const WarpShare& share) {
    const auto fragment = [&](int piece, int i) {
      const int at = 2 * (share.first + piece) + i / kWarpTiles;
      if (share.first + piece >= share.end || at >= share.depth) return uint4{0, 0, 0, 0};
      return packed[(at * kWarpTiles + i % kWarpTiles) * 32 + share.lane];
    };
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
#pragma unroll
      for (int i = 0; i < kFragments; ++i) {
        const uint4 v = fragment(k, i);
        held_[k][i][0] = v.x, held_[k][i][1] = v.y, held_[k][i][2] = v.z, held_[k][i][3] = v.w;
      }
    }
    for (int k = kHeld; k < share.pieces; ++k) {
      for (int i = 0; i < kFragments; ++i) {
        shared[((k - kHeld) * kFragments + i) * 32 + share.lane] = fragment(k, i);
      }
    }
    rest_ = shared + share.lane;
  }

  // Sums of all rows of a pass into `sums`, this part's and these units' [kRows][pitch].
  template <class Exchange>
  DEVICE void multiply(const Exchange& exchange, int s, int pass, const WarpShare& share,
                       float* sums, int pitch, int units) {
    float d[kSums][kRowTiles][4] = {};
    uint4 now[kBatch][kRowTiles], next[kBatch][kRowTiles];
    fetch(exchange, s, pass, share, 0, now);
#pragma unroll
    for (int k = 0; k < kHeld; k += kBatch) {
      if (k >= share.pieces) break;
      fetch(exchange, s, pass, share, k + kBatch, next);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
#pragma unroll
        for (int i = 0; i < kFragments; ++i)
          multiply_one(d[(j * kFragments + i) % kSums], held_[k + j][i], i, now[j]);
      }
      take(now, next);
    }
    for (int k = kHeld; k < share.pieces; k += kBatch) {
      fetch(exchange, s, pass, share, k + kBatch, next);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (k + j >= share.pieces) break;
#pragma unroll
        for (int i = 0; i < kFragments; ++i) {
          const uint4 v = rest_[((k + j - kHeld) * kFragments + i) * 32];
          const uint32_t a[4] = {v.x, v.y, v.z, v.w};
          multiply_one(d[(j * kFragments + i) % kSums], a, i, now[j]);
        }
      }
      take(now, next);
    }
    store(d, share.lane, sums, pitch, units);
  }

 private:
  using Batch = uint4[kBatch][kRowTiles];

  template <class Exchange>
  static DEVICE void fetch(const Exchange& exchange, int s, int pass, const WarpShare& share,
                           int from, Batch& to) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int piece = share.first + from + j;
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        const int at = ((pass * kRowTiles + n) * share.all_pieces + piece) * 32 + share.lane;
        to[j][n] = piece < share.end ? exchange.load(s, at) : uint4{0, 0, 0, 0};
      }
    }
  }
  static DEVICE void take(Batch& now, const Batch& next) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) now[j][n] = next[j][n];
    }
  }
  // Fragment i of a piece with what it meets there.
  static DEVICE void multiply_one(float (&d)[kRowTiles][4], const uint32_t (&a)[4], int i,
                                  const uint4 (&b)[kRowTiles]) {
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      const bool second = i / kWarpTiles != 0;
      single_block::multiply_add<Element>(d[n], a, second ? b[n].z : b[n].x,
                                          second ? b[n].w : b[n].y);
    }
  }
  // A lane has units 2g and 2g + 1 of rows 2t and 2t + 1 (single_block_weights.cuh).
  static DEVICE void store(const float (&d)[kSums][kRowTiles][4], int lane, float* sums, int pitch,
                           int units) {
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      const int n = i / 2, e = i % 2;
      float* const row = sums + (8 * n + 2 * (lane % 4) + e) * pitch + 2 * (lane / 4);
      if constexpr (kBackward) {
        float2 dh = {0.0f, 0.0f};
#pragma unroll
        for (int k = 0; k < kSums; ++k) dh.x += d[k][n][e], dh.y += d[k][n][2 + e];
        *reinterpret_cast<float2*>(row) = dh;
      } else {
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          const int j = gate / 2, at = gate % 2 * 2 + e;
          *reinterpret_cast<float2*>(row + gate * units) = float2{d[j][n][at], d[2 + j][n][at]};
        }
      }
    }
  }

  uint32_t held_[kHeld][kFragments][4];
  const uint4* rest_;  // in shared memory, this lane's
};

// ---- strict float32 -----------------------------------------------------------------------------

template <int kRows_, bool kBackward>
class StrictProduct {
 public:
  using Element = float;
  using Number = Scalar<float>;
  static constexpr int kRows = kRows_, kWarpTiles = 1;
  static constexpr int kFragments = piece_fragments(true, kBackward);
  static constexpr int kHeld = held_pieces(true, kBackward, kRows);
  using Sums =
      single_block::StrictWeights<32, kRows, kBackward, false>;  // who adds what, and ends with it
  static constexpr int kLanes = Sums::kLanes, kParts = Sums::kParts;
  static_assert(kFragments == Sums::kSums, "a fragment for each sum");

  // A copy of the state is [rows][depth], padded to whole pieces.
  static DEVICE int place(int row, int k, int all_pieces) {
    return row * all_pieces * 4 * kLanes + k;
  }
  template <class Exchange>
  static DEVICE void publish(Exchange& exchange, int s, int row, int k, float first, float second,
                             int all_pieces) {
    exchange.publish(s, place(row, k, all_pieces), single_block::bits_of(first));
    exchange.publish(s, place(row, k + 1, all_pieces), single_block::bits_of(second));
  }

  DEVICE void load(const uint4* packed, uint4* shared, const WarpShare& share) {
    const auto fragment = [&](int piece, int i) {
      const int at = (share.first + piece) * kFragments + i;
      if (share.first + piece >= share.end || at >= share.depth) return float4{0, 0, 0, 0};
      return reinterpret_cast<const float4*>(packed)[at * 32 + share.lane];
    };
#pragma unroll
    for (int i = 0; i < kHeld * kFragments; ++i)
      held_[i] = fragment(i / kFragments, i % kFragments);
    float4* const to = reinterpret_cast<float4*>(shared);
    for (int i = kHeld * kFragments; i < share.pieces * kFragments; ++i) {
      to[(i - kHeld * kFragments) * 32 + share.lane] = fragment(i / kFragments, i % kFragments);
    }
    rest_ = to + share.lane;
  }

  template <class Exchange>
  DEVICE void multiply(const Exchange& exchange, int s, int pass, const WarpShare& share,
                       float* sums, int pitch, int units) const {
    float parts[kParts];
#pragma unroll
    for (int i = 0; i < kParts; ++i) parts[i] = 0.0f;
    float4 now[kRows], next[kRows];
    fetch(exchange, s, pass, share, 0, now);
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (k >= share.pieces) break;
      fetch(exchange, s, pass, share, k + 1, next);
#pragma unroll
      for (int j = 0; j < kFragments; ++j) multiply_one(parts, held_[k * kFragments + j], j, now);
#pragma unroll
      for (int r = 0; r < kRows; ++r) now[r] = next[r];
    }
    for (int k = kHeld; k < share.pieces; ++k) {
      fetch(exchange, s, pass, share, k + 1, next);
#pragma unroll
      for (int j = 0; j < kFragments; ++j) {
        multiply_one(parts, rest_[((k - kHeld) * kFragments + j) * 32], j, now);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) now[r] = next[r];
    }
    Sums::template add_up<kParts, kLanes / 2>(parts, share.lane);
    if (!Sums::is_owner(share.lane)) return;
    float* const row = sums + Sums::row_of(share.lane) * pitch + Sums::unit_of(share.lane);
    if constexpr (kBackward) {
      *reinterpret_cast<float2*>(row) = float2{parts[0], parts[1]};
    } else {
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        *reinterpret_cast<float2*>(row + gate * units) = float2{parts[gate], parts[4 + gate]};
      }
    }
  }

 private:
  template <class Exchange>
  static DEVICE void fetch(const Exchange& exchange, int s, int pass, const WarpShare& share,
                           int from, float4 (&to)[kRows]) {
    const int piece = share.first + from;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = pass * kRows + r;
      const int at = (row * share.all_pieces + piece) * kLanes + share.lane % kLanes;
      const uint4 v = piece < share.end ? exchange.load(s, at) : uint4{0, 0, 0, 0};
      memcpy(&to[r], &v, sizeof v);
    }
  }
  static DEVICE void multiply_one(float (&parts)[kParts], const float4& a, int j,
                                  const float4 (&b)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float& sum = parts[r * kFragments + j];
      sum = fmaf(a.x, b[r].x, sum), sum = fmaf(a.y, b[r].y, sum);
      sum = fmaf(a.z, b[r].z, sum), sum = fmaf(a.w, b[r].w, sum);
    }
  }

  float4 held_[kHeld > 0 ? kHeld * kFragments : 1];
  const float4* rest_;  // in shared memory, this lane's
};

}  // namespace sliced
}  // namespace cuda
}  // namespace fused_lstm
