// Forward of the sliced families: the blocks of a batch group take its rows through all steps, each
// with its slice of W_hh, and hand each other h (sliced_exchange.cuh).
//
// One step of one pass, and its barriers:
//
//   fetch projected input | WAIT for h(s - 1) | sums of each warp | BARRIER | cells -> publish h(s)
//   | ARRIVE | y, gates, cells to memory
//
// With more than one pass, a barrier of the block takes the place of ARRIVE in all but the last.
#pragma once

#include "single_block_forward.cuh"
#include "sliced_block.cuh"

namespace fused_lstm {
namespace cuda {
namespace sliced {

template <class T>
struct ForwardSlices {
  single_block::ForwardCall<T> call;  // x comes projected
  Cut cut;
};

// b_ih + b_hh of a block's units, [4][units].
template <class T>
DEVICE void load_bias(const single_block::ForwardCall<T>& call, int direction, int units,
                      float* bias) {
  const T *b_ih = call.b_ih[direction], *b_hh = call.b_hh[direction];
  for (int i = threadIdx.x; i < 4 * units; i += kThreads) {
    const int unit = int(blockIdx.x) * units + i % units, at = i / units * call.hidden + unit;
    float sum = 0.0f;
    if (unit < call.hidden && b_ih != nullptr) sum += device::to_float(b_ih[at]);
    if (unit < call.hidden && b_hh != nullptr) sum += device::to_float(b_hh[at]);
    bias[i] = sum;
  }
}

// A thread's cells at one step of one row: the gates, what y shows as h and the cells as c.
template <class T, bool kOptions>
struct ForwardCells {
  float z[4][2] = {}, h[2], c[2];

  // What lies in memory, ahead of the product.
  DEVICE void fetch(const single_block::ForwardCall<T>& /*call*/, const BlockRows& /*block*/,
                    int /*row*/, int /*s*/, const UnitPair& /*pair*/) {}
  // From z before activation and what is kept; to_publish: what the next step reads as h, and false
  // where the row has no next step.
  template <class Number>
  DEVICE bool compute(const single_block::ForwardCall<T>& /*call*/, const BlockRows& /*block*/,
                      int /*row*/, const UnitPair& /*pair*/, float* kept, float (&to_publish)[2]) {
    c[0] = kept[0], c[1] = kept[1];
    single_block::compute_cells<Number>(z, c, h);
    kept[0] = c[0], kept[1] = c[1];
    to_publish[0] = h[0], to_publish[1] = h[1];
    return true;
  }
  DEVICE void store(const single_block::ForwardCall<T>& call, const BlockRows& block, int row,
                    int time, int length, int64_t first, const UnitPair& pair) const {
    single_block::store_cells(call, block, row, time, block.is_last(time, length), first, pair, z,
                              c, h);
  }
};

template <class T>
struct ForwardCells<T, true> {
  float z[4][2] = {}, h[2], c[2], state_c[2];
  single_block::ForwardRow<T> row_state;

