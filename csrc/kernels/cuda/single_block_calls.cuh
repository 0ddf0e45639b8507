// What the families with resident weights do alike around their recurrences: the arguments of their
// kernels, the input's projection, and the dense products of backward.
#pragma once

#include "options.h"
#include "pieces.h"
#include "single_block_backward.cuh"
#include "single_block_forward.cuh"
#include "single_block_sequence.cuh"
#include "stepwise_options.cuh"

namespace fused_lstm {
namespace cuda {
namespace single_block {

template <class T>
StepOptions<T> step_options(const Problem& p) {
  const Zoneout& zoneout = p.zoneout;
  return {p.marks,
          zoneout.on(),
          zoneout.keep,
          static_cast<float>(zoneout.h),
          static_cast<float>(zoneout.c),
          static_cast<const T*>(p.h_factors),
          p.D,
          pairs_are_aligned(zoneout.keep, 0, 0, p.H, 1),
          pairs_are_aligned(p.h_factors, 0, 0, p.H, sizeof(T))};
}

// Everything but the sequence, weights and projected input.
template <class T>
ForwardCall<T> forward_call(const Problem& p, const Outputs& outputs) {
  const bool packed = p.batch_sizes != nullptr;
  ForwardCall<T> call = {};
  call.inputs = static_cast<int32_t>(p.I);
  call.hidden = static_cast<int32_t>(p.H);
  call.x = static_cast<const T*>(p.x);
  call.x_t = packed ? 0 : p.x_t;
  call.x_b = p.x_b;
  call.h0 = static_cast<const T*>(p.h0);
  call.c0 = static_cast<const T*>(p.c0);
  call.y = static_cast<T*>(outputs.y);
  call.y_t = packed ? 0 : outputs.y_t;
  call.y_b = outputs.y_b;
  call.wide_y = pairs_are_aligned(call.y, call.y_t, call.y_b, p.H, sizeof(T));
  call.wide_c0 = pairs_are_aligned(call.c0, 0, 0, p.H, sizeof(T));  // a view may begin anywhere
  call.h_n = static_cast<T*>(outputs.h_n);
  call.c_n = static_cast<T*>(outputs.c_n);
  call.options = step_options<T>(p);
  call.all_cells = static_cast<T*>(outputs.cells);
  call.wide_all_cells = pairs_are_aligned(call.all_cells, 0, 0, p.H, sizeof(T));
  const ReserveLayout reserve = reserve_layout(p);
  for (int32_t d = 0; d < p.D; ++d) {
    call.w_ih_rows[d] = static_cast<const T*>(p.weights[d].w_ih);
    call.b_ih[d] = static_cast<const T*>(p.weights[d].b_ih);
    call.b_hh[d] = static_cast<const T*>(p.weights[d].b_hh);
    if (outputs.reserve == nullptr) continue;
    char* const base = static_cast<char*>(outputs.reserve);
    if (!p.recompute) call.gates[d] = reinterpret_cast<T*>(base + reserve.gates[d]);
    call.cells[d] = reinterpret_cast<float*>(base + reserve.cells[d]);
  }
  return call;
}

// Everything but the sequence, weights and db.
template <class T>
BackwardCall<T> backward_call(const Problem& p, const Gradients& gradients, void* dz) {
  BackwardCall<T> call = {};
  call.hidden = static_cast<int32_t>(p.H);
  call.c0 = static_cast<const T*>(p.c0);
  call.dy = static_cast<const T*>(gradients.dy);
  call.dy_t = p.batch_sizes != nullptr ? 0 : gradients.dy_t;
  call.dy_b = gradients.dy_b;
  call.wide_dy = pairs_are_aligned(call.dy, call.dy_t, call.dy_b, p.H, sizeof(T));
  call.dh_n = static_cast<const T*>(gradients.dh_n);
  call.dc_n = static_cast<const T*>(gradients.dc_n);
  const auto aligned = [&](const T* state) {  // a caller's view may begin at any element
    return pairs_are_aligned(state, 0, 0, p.H, sizeof(T));
  };
  call.wide_states = aligned(call.c0) && aligned(call.dh_n) && aligned(call.dc_n);
  call.dh0 = static_cast<T*>(gradients.dh0);
  call.dc0 = static_cast<T*>(gradients.dc0);
  call.options = step_options<T>(p);
  call.dcells = static_cast<const T*>(gradients.dcells);
  call.dcells_t = gradients.dcells_t;
  call.dcells_b = gradients.dcells_b;
  call.wide_dcells = pairs_are_aligned(call.dcells, call.dcells_t, call.dcells_b, p.H, sizeof(T));
  const ReserveLayout reserve = reserve_layout(p);
  const char* const base = static_cast<const char*>(gradients.reserve);
  for (int32_t d = 0; d < p.D; ++d) {
    call.cells[d] = reinterpret_cast<const float*>(base + reserve.cells[d]);
    call.dz[d] = static_cast<T*>(dz) + d * row_count(p) * 4 * p.H;
    // Gates that were computed again lie where dz will: a lane reads its own before it writes
    // there.
    call.gates[d] = p.recompute ? call.dz[d] : reinterpret_cast<const T*>(base + reserve.gates[d]);
  }
  return call;
}

// projected [D, N, 4H] = x W_ih^T, one product per direction.
template <class T>
void queue_projection(Queue& queue, const Problem& p, void* x_room, float* projected) {
  const int64_t rows = row_count(p);
  const Operand x = queue_x<T>(queue, p, x_room);
  for (int32_t d = 0; d < p.D; ++d) {
    queue.multiply(rows, 4 * p.H, p.I, x, {p.weights[d].w_ih, p.I, true},
                   projected + d * rows * 4 * p.H, false);
  }
}

// h that each row of a direction read: y of the step before it in the direction's order, or h0.
template <class T>
struct PreviousH {
  Sequence sequence;
  int32_t hidden;
  bool reverse;
  const T* y;  // this direction's columns
  int64_t y_t, y_b;
  const T* h0;  // ? [B, H], this direction's
  T* to;        // [N, H]
};

constexpr int kRowsOfCopy = 8;

template <class T>
__global__ void __launch_bounds__(32 * kRowsOfCopy) previous_h(PreviousH<T> call) {
  const Sequence& sequence = call.sequence;
  const int t = blockIdx.x, before = call.reverse ? t + 1 : t - 1;
  const int64_t first = sequence.first(t);
  const int stride = int(gridDim.y) * kRowsOfCopy;
  for (int b = int(blockIdx.y) * kRowsOfCopy + int(threadIdx.y); b < sequence.batch; b += stride) {
    const int length = sequence.length(b);
    if (t >= length) return;  // so are the rows after it
    const T* from = call.h0 != nullptr ? call.h0 + int64_t{b} * call.hidden : nullptr;
    if (before >= 0 && before < length) {
      from = call.y + sequence.row_start(before, sequence.first(before), b, call.y_t, call.y_b);
    }
    T* const to = call.to + (first + b) * call.hidden;
    for (int u = threadIdx.x; u < call.hidden; u += 32) {
      to[u] = from != nullptr ? from[u] : device::from_float<T>(0.0f);
    }
  }
}

// h as the gates of every row of direction d read it -> to [N, H].
template <class T>
void queue_previous_h(Queue& queue, const Problem& p, const Gradients& gradients,
                      const Sequence& sequence, int32_t d, void* to) {
  const T* const y = static_cast<const T*>(gradients.y) + d * p.H;
  const int64_t y_t = p.batch_sizes != nullptr ? 0 : gradients.y_t;
  if (changes_h(p)) {
    const GatherH<T> gather = {read_h_of<T>(p, d), 0, p.T * p.B, y, y_t, gradients.y_b,
                               static_cast<T*>(to)};
    return queue.run(gather_h_kernel<T>, cover(gather.rows, p.H), gather);
  }
  PreviousH<T> previous = {};
  previous.sequence = sequence;
  previous.hidden = static_cast<int32_t>(p.H);
  previous.reverse = d == 1;
  previous.y = y;
  previous.y_t = y_t;
  previous.y_b = gradients.y_b;
  if (p.h0 != nullptr) previous.h0 = static_cast<const T*>(p.h0) + d * p.B * p.H;
  previous.to = static_cast<T*>(to);
  const int64_t groups = (p.B + kRowsOfCopy - 1) / kRowsOfCopy;
  queue.run(previous_h<T>,
            {dim3(static_cast<unsigned>(p.T), static_cast<unsigned>(groups < 64 ? groups : 64)),
             dim3(32, kRowsOfCopy)},
            previous);
}

// x of all N rows, zeros past a row's end: as it lies, or made dense in `room`.
template <class T>
Operand queue_finite_x(Queue& queue, const Problem& p, void* room) {
  if (p.marks == nullptr || room == nullptr) return queue_x<T>(queue, p, room);
  const GatherX<T> gather = {
      marks_of(p, 0),       0, p.T * p.B, p.I, static_cast<const T*>(p.x), p.x_t, p.x_b,
      static_cast<T*>(room)};
  queue.run(gather_x_kernel<T>, cover(gather.rows, p.I), gather);
  return {room, p.I};
}

// out [m, n] = op(a) b (+ more): float32 sums go where they belong, those of 16-bit types through
// `sums` and one rounding, which round() queues after the last product.
template <class T>
class Summed {
 public:
  Summed(Queue& queue, void* out, float* sums, int64_t m, int64_t n)
      : queue_(queue), out_(static_cast<T*>(out)), sums_(sums), m_(m), n_(n) {}
  void add(int64_t k, const Operand& a, const Operand& b) {
    queue_.multiply(m_, n_, k, a, b, target(), begun_);
    begun_ = true;
  }
  void round() {
    if constexpr (sizeof(T) == 2) {
      queue_.run(round_kernel<T>, cover(1, m_ * n_), Round<T>{1, m_ * n_, sums_, out_});
    }
  }

