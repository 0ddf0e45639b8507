// The options of marks.cuh in the families with resident weights: what a lane or thread keeps of a
// row for them. Kernels have instances of their own for such calls (kOptions), so that the others
// stay as they are.
//
// There all rows take part in all steps, and a byte of marks says what each step is. State that is
// kept from step to step needs no distinction between a first step and another one: a row that has
// not begun holds its initial state.
#pragma once

#include "marks.cuh"
#include "single_block_operand.cuh"

namespace fused_lstm {
namespace cuda {
namespace single_block {

template <class T>
struct StepOptions {
  const uint8_t* marks;  // ? [T, B]
  bool zones;            // units keep h and c: by bits, or shares of them
  const uint8_t* keep;   // ? [T, B, D*H]
  float h, c;
  const T* h_factors;              // ? [D, B, H]
  int32_t directions;              // D
  bool wide_keep, wide_h_factors;  // their pairs of units are aligned
};

// Marks of steps that follow each other, in the order of the walk; the newest comes last.
struct MarkWindow {
  uint32_t bytes;

  DEVICE void push(uint32_t mark) { bytes = bytes >> 8 | mark << 24; }
  // Of the step `back` before the newest.
  DEVICE bool has(uint32_t bit, int back) const { return (bytes >> (24 - 8 * back) & bit) != 0; }
  DEVICE bool ended(int back) const { return has(kMarkEnded, back); }
  DEVICE bool resets(int back) const { return !ended(back) && has(kMarkReset, back); }
};

// A row has ended at steps that do not exist.
template <class T>
DEVICE uint32_t mark_at(const StepOptions<T>& options, const BlockRows& block, int row, int s) {
  if (s < 0 || s >= block.steps || row >= block.rows) return kMarkEnded;
  if (options.marks == nullptr) return 0;
  return options.marks[int64_t{block.time(s)} * block.sequence.batch + block.first_row + row];
}

// The bytes of keep of a pair of units at step s.
template <class T>
DEVICE uint32_t keep_at(const StepOptions<T>& options, const BlockRows& block, int row, int s,
                        int hidden, const UnitPair& pair) {
  if (options.keep == nullptr || s >= block.steps || row >= block.rows || !pair.exists) return 0;
  const int64_t step_row = int64_t{block.time(s)} * block.sequence.batch + block.first_row + row;
  const uint8_t* const from =
      options.keep + (step_row * options.directions + block.direction) * hidden + pair.unit;
  if (options.wide_keep) return *reinterpret_cast<const uint16_t*>(from);
  return from[0] | (pair.both ? uint32_t{from[1]} << 8 : 0);
}

// The share that unit q of the pair keeps of h (kKeepH) or c (kKeepC).
template <class T>
DEVICE float share(const StepOptions<T>& options, uint32_t keep, uint8_t which, int q) {
  if (options.keep == nullptr) return which == kKeepH ? options.h : options.c;
  return (keep >> (8 * q) & which) != 0 ? 1.0f : 0.0f;
}

// What the gates multiply h of a pair of units by.
template <class T>
DEVICE float2 factors_at(const StepOptions<T>& options, const BlockRows& block, int row, int hidden,
                         const UnitPair& pair) {
  if (options.h_factors == nullptr) return float2{1.0f, 1.0f};
  const Pair<T> factors = load_pair(options.h_factors + block.state(row, hidden) + pair.unit,
                                    options.wide_h_factors, pair.both);
  return float2{device::to_float(factors.first), device::to_float(factors.second)};
}

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
