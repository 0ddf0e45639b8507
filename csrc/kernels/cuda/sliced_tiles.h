// How the sliced families (grid and cluster, see sliced.h) cut a layer up: which units of which
// batch rows are a block's, where each piece of W_hh lives, and what a block asks for in shared
// memory. The kernels get these as numbers; constants are only what decides about registers.
//
// The blocks of a batch group share its rows and split H: each has `units` units, all four gates,
// and multiplies its slice of W_hh with the whole state of the group. Its 8 warps are units / 16
// groups of `parts` warps; each warp has 16 units and one part of the depth, in pieces:
//
//   tensor cores   a piece is two tiles (single_block_tiles.h), 16 words deep: what a lane reads of
//                  the state at once, 16 bytes, are its B fragments of both
//   strict         a piece is 16 sums times 4 depths a lane (single_block_strict.cuh)
//
// The first pieces of a warp stay in its registers, the rest in shared memory. Sums of the parts
// meet in shared memory, where one thread for each pair of units of a row adds them in order.
// Groups with more rows than one pass takes go through several passes each step.
#pragma once

#include <cstdint>

#include "single_block_tiles.h"

namespace fused_lstm {
namespace cuda {
namespace sliced {

using single_block::kFragmentBytes;
using single_block::kWarpUnits;

constexpr int kWarps = 8, kThreads = 32 * kWarps;
// Fragments of 4 registers that a lane keeps of W_hh; the stand-in's tests want fewer.
#ifdef FUSED_LSTM_HELD_FRAGMENTS
constexpr int kHeldFragments = FUSED_LSTM_HELD_FRAGMENTS;
#else
constexpr int kHeldFragments = 32;
#endif

constexpr int kCounterWords = 32;  // each counter has its own 128 bytes

constexpr int piece_fragments(bool strict, bool backward) { return strict ? 16 : backward ? 2 : 8; }
// Strict float32: 16 sums a row leave room for half of it where a pass has 4 rows.
constexpr int held_pieces(bool strict, bool backward, int rows) {
  const int held = strict && rows > 2 ? kHeldFragments / 2 : kHeldFragments;
  return held / piece_fragments(strict, backward);
}

struct Slices {
  int units = 0;   // of a block: 16, 32 or 64
  int blocks = 0;  // of a batch group
  int rows = 0;    // of a pass
  int passes = 1;
  int bytes = 0;  // of an element
  bool strict = false;
  bool backward = false;
  bool options = false;  // of marks.cuh: instances of their own

  constexpr int padded() const { return units * blocks; }
  constexpr int group_rows() const { return rows * passes; }
  constexpr int parts() const { return kWarps / (units / kWarpUnits); }
  constexpr int gates() const { return backward ? 1 : 4; }  // that a unit has sums for
  // Words of one row of the state: h, or dz of all gates.
  constexpr int state_words() const { return (backward ? 4 : 1) * padded() * bytes / 4; }
  constexpr int pieces() const { return strict ? (padded() + 31) / 32 : (state_words() + 15) / 16; }
  constexpr int pieces_of_warp() const { return (pieces() + parts() - 1) / parts(); }
  constexpr int rest_pieces() const {
    const int rest = pieces_of_warp() - held_pieces(strict, backward, rows);
    return rest > 0 ? rest : 0;
  }
  // Words of the state of a group, once; there are two.
  constexpr int64_t exchange_words() const {
    const int64_t row = strict ? int64_t{pieces()} * (backward ? 128 : 32) : int64_t{pieces()} * 16;
    return row * group_rows();
  }
  // Words from one row of the sums of a part to the next: 8 more than a multiple of 16, halved, so
  // that the rows 2t of four lanes lie in different banks.
  constexpr int sums_pitch() const { return gates() * units + 4; }

  constexpr int64_t weights_bytes() const {
    return int64_t{kWarps} * rest_pieces() * piece_fragments(strict, backward) * kFragmentBytes;
  }
  constexpr int64_t sums_bytes() const { return int64_t{parts()} * rows * sums_pitch() * 4; }
  // What a cell keeps from step to step: c or dc, with options h or the part of dh that is kept.
  constexpr int states() const { return options ? 2 : 1; }
  constexpr int64_t cells_bytes() const { return int64_t{states()} * group_rows() * units * 4; }
  constexpr int64_t bias_bytes() const { return backward ? 0 : int64_t{units} * 16; }
  // In the order in which they lie there; the last 16 bytes are a flag.
  constexpr int64_t shared_bytes(bool cluster) const {
    return weights_bytes() + (cluster ? 2 * exchange_words() * 4 : 0) + sums_bytes() +
           cells_bytes() + bias_bytes() + 16;
  }
};

// What is built: rows of a pass, by the kind of product.
constexpr int few_rows(bool strict) { return strict ? 2 : 8; }
constexpr int many_rows(bool strict) { return strict ? 4 : 16; }
// One thread for each pair of units of a row.
constexpr bool is_built(int units, int rows) { return rows * units / 2 <= kThreads; }

}  // namespace sliced
}  // namespace cuda
}  // namespace fused_lstm
