// What both passes of the single-block family do around their recurrence: tell the device how long
// packed rows are, choose the instance, and pack weights.
#pragma once

#include "pointwise.cuh"
#include "single_block.h"
#include "single_block_weights.cuh"
#include "steps.h"

namespace fused_lstm {
namespace cuda {
namespace single_block {

// Lengths travel in the parameters of a launch: batch_sizes is host memory, which no copy could
// read later, when a captured graph runs.
struct SetLengths {
  static constexpr int kMost = 960;  // 4 KB of parameters is what every driver takes
  int32_t* lengths;
  int32_t count;
  int32_t values[kMost];
};
static __global__ void set_lengths(SetLengths call) {
  for (int i = threadIdx.x; i < call.count; i += blockDim.x) call.lengths[i] = call.values[i];
}

struct SetOffsets {
  const int32_t* lengths;  // [B]
  int64_t* offsets;        // [T] rows of all steps before
  int32_t batch, steps;
};
static __global__ void set_offsets(SetOffsets call) {
  const int64_t t = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (t >= call.steps) return;
  int64_t sum = 0;
  for (int b = 0; b < call.batch; ++b) sum += call.lengths[b] < t ? call.lengths[b] : t;
  call.offsets[t] = sum;
}

// Fills lengths [B] and offsets [T] where the input is packed.
inline Sequence queue_sequence(Queue& queue, const Problem& p, int32_t* lengths, int64_t* offsets) {
  Sequence sequence = {static_cast<int32_t>(p.T), static_cast<int32_t>(p.B), nullptr, nullptr};
  if (p.batch_sizes == nullptr) return sequence;
  int64_t length = p.T;  // of row b: the steps with more than b rows
  for (int64_t b = 0; b < p.B;) {
    SetLengths piece;
    piece.lengths = lengths + b;
    for (piece.count = 0; b < p.B && piece.count < SetLengths::kMost; ++b) {
      while (length > 0 && p.batch_sizes[length - 1] <= b) --length;
      piece.values[piece.count++] = static_cast<int32_t>(length);
    }
    queue.run(set_lengths, {dim3(1), dim3(256)}, piece);
  }
  const SetOffsets call = {lengths, offsets, sequence.batch, sequence.steps};
  queue.run(set_offsets, {dim3(static_cast<unsigned>((p.T + 127) / 128)), dim3(128)}, call);
  sequence.lengths = lengths;
  sequence.offsets = offsets;
  return sequence;
}

// W_ih or W_hh of every direction -> fragments, `depth` tiles deep.
template <class Element, bool kBackward>
void queue_pack(Queue& queue, const Problem& p, bool input, const Tiles& tiles, int depth,
                void* packed) {
  using T = Stored<Element>;
  PackCall<T> call = {};
  for (int32_t d = 0; d < p.D; ++d) {
    call.weights[d] = static_cast<const T*>(input ? p.weights[d].w_ih : p.weights[d].w_hh);
  }
  call.packed = static_cast<uint4*>(packed);
  call.hidden = static_cast<int32_t>(p.H);
  call.columns = static_cast<int32_t>(input ? p.I : p.H);
  call.units = tiles.units;
  call.depth = depth;
  const int fragments = tiles.threads() * depth * tiles.warp_tiles();
  queue.run(pack_weights<Element, kBackward>,
            {dim3(static_cast<unsigned>((fragments + kPackThreads - 1) / kPackThreads),
                  static_cast<unsigned>(p.D)),
             dim3(kPackThreads)},
            call);
}

// x of all N rows as an operand: as it lies, or made dense in `room`.
template <class T>
Operand queue_x(Queue& queue, const Problem& p, void* room) {
  if (room == nullptr) return {p.x, Rows{p.x_t, p.x_b}.uniform(p, p.I)};
  const bool packed = p.batch_sizes != nullptr;
  const int64_t blocks = packed ? 1 : p.T, rows = packed ? row_count(p) : p.B;
  const CopyBlocks<T> copy = {
      blocks,    rows, p.I, static_cast<const T*>(p.x), p.x_t, p.x_b, static_cast<T*>(room),
      rows * p.I};
  queue.run(copy_blocks_kernel<T>, cover(blocks * rows, p.I), copy);
  return {room, p.I};
}

// Calls run(element) with the element type of a call that fits.
template <class Run>
void with_element(DType dtype, bool strict, const Run& run) {
  if (strict) return run(float{});
  switch (dtype) {
    case DType::kBFloat16:
      return run(device::bf16{});
    case DType::kFloat16:
      return run(device::half{});
    default:
      return run(Tf32{});
  }
}

// Calls run(units, rows, options) with std::integral_constants for the instance that the tiles
// name; see is_built.
template <class Element, bool kBackward, int kIndex = 0, class Run>
void with_tiles(const Tiles& tiles, const Run& run) {
  constexpr int kBytes = sizeof(Stored<Element>), kThis = kUnits[kIndex];
  constexpr bool kStrict = std::is_same_v<Element, float>;
  constexpr int kFew = few_rows(kStrict), kMany = many_rows(kStrict);
  if (tiles.units != kThis) {
    if constexpr (kThis < kMostUnits) with_tiles<Element, kBackward, kIndex + 1>(tiles, run);
    return;
  }
  using Units = std::integral_constant<int, kThis>;
  const auto with_rows = [&](auto options) {
    constexpr bool kOptions = decltype(options)::value;
    if constexpr (is_built({kThis, kMany, kBytes, kStrict, kBackward, kOptions})) {
      if (tiles.rows == kMany) return run(Units{}, std::integral_constant<int, kMany>{}, options);
    }
    if constexpr (is_built({kThis, kFew, kBytes, kStrict, kBackward, kOptions})) {
      run(Units{}, std::integral_constant<int, kFew>{}, options);
    }
  };
  tiles.options ? with_rows(std::true_type{}) : with_rows(std::false_type{});
}

// True where pairs of elements at even distances of a [T, B, features] array are aligned to both.
inline bool pairs_are_aligned(const void* data, int64_t stride_t, int64_t stride_b, int64_t hidden,
                              int64_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  return hidden % 2 == 0 && stride_t % 2 == 0 && stride_b % 2 == 0 && address % (2 * bytes) == 0;
}

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
