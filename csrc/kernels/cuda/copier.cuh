// Makes rows dense that lie step by step wherever a caller's strides or the order of a direction
// put them: as few launches as the distances between the steps allow.
#pragma once

#include "pointwise.cuh"
#include "steps.h"

namespace fused_lstm {
namespace cuda {

template <class S>
class Copier {
 public:
  Copier(Queue& queue, int64_t features) : queue_(queue), features_(features) {}
  ~Copier() { flush(); }

  // Copies one block [rows, features] whose rows lie from_row apart; from null: zeros.
  void add(const S* from, int64_t from_row, S* to, int64_t rows) {
    if (rows == 0) return;
    if (!joins(from, from_row, to, rows)) {
      flush();
      pending_ = {0, rows, features_, from, 0, from_row, to, 0};
    }
    ++pending_.blocks;
  }
  void flush() {
    if (pending_.blocks == 0) return;
    queue_.run(copy_blocks_kernel<S>, cover(pending_.blocks * pending_.rows, features_), pending_);
    pending_.blocks = 0;
  }

 private:
  // Whether the block goes on where the pending ones lead; the second one says where that is.
  bool joins(const S* from, int64_t from_row, S* to, int64_t rows) {
    CopyBlocks<S>& p = pending_;
    if (p.blocks == 0 || rows != p.rows || from_row != p.from_row || !from || !p.from) return false;
    if (p.blocks == 1) {
      p.from_block = from - p.from;
      p.to_block = to - p.to;
    }
    return from - p.from == p.blocks * p.from_block && to - p.to == p.blocks * p.to_block;
  }

  Queue& queue_;
  const int64_t features_;
  CopyBlocks<S> pending_ = {};
};

// x of the steps of a chunk as an operand [chunk.rows, I]: as it lies, or a dense copy in `room`.
template <class S>
Operand rows_of_x(Queue& queue, const Problem& p, const Chunk& chunk, bool upward, void* room) {
  const auto* x = static_cast<const S*>(p.x);
  const Rows rows = {p.x_t, p.x_b};
  if (!room) {
    const int64_t stride = rows.uniform(p, p.I);
    return {x + chunk.row * stride, stride};
  }
  Copier<S> copier(queue, p.I);
  Step step = chunk.first;
  for (int64_t i = 0; i < chunk.steps; ++i, step = next_step(p, step, upward)) {
    copier.add(x + rows.offset(p, step), p.x_b,
               static_cast<S*>(room) + (step.row - chunk.row) * p.I, step.rows);
  }
  return {room, p.I};
}

}  // namespace cuda
}  // namespace fused_lstm
