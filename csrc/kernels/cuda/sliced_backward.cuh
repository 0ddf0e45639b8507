// Backward of the sliced families: as forward, but what the blocks hand each other is dz of all
// gates, four times as much, and each has the slice of W_hh^T that makes dh of its own units.
//
//   fetch gates, cells, dy | WAIT for dz(s - 1) | sums of each warp | BARRIER | cells -> publish
//   dz(s) | ARRIVE | dz to memory, and into db
//
// One step more than there are times: a row's dh0 appears in the sums of the step after its last.
#pragma once

#include "single_block_backward.cuh"
#include "sliced_block.cuh"

namespace fused_lstm {
namespace cuda {
namespace sliced {

template <class T>
struct BackwardSlices {
  single_block::BackwardCall<T> call;
  Cut cut;
};

// What a step reads of its row, with c of every step: nothing is kept from one to the next.
template <class T>
DEVICE void fetch_step(const single_block::BackwardCall<T>& call, const BlockRows& block, int row,
                       int s, int64_t first, int64_t before, const UnitPair& pair,
                       single_block::RowState<T>& state) {
  state.place(block, row, pair);
  single_block::fetch_row(call, block, row, s, first, before, pair, state);
  if (!state.active(s) || s == state.begin) return;
  const float* const cells = call.cells[block.direction] + pair.unit;
  const auto c = single_block::load_pair(cells + (first + block.first_row + row) * call.hidden,
                                         pair.wide, pair.both);
  state.c[0] = c.first, state.c[1] = c.second;
}

// The same with options.
template <class T>
DEVICE void fetch_step(const single_block::BackwardCall<T>& call, const BlockRows& block, int row,
                       int s, int64_t first, int64_t before, const UnitPair& pair,
                       single_block::OptionRowState<T>& state) {
  state.place(call, block, row, s);
  state.fetch(call, block, row, s, first, before, pair);
}

// The threads' parts of db [gate][unit], row by row through `sums`, added to this group's.
DEVICE void add_db(const float (&db)[4][2], const ThreadPlace& thread, int rows, int units,
                   int hidden, float* sums, float* group_db) {
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
    __syncthreads();
    if (thread.exists) {
      sums[thread.row * units + thread.unit] = db[gate][0];
      sums[thread.row * units + thread.unit + 1] = db[gate][1];
    }
    __syncthreads();
    const int unit = int(blockIdx.x) * units + int(threadIdx.x);
    if (int(threadIdx.x) >= units || unit >= hidden) continue;
    float sum = 0.0f;
    for (int row = 0; row < rows; ++row) sum += sums[row * units + int(threadIdx.x)];
    group_db[gate * hidden + unit] += sum;
  }
}

template <class Product, class Exchange, bool kOptions>
__global__ void __launch_bounds__(kThreads, 1)
    sliced_backward_kernel(BackwardSlices<Stored<typename Product::Element>> arguments) {
  if constexpr (Exchange::kCluster ? !device::kClusters : !device::kResidentKernels) {
    return device::refuse();
  }
  using T = Stored<typename Product::Element>;
  constexpr int kStates = kOptions ? 2 : 1;
  const auto& call = arguments.call;
  const Cut& cut = arguments.cut;
  const int hidden = call.hidden, direction = cut.first_direction + int(blockIdx.z);
  const BlockRows block(call.sequence, direction, int(blockIdx.y) * cut.group_rows, cut.group_rows,
                        true);
  const Room room(cut, Product::kRows, kStates, Exchange::kCluster, true);
  const WarpPlace warp(cut, direction, Product::kWarpTiles);
  const ThreadPlace thread(cut, Product::kRows);
  const UnitPair pair(int(blockIdx.x) * cut.units + thread.unit, hidden);

  Product w_hh;
  w_hh.load(call.w_hh + warp.fragments,
            room.weights + int(threadIdx.x) / 32 * cut.rest_fragments * 32, warp.share);
  float* const cells = room.cells + kStates * (thread.row * cut.units + thread.unit);
  const int cells_of_pass = kStates * Product::kRows * cut.units;
  carry_cells<false, kStates>(cut, block, thread, Product::kRows, hidden, pair, cells);

  const int group = direction * int(gridDim.y) + int(blockIdx.y);
  Exchange exchange(cut.meeting, group, room.state, room.flag);
  exchange.begin();
  float db[4][2] = {};
  // With options all rows have all steps.
  const int end = kOptions || cut.end < block.steps + 1 ? cut.end : block.steps + 1;
  for (int s = cut.begin; s < end; ++s) {
    const int64_t first = block.first(s), before = block.first(s + 1);
    for (int pass = 0; pass < cut.passes; ++pass) {
      const int row = thread.exists ? pass * Product::kRows + thread.row : block.rows;
      const bool exists = row < block.rows && pair.exists;
      float* const kept = cells + pass * cells_of_pass;
      single_block::RowStateOf<T, kOptions> state = {};
      fetch_step(call, block, row, s, first, before, pair, state);
      if (pass == 0 && !exchange.wait(s)) return;
      w_hh.multiply(exchange, s, pass, warp.share,
                    room.sums + warp.part * Product::kRows * cut.sums_pitch + warp.first_unit,
                    cut.sums_pitch, cut.units);
      __syncthreads();
      float dz[4][2] = {};
      bool active = false;  // in this step
      if (exists) {
        const float2 sum = add_parts(room.sums + thread.row * cut.sums_pitch + thread.unit,
                                     cut.parts, Product::kRows * cut.sums_pitch);
        float dh[2] = {sum.x, sum.y};
        state.dc[0] = kept[0], state.dc[1] = kept[1];
        if constexpr (kOptions) {
          // Read again: over the product sm_80 has no register left for them.
          state.place(call, block, row, s);
          state.marks.push(0);  // of step s + 2, which nobody asks for
          state.kept[0] = kept[2], state.kept[1] = kept[3];
        }
        active = single_block::cell_gradients<typename Product::Number>(call, block, row, s, pair,
                                                                        dh, state, dz);
        kept[0] = state.dc[0], kept[1] = state.dc[1];
        if constexpr (kOptions) {
          kept[2] = state.kept[0], kept[3] = state.kept[1];
        }
      }
      if (active) {
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          Product::publish(exchange, s, row, gate * cut.units * int(gridDim.x) + pair.unit,
                           dz[gate][0], dz[gate][1], cut.pieces);
        }
      }
      if (pass + 1 == cut.passes) {
        exchange.arrive();
      } else {
        __syncthreads();
      }
      // With options a row without this step leaves zeros.
      const bool stores = kOptions ? exists && s < block.steps : active;
      if (stores) single_block::store_dz(call, block, row, first, pair, dz, db);
    }
  }
  exchange.finish();
  carry_cells<true, kStates>(cut, block, thread, Product::kRows, hidden, pair, cells);
  add_db(db, thread, Product::kRows, cut.units, hidden, room.sums,
         call.db + int64_t{group} * 4 * hidden);
}

}  // namespace sliced
}  // namespace cuda
}  // namespace fused_lstm