  DEVICE void fetch(const single_block::ForwardCall<T>& call, const BlockRows& block, int row,
                    int s, const UnitPair& pair) {
    row_state.place(call, block, row, s);
    row_state.fetch(call, block, row, s, pair);
  }
  template <class Number>
  DEVICE bool compute(const single_block::ForwardCall<T>& call, const BlockRows& block, int row,
                      const UnitPair& pair, float* kept, float (&to_publish)[2]) {
    state_c[0] = kept[0], state_c[1] = kept[1];
    row_state.h[0] = kept[2], row_state.h[1] = kept[3];
    single_block::compute_cells_with_options<Number>(call, z, state_c, row_state, h, c);
    kept[0] = state_c[0], kept[1] = state_c[1];
    kept[2] = row_state.h[0], kept[3] = row_state.h[1];
    return single_block::next_h(call, block, row, pair, row_state, to_publish);
  }
  DEVICE void store(const single_block::ForwardCall<T>& call, const BlockRows& block, int row,
                    int time, int /*length*/, int64_t first, const UnitPair& pair) const {
    single_block::store_cells_with_options(call, block, row, time, first, pair, z, state_c,
                                           row_state, h, c);
  }
};

template <class Product, class Exchange, bool kOptions>
__global__ void __launch_bounds__(kThreads, 1)
    sliced_forward_kernel(ForwardSlices<Stored<typename Product::Element>> arguments) {
  if constexpr (Exchange::kCluster ? !device::kClusters : !device::kResidentKernels) {
    return device::refuse();
  }
  using Cells = ForwardCells<Stored<typename Product::Element>, kOptions>;
  constexpr int kStates = kOptions ? 2 : 1;
  const auto& call = arguments.call;
  const Cut& cut = arguments.cut;
  const int hidden = call.hidden, direction = cut.first_direction + int(blockIdx.z);
  const BlockRows block(call.sequence, direction, int(blockIdx.y) * cut.group_rows, cut.group_rows,
                        false);
  const Room room(cut, Product::kRows, kStates, Exchange::kCluster, false);
  const WarpPlace warp(cut, direction, Product::kWarpTiles);
  const ThreadPlace thread(cut, Product::kRows);
  const UnitPair pair(int(blockIdx.x) * cut.units + thread.unit, hidden);

  Product w_hh;
  w_hh.load(call.w_hh + warp.fragments,
            room.weights + int(threadIdx.x) / 32 * cut.rest_fragments * 32, warp.share);
  load_bias(call, direction, cut.units, room.bias);
  const bool has_cells = thread.exists && pair.exists;
  float* const cells = room.cells + kStates * (thread.row * cut.units + thread.unit);
  const int cells_of_pass = kStates * Product::kRows * cut.units;
  carry_cells<false, kStates>(cut, block, thread, Product::kRows, hidden, pair, cells);
  __syncthreads();  // the bias

  const int group = direction * int(gridDim.y) + int(blockIdx.y);
  Exchange exchange(cut.meeting, group, room.state, room.flag);
  exchange.begin();
  const int end = cut.end < block.steps ? cut.end : block.steps;
  for (int s = cut.begin; s < end; ++s) {
    const int time = block.time(s);
    const int64_t first = block.first(s);
    for (int pass = 0; pass < cut.passes; ++pass) {
      const int row = pass * Product::kRows + thread.row, length = block.length(row);
      const bool active = has_cells && time < length;
      Cells now;
      if (active) {
        now.fetch(call, block, row, s, pair);
        const float* const x =
            call.projected[direction] + (first + block.first_row + row) * 4 * hidden + pair.unit;
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          const auto from = single_block::load_pair(x + gate * hidden, pair.wide, pair.both);
          now.z[gate][0] = from.first, now.z[gate][1] = from.second;
        }
      }
      if (pass == 0 && !exchange.wait(s)) return;
      w_hh.multiply(exchange, s, pass, warp.share,
                    room.sums + warp.part * Product::kRows * cut.sums_pitch + warp.first_unit,
                    cut.sums_pitch, cut.units);
      __syncthreads();
      if (active) {
        const float* const sums = room.sums + thread.row * cut.sums_pitch + thread.unit;
        const float* const bias = room.bias + thread.unit;
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          const int at = gate * cut.units;
          const float2 sum = add_parts(sums + at, cut.parts, Product::kRows * cut.sums_pitch);
          now.z[gate][0] += sum.x + bias[at], now.z[gate][1] += sum.y + bias[at + 1];
        }
        float* const kept = cells + pass * cells_of_pass;
        float h[2];
        // The unit past the end meets zero weights only, but what it holds may not be finite.
        if (now.template compute<typename Product::Number>(call, block, row, pair, kept, h)) {
          Product::publish(exchange, s, row, pair.unit, h[0], pair.both ? h[1] : 0.0f, cut.pieces);
        }
      }
      if (pass + 1 == cut.passes) {
        exchange.arrive();
      } else {
        __syncthreads();
      }
      if (active) now.store(call, block, row, time, length, first, pair);
    }
  }
  exchange.finish();
  carry_cells<true, kStates>(cut, block, thread, Product::kRows, hidden, pair, cells);
}

}  // namespace sliced
}  // namespace cuda
}  // namespace fused_lstm