 private:
  void* target() {
    if constexpr (sizeof(T) == 2) return sums_;
    return out_;
  }
  Queue& queue_;
  T* out_;
  float* sums_;
  int64_t m_, n_;
  bool begun_ = false;
};

// Gates that the reserve does not hold -> dz's place, a stretch of rows at a time.
template <class T>
void queue_gates(Queue& queue, const Problem& p, const Gradients& gradients,
                 const DenseScratch& scratch, const Sequence& sequence) {
  const int64_t N = row_count(p), H = p.H, most = scratch.z_rows;
  const Operand x = queue_finite_x<T>(queue, p, scratch.x);
  for (int32_t d = 0; d < p.D; ++d) {
    const Weights& w = p.weights[d];
    queue_previous_h<T>(queue, p, gradients, sequence, d, scratch.h_prev);
    for (int64_t first = 0; first < N; first += most) {
      Activate<T> call = {};
      call.rows = first + most < N ? most : N - first;
      call.hidden = H;
      call.gates = static_cast<T*>(scratch.dz) + (d * N + first) * 4 * H;
      void* const sums = scratch.z != nullptr ? static_cast<void*>(scratch.z) : call.gates;
      queue.multiply(call.rows, 4 * H, p.I,
                     Operand{static_cast<const T*>(x.data) + first * x.row, x.row},
                     Operand{w.w_ih, p.I, true}, sums, false);
      queue.multiply(call.rows, 4 * H, H,
                     Operand{static_cast<const T*>(scratch.h_prev) + first * H, H},
                     Operand{w.w_hh, H, true}, sums, true);
      call.z = static_cast<const float*>(sums);
      call.b_ih = static_cast<const T*>(w.b_ih);
      call.b_hh = static_cast<const T*>(w.b_hh);
      queue.run(activate_kernel<T>, cover(call.rows, H), call);
    }
  }
}

// The products over all rows, and what they need; only what is asked for.
template <class T>
void queue_weight_gradients(Queue& queue, const Problem& p, const Gradients& gradients,
                            const DenseScratch& scratch, const Sequence& sequence) {
  const int64_t rows = row_count(p), H = p.H;
  const auto dz = [&](int32_t d) { return static_cast<const T*>(scratch.dz) + d * rows * 4 * H; };
  const Operand x = queue_finite_x<T>(queue, p, scratch.x);
  for (int32_t d = 0; d < p.D; ++d) {
    const auto& wanted = gradients.weights[d];
    if (wanted.dw_ih != nullptr) {
      Summed<T> dw_ih(queue, wanted.dw_ih, scratch.sums, 4 * H, p.I);
      dw_ih.add(rows, {dz(d), 4 * H, true}, x);
      dw_ih.round();
    }
    if (wanted.dw_hh != nullptr) {
      queue_previous_h<T>(queue, p, gradients, sequence, d, scratch.h_prev);
      Summed<T> dw_hh(queue, wanted.dw_hh, scratch.sums, 4 * H, H);
      dw_hh.add(rows, {dz(d), 4 * H, true}, {scratch.h_prev, H});
      dw_hh.round();
    }
    if (wanted.db != nullptr) {  // the blocks' parts, one after the other
      const Round<T> sum = {scratch.parts, 4 * H, scratch.db + d * scratch.parts * 4 * H,
                            static_cast<T*>(wanted.db)};
      queue.run(round_kernel<T>, cover(1, 4 * H), sum);
    }
  }
  if (gradients.dx != nullptr) {
    Summed<T> dx(queue, gradients.dx, scratch.sums, rows, p.I);
    for (int32_t d = 0; d < p.D; ++d) dx.add(4 * H, {dz(d), 4 * H}, {p.weights[d].w_ih, p.I});
    dx.round();
  }
}

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
