// How the rows of a call lie in time: the steps of one direction, walked up or down, and stretches
// of steps that are worked on together. Plain C++; what walks here runs on the host.
#pragma once

#include <cstdint>

#include "reserve.h"

namespace fused_lstm {
namespace cuda {

// Rows that take part in step t; none before the first and after the last.
inline int64_t rows_at(const Problem& p, int64_t t) {
  if (t < 0 || t >= p.T) return 0;
  return p.batch_sizes ? p.batch_sizes[t] : p.B;
}

struct Step {
  int64_t t, rows;
  int64_t row;  // its first row among all N
};

inline bool exists(const Problem& p, const Step& step) { return step.t >= 0 && step.t < p.T; }
inline Step first_step(const Problem& p, bool upward) {
  if (upward) return {0, rows_at(p, 0), 0};
  const int64_t rows = rows_at(p, p.T - 1);
  return {p.T - 1, rows, row_count(p) - rows};
}
inline Step next_step(const Problem& p, const Step& step, bool upward) {
  if (upward) return {step.t + 1, rows_at(p, step.t + 1), step.row + step.rows};
  const int64_t rows = rows_at(p, step.t - 1);
  return {step.t - 1, rows, step.row - rows};
}

// Consecutive steps, and therefore consecutive rows.
struct Chunk {
  Step first;  // in the order of the walk
  int64_t steps;
  int64_t row, rows;  // of all its steps
};

// As many steps from `first` on as hold no more than most_rows rows; at least one.
inline Chunk chunk_from(const Problem& p, const Step& first, bool upward, int64_t most_rows) {
  Chunk chunk = {first, 1, first.row, first.rows};
  for (Step step = next_step(p, first, upward);
       exists(p, step) && chunk.rows + step.rows <= most_rows; step = next_step(p, step, upward)) {
    ++chunk.steps;
    chunk.rows += step.rows;
    if (!upward) chunk.row = step.row;
  }
  return chunk;
}

// A [T, B, features] array (packed: [N, features]) with unit stride over features.
struct Rows {
  int64_t stride_t, stride_b;
  // Elements before the first row of a step.
  int64_t offset(const Problem& p, const Step& step) const {
    return p.batch_sizes ? step.row * stride_b : step.t * stride_t;
  }
  // The distance of its rows within a step, fit for a product also where there is only one.
  int64_t within(const Step& step, int64_t features) const {
    return step.rows > 1 ? stride_b : features;
  }
  // The one distance of all N rows, or 0 when they lie at different ones or on top of each other.
  int64_t uniform(const Problem& p, int64_t features) const {
    int64_t stride = stride_b;
    if (!p.batch_sizes && p.T > 1) {
      if (p.B == 1) stride = stride_t;
      if (p.B > 1 && stride_t != p.B * stride_b) return 0;
    }
    if (p.T == 1 && p.B == 1) stride = features;
    return stride >= features ? stride : 0;
  }
};

inline bool rows_of_x_are_uniform(const Problem& p) {
  return Rows{p.x_t, p.x_b}.uniform(p, p.I) != 0;
}

}  // namespace cuda
}  // namespace fused_lstm
