// Backward of the single-block family: what is queued for one call.
#include "single_block_sequence.cuh"
#include "single_block_strict.cuh"

namespace fused_lstm {
namespace cuda {
namespace single_block {

namespace {

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

template <class Element>
void queue_recurrence(Queue& queue, const Problem& p, const Gradients& gradients, const Plan& plan,
                      const BackwardScratch& scratch, const Sequence& sequence) {
  using T = Stored<Element>;
  const Tiles& tiles = plan.tiles;
  queue_pack<Element, true>(queue, p, false, tiles, tiles.depth(), scratch.w_hh);
  BackwardCall<T> call = {};
  call.sequence = sequence;
  call.hidden = static_cast<int32_t>(p.H);
  call.w_hh = static_cast<const uint4*>(scratch.w_hh);
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
  call.db = scratch.db;
  const ReserveLayout reserve = reserve_layout(p);
  const char* const base = static_cast<const char*>(gradients.reserve);
  for (int32_t d = 0; d < p.D; ++d) {
    call.gates[d] = reinterpret_cast<const T*>(base + reserve.gates[d]);
    call.cells[d] = reinterpret_cast<const float*>(base + reserve.cells[d]);
    call.dz[d] = static_cast<T*>(scratch.dz) + d * row_count(p) * 4 * p.H;
  }
  with_tiles<Element, true>(tiles, [&](auto units, auto block_rows) {
    constexpr int kUnits = decltype(units)::value, kRows = decltype(block_rows)::value;
    device::Launch how;
    how.grid = dim3(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(p.D));
    how.block = dim3(static_cast<unsigned>(tiles.threads()));
    how.shared = static_cast<size_t>(plan.shared_bytes);
    if constexpr (std::is_same_v<Element, float>) {
      queue.run(strict_backward_kernel<kUnits, kRows>, how, call);
    } else {
      queue.run(backward_kernel<Element, kUnits, kRows>, how, call);
    }
  });
}

// The products over all rows, and what they need; only what is asked for.
template <class T>
void queue_weight_gradients(Queue& queue, const Problem& p, const Gradients& gradients,
                            const Plan& plan, const BackwardScratch& scratch,
                            const Sequence& sequence) {
  const int64_t rows = row_count(p), H = p.H;
  const auto dz = [&](int32_t d) { return static_cast<const T*>(scratch.dz) + d * rows * 4 * H; };
  const Operand x = queue_x<T>(queue, p, scratch.x);
  for (int32_t d = 0; d < p.D; ++d) {
    const auto& wanted = gradients.weights[d];
    if (wanted.dw_ih != nullptr) {
      Summed<T> dw_ih(queue, wanted.dw_ih, scratch.sums, 4 * H, p.I);
      dw_ih.add(rows, {dz(d), 4 * H, true}, x);
      dw_ih.round();
    }
    if (wanted.dw_hh != nullptr) {
      PreviousH<T> previous = {};
      previous.sequence = sequence;
      previous.hidden = static_cast<int32_t>(H);
      previous.reverse = d == 1;
      previous.y = static_cast<const T*>(gradients.y) + d * H;
      previous.y_t = p.batch_sizes != nullptr ? 0 : gradients.y_t;
      previous.y_b = gradients.y_b;
      if (p.h0 != nullptr) previous.h0 = static_cast<const T*>(p.h0) + d * p.B * H;
      previous.to = static_cast<T*>(scratch.h_prev);
      const int64_t groups = (p.B + kRowsOfCopy - 1) / kRowsOfCopy;
      queue.run(previous_h<T>,
                {dim3(static_cast<unsigned>(p.T), static_cast<unsigned>(groups < 64 ? groups : 64)),
                 dim3(32, kRowsOfCopy)},
                previous);
      Summed<T> dw_hh(queue, wanted.dw_hh, scratch.sums, 4 * H, H);
      dw_hh.add(rows, {dz(d), 4 * H, true}, {scratch.h_prev, H});
      dw_hh.round();
    }
    if (wanted.db != nullptr) {  // the blocks' parts, one after the other
      const Round<T> sum = {plan.blocks, 4 * H, scratch.db + d * plan.blocks * 4 * H,
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

}  // namespace

Status backward(const Problem& problem, const Gradients& gradients, void* workspace,
                const Launch& launch) {
  const Plan chosen = plan(problem, true, launch);
  if (chosen.refusal != nullptr) return Status::kUnsupported;
  const BackwardScratch scratch = backward_scratch(problem, gradients, chosen, workspace);
  Queue queue(launch, problem.dtype);
  const Sequence sequence = queue_sequence(queue, problem, scratch.lengths, scratch.offsets);
  with_element(problem.dtype, chosen.tiles, [&](auto element) {
    queue_recurrence<decltype(element)>(queue, problem, gradients, chosen, scratch, sequence);
    queue_weight_gradients<Stored<decltype(element)>>(queue, problem, gradients, chosen, scratch,
                                                      sequence);
  });
  return queue.status();
}

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
