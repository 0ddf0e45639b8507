// What the kernels of the single-block family share: elements as they are stored and as they are
// multiplied, two neighbouring units read or written at once, and which rows and steps are a
// block's.
#pragma once

#include "../gate_math.h"
#include "device.cuh"
#include "single_block_tiles.h"

namespace fused_lstm {
namespace cuda {
namespace single_block {

// Whether an instance is compiled for this architecture.
constexpr bool runs_here(const Tiles& tiles) {
  return device::kResidentKernels && tiles.least_shared_bytes() <= device::kMostSharedBytes;
}

// Elements: bf16, half, Tf32, and float for strict float32.
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
  } else if constexpr (std::is_same_v<Element, float>) {
    *reinterpret_cast<float2*>(row + k) = float2{first, second};
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

// The rows and steps of one block. Step s of forward and of backward are different times.
struct BlockRows {
  const Sequence& sequence;
  int direction, first_row, rows;
  int steps;       // of the block's longest row
  bool ascending;  // times grow from step to step

  DEVICE BlockRows(const Sequence& all, int most_rows, bool backward)
      : BlockRows(all, blockIdx.y, int(blockIdx.x) * most_rows, most_rows, backward) {}
  DEVICE BlockRows(const Sequence& all, int of_direction, int from_row, int most_rows,
                   bool backward)
      : sequence(all), direction(of_direction), first_row(from_row) {
    const int left = all.batch - first_row;
    rows = left < most_rows ? left : most_rows;
    steps = all.length(first_row);
    ascending = reverse() == backward;
  }
  DEVICE bool reverse() const { return direction == 1; }
  // Rows and steps that do not exist: no length, any first row.
  DEVICE int length(int row) const { return row < rows ? sequence.length(first_row + row) : 0; }
  DEVICE int time(int s) const { return ascending ? s : steps - 1 - s; }
  // Whether a row's step at a time is its last.
  DEVICE bool is_last(int of_time, int length) const {
    return of_time == (reverse() ? 0 : length - 1);
  }
  DEVICE int64_t first(int s) const { return s < steps ? sequence.first(time(s)) : 0; }
  // Where row `row` begins in an array [D, B, hidden].
  DEVICE int64_t state(int row, int hidden) const {
    return (int64_t{direction} * sequence.batch + first_row + row) * hidden;
  }
};

// Units `unit` and `unit` + 1, of which none, one or both exist.
struct UnitPair {
  int unit;
  bool exists, both;
  bool wide;  // they are aligned to a pair in arrays without gaps
  DEVICE UnitPair(int first, int hidden)
      : unit(first), exists(first < hidden), both(first + 1 < hidden), wide(hidden % 2 == 0) {}
};

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
