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

template <class Product, class Exchange, bool kOptions>
__global__ void __launch_bounds__(kThreads, 1)
    sliced_forward_kernel(ForwardSlices<Stored<typename Product::Element>> arguments) {
  if constexpr (Exchange::kCluster ? !device::kClusters : !device::kResidentKernels) {
    return device::refuse();
  }
  using Number = typename Product::Number;
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
  // With options all rows have all steps.
  const int end = kOptions || cut.end < block.steps ? cut.end : block.steps;
  for (int s = cut.begin; s < end; ++s) {
    const int time = block.time(s);
    const int64_t first = block.first(s);
    for (int pass = 0; pass < cut.passes; ++pass) {
      const int row = pass * Product::kRows + thread.row, length = block.length(row);
      const bool active = has_cells && time < length;
      float z[4][2] = {}, h[2], c[2];
      [[maybe_unused]] float shown_c[2];  // zeros where the row has no such step
      [[maybe_unused]] single_block::ForwardRow<Stored<typename Product::Element>> state;
      if (active) {
        if constexpr (kOptions) {
          state.place(call, block, row, s);
          state.fetch(call, block, row, s, pair);
        }
        const float* const x =
            call.projected[direction] + (first + block.first_row + row) * 4 * hidden + pair.unit;
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          const auto from = single_block::load_pair(x + gate * hidden, pair.wide, pair.both);
          z[gate][0] = from.first, z[gate][1] = from.second;
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
          z[gate][0] += sum.x + bias[at], z[gate][1] += sum.y + bias[at + 1];
        }
        float* const kept = cells + pass * cells_of_pass;
        c[0] = kept[0], c[1] = kept[1];
        // The unit past the end meets zero weights only, but what it holds may not be finite.
        const auto publish = [&](const float (&of_next)[2]) {
          Product::publish(exchange, s, row, pair.unit, of_next[0], pair.both ? of_next[1] : 0.0f,
                           cut.pieces);
        };
        if constexpr (kOptions) {
          state.h[0] = kept[2], state.h[1] = kept[3];
          single_block::compute_cells_with_options<Number>(call, z, c, state, h, shown_c);
          kept[0] = c[0], kept[1] = c[1], kept[2] = state.h[0], kept[3] = state.h[1];
          float next[2];
          if (single_block::next_h(call, block, row, pair, state, next)) publish(next);
        } else {
          single_block::compute_cells<Number>(z, c, h);
          kept[0] = c[0], kept[1] = c[1];
          publish(h);
        }
      }
      if (pass + 1 == cut.passes) {
        exchange.arrive();
      } else {
        __syncthreads();
      }
      if (!active) continue;
      if constexpr (kOptions) {
        single_block::store_cells_with_options(call, block, row, time, first, pair, z, c, state, h,
                                               shown_c);
      } else {
        single_block::store_cells(call, block, row, time, block.is_last(time, length), first, pair,
                                  z, c, h);
      }
    }
  }
  exchange.finish();
  carry_cells<true, kStates>(cut, block, thread, Product::kRows, hidden, pair, cells);
}

}  // namespace sliced
}  // namespace cuda
}  // namespace fused_lstm
