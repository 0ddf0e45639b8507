// What one instance of the single-block kernels is made of: warps, tiles, where each piece of W_hh
// lives and how much shared memory that takes. The kernels use these as constants, the plan
// (single_block.cpp) as numbers, so that the two cannot disagree.
//
// The step's product is A B with A the weights and B the state of the batch rows, in tensor core
// tiles of 16 x 32 bytes (A) and 32 bytes x 8 rows (B): 16 halves or 8 floats deep. In words of
// 32 bits the two are one and the same layout, and nothing here asks which it is.
//
//   forward:   gates[4H, rows] = [W_hh W_ih] [h; x]    a warp has 16 units: 4 tiles, depth H (+ I)
//   backward:  dh[H, rows] = W_hh^T dz                 a warp has 16 units: 1 tile,  depth 4H
//
// Strict float32 has no tensor cores: there a tile is 4 weights of each lane (see
// single_block_strict.cuh), and a block has fewer rows, since each costs multiplications of its
// own.
#pragma once

#include <cstdint>

namespace fused_lstm {
namespace cuda {
namespace single_block {

constexpr int kWarpUnits = 16;       // units of a warp
constexpr int kTileWords = 8;        // depth of a tile: 32 bytes
constexpr int kFragmentBytes = 512;  // of one A tile: 16 bytes for each lane of a warp
constexpr int kMostUnits = 192;
constexpr int kMostUnitsStrict = 128;
// Features of x that are read without a projection. Strict: each costs a read of shared memory.
constexpr int most_direct_input(bool strict) { return strict ? 8 : 64; }

struct Tiles {
  int units = 0;  // H rounded up to an instance
  int rows = 0;   // batch rows of a block
  int bytes = 0;  // of an element
  bool strict = false;
  bool backward = false;
  bool options = false;  // of marks.cuh: instances of their own

  constexpr int warps() const { return units / kWarpUnits; }
  constexpr int threads() const { return 32 * warps(); }
  constexpr int row_tiles() const { return rows / 8; }
  // Tiles of a warp, per depth.
  constexpr int warp_tiles() const { return strict || backward ? 1 : 4; }
  // Of W_hh, in tiles.
  constexpr int depth() const {
    return strict ? units / 2 : (backward ? 4 : 1) * units * bytes / 32;
  }

  // Registers that a thread may have, and how many of them hold weights. The rest is for sums,
  // cell states, what is on its way from memory, and addresses.
  constexpr int registers() const {
    const int share = 65536 / threads() / 8 * 8;
    return share > 255 ? 255 : share;
  }
  constexpr int other_registers() const {
    if (strict) return 84 + 26 * rows + option_registers(1);
    const int plain = backward ? 68 + (bytes == 2 ? 40 : 52) * row_tiles() : 56 + 28 * row_tiles();
    return plain + option_registers(2 * row_tiles());
  }
  // Marks, shares and the h or dh that is kept, of the rows that a lane has. None are set aside
  // where shared memory has no room for what they would push out: ptxas finds enough there.
  constexpr int option_registers(int rows_of_lane) const {
    if (!options || units > kMostUnitsStrict) return 0;
    return 16 + (backward ? 14 : 10) * rows_of_lane;
  }
  constexpr int depth_in_registers() const {
    const int room = (registers() - other_registers()) / (4 * warp_tiles());
    const int held = room < 0 ? 0 : room;
    return held < depth() ? held : depth();
  }
  constexpr int depth_in_shared() const { return depth() - depth_in_registers(); }

  // Words from one batch row of h and x, or of dz, to the next: 4 more than a multiple of 8, so
  // that 8 rows of 16 bytes lie in 32 different banks.
  constexpr int state_words() const { return (backward ? 4 : 1) * units * bytes / 4; }
  constexpr int pitch(int input_depth) const {
    return state_words() + (strict ? (input_depth + 7) / 8 : input_depth) * kTileWords + 4;
  }
  // Words from one batch row of the projected input to the next.
  constexpr int projected_pitch() const { return 4 * units + 4; }

  // input_depth: tiles of x beside h (strict: features), 0 if x comes projected (forward only).
  constexpr int64_t shared_bytes(int input_depth) const {
    const int64_t per_depth = int64_t{warps()} * warp_tiles() * kFragmentBytes;
    const int64_t weights = depth_in_shared() * per_depth;
    const int64_t state = int64_t{2} * rows * pitch(input_depth) * 4;
    if (backward) return weights + state;
    const int64_t input = input_depth * (strict ? int64_t{units} * 16 : per_depth);
    const int64_t bias = int64_t{units} * 16;
    const int64_t projected = input_depth > 0 ? 0 : int64_t{2} * rows * projected_pitch() * 4;
    return weights + input + bias + state + projected;
  }
  constexpr int64_t least_shared_bytes() const { return shared_bytes(backward ? 0 : 1); }
};

// Tiles of x with so many features; strict: features.
constexpr int input_depth(int64_t features, int bytes, bool strict) {
  return static_cast<int>(strict ? features : (features * bytes + 31) / 32);
}

// The instances: H is rounded up to one of these. More rows than the fewest pay where these would
// need more blocks than the device has multiprocessors.
constexpr int kUnits[] = {32, 64, 96, 128, 192};
constexpr int few_rows(bool strict) { return strict ? 1 : 8; }
constexpr int many_rows(bool strict) { return strict ? 4 : 16; }
// The most shared memory that any device gives to a block: instances that need more are not built.
constexpr int64_t kMostSharedBytes = 227 * 1024;
constexpr bool is_built(const Tiles& tiles) {
  if (tiles.least_shared_bytes() > kMostSharedBytes) return false;
  if (tiles.strict) return tiles.units <= kMostUnitsStrict;
  return tiles.rows == 8 || (tiles.units == 128 && tiles.bytes == 2);
}

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
