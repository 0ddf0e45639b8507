// Backward of the stepwise family; stepwise.h says how. Steps are visited against the order in
// which forward visited them: `before` and `after` keep forward's sense.
#include "copier.cuh"
#include "stepwise.h"

namespace fused_lstm {
namespace cuda {
namespace stepwise {
namespace {

template <class S>
class Backward {
  using E = Compute<S>;
  static constexpr bool kRounds = sizeof(S) < sizeof(E);  // sums are kept apart until the end

 public:
  Backward(const Problem& p, const Gradients& g, void* workspace, const Launch& launch)
      : p_(p), g_(g), s_(backward_scratch(p, g, workspace)), queue_(launch, p.dtype) {}

  Status run() {
    for (int32_t d = 0; d < p_.D; ++d) {
      run_direction(d);
      finish_direction(d);
    }
    if (kRounds && p_.D == 2 && g_.dx) round(s_.dx, g_.dx, row_count(p_) * p_.I);
    return queue_.status();
  }

 private:
  void run_direction(int32_t d) {
    const bool upward = d != 0;
    int64_t after = 0;  // rows of the step after
    Step step = first_step(p_, upward);
    bool add = false;
    while (exists(p_, step)) {
      const Chunk chunk = chunk_from(p_, step, upward, s_.chunk_rows);
      for (int64_t i = 0; i < chunk.steps; ++i) {
        run_step(d, step, after < step.rows ? after : step.rows, chunk);
        after = step.rows;
        step = next_step(p_, step, upward);
      }
      add_weights(d, chunk, add);
      add = true;
      if (g_.dx) add_input(d, chunk);
    }
  }

  // dh and dc of the first `after` rows come from the step after.
  void run_step(int32_t d, const Step& step, int64_t after, const Chunk& chunk) {
    const Step previous = next_step(p_, step, d != 0);
    const int64_t before = previous.rows < step.rows ? previous.rows : step.rows;
    CellBackward<S> cell = {};
    cell.rows = step.rows;
    cell.hidden = p_.H;
    cell.before = before;
    cell.after = after;
    cell.gates = saved<S>(layout_.gates[d]) + step.row * 4 * p_.H;
    cell.c = saved<E>(layout_.cells[d]) + step.row * p_.H;
    if (before > 0) cell.c_before = saved<E>(layout_.cells[d]) + previous.row * p_.H;
    cell.c0 = state(p_.c0, d, p_.H);
    cell.dc_n = state(g_.dc_n, d, p_.H);
    cell.dc = static_cast<E*>(s_.dc);
    cell.dz = static_cast<S*>(s_.dz) + (step.row - chunk.row) * 4 * p_.H;
    cell.dc0 = state(g_.dc0, d, p_.H);
    if (p_.weights[d].w_hr) {
      cell.dh = project(d, step, after, chunk);
      cell.dh_rows = step.rows;
    } else {
      cell.dy = dy_at(d, step);
      cell.dy_row = g_.dy_b;
      cell.dh = static_cast<const E*>(s_.dh);
      cell.dh_rows = after;
      cell.dh_n = state(g_.dh_n, d, p_.H);
    }
    queue_.run(cell_backward_kernel<S>, cover(cell.rows, cell.hidden), cell);

    const int64_t rows = g_.dh0 ? step.rows : before;  // whose dh somebody reads
    if (rows > 0) {
      queue_.multiply(rows, p_.P, 4 * p_.H, Operand{cell.dz, 4 * p_.H},
                      Operand{p_.weights[d].w_hh, p_.P}, s_.dh, false);
    }
    if (rows > before) {
      const int64_t first = before * p_.P;
      round(static_cast<E*>(s_.dh) + first, state(g_.dh0, d, p_.P) + first, (rows - before) * p_.P);
    }
  }

  // With a projection: what arrives at h, and the gradient dm [rows, H] = dh W_hr of o * tanh(c).
  const E* project(int32_t d, const Step& step, int64_t after, const Chunk& chunk) {
    GatherDh<S> gather = {};
    gather.rows = step.rows;
    gather.features = p_.P;
    gather.after = after;
    gather.dy = dy_at(d, step);
    gather.dy_row = g_.dy_b;
    gather.dh = static_cast<const E*>(s_.dh);
    gather.dh_n = state(g_.dh_n, d, p_.P);
    gather.to = static_cast<S*>(s_.dh_stored) + (step.row - chunk.row) * p_.P;
    queue_.run(gather_dh_kernel<S>, cover(gather.rows, gather.features), gather);
    queue_.multiply(step.rows, p_.H, p_.P, Operand{gather.to, p_.P},
                    Operand{p_.weights[d].w_hr, p_.H}, s_.dm, false);
    return static_cast<const E*>(s_.dm);
  }

  // The chunk's share of the weight gradients; the first chunk begins the sums.
  void add_weights(int32_t d, const Chunk& chunk, bool add) {
    const auto& w = g_.weights[d];
    const Operand dz = {s_.dz, 4 * p_.H, true};
    if (w.dw_ih) {
      const Operand x = rows_of_x<S>(queue_, p_, chunk, d != 0, s_.x);
      queue_.multiply(4 * p_.H, p_.I, chunk.rows, dz, x, sum(s_.dw_ih, w.dw_ih), add);
    }
    if (w.dw_hh) {
      gather_h_before(d, chunk);
      queue_.multiply(4 * p_.H, p_.P, chunk.rows, dz, Operand{s_.h_before, p_.P},
                      sum(s_.dw_hh, w.dw_hh), add);
    }
    if (w.dw_hr) {
      const S* const m = saved<S>(layout_.projected[d]) + chunk.row * p_.H;
      queue_.multiply(p_.P, p_.H, chunk.rows, Operand{s_.dh_stored, p_.P, true}, Operand{m, p_.H},
                      sum(s_.dw_hr, w.dw_hr), add);
    }
    if (w.db) {
      SumSlices<S> slices = {};
      slices.rows = chunk.rows;
      slices.columns = 4 * p_.H;
      slices.slices = s_.slices;
      slices.from = static_cast<const S*>(s_.dz);
      slices.sums = static_cast<E*>(s_.db);
      slices.add = add;
      queue_.run(sum_slices_kernel<S>, cover(slices.slices, slices.columns), slices);
    }
  }

  // h of the step before each row's: y of that step, or h0 where the row begins.
  void gather_h_before(int32_t d, const Chunk& chunk) {
    const bool upward = d != 0;
    const S* const y = static_cast<const S*>(g_.y) + d * p_.P;
    const S* const h0 = state(p_.h0, d, p_.P);
    Copier<S> from_y(queue_, p_.P), from_h0(queue_, p_.P);
    Step step = chunk.first;
    for (int64_t i = 0; i < chunk.steps; ++i) {
      const Step previous = next_step(p_, step, upward);
      const int64_t before = previous.rows < step.rows ? previous.rows : step.rows;
      S* const to = static_cast<S*>(s_.h_before) + (step.row - chunk.row) * p_.P;
      from_y.add(y + (before > 0 ? y_.offset(p_, previous) : 0), y_.stride_b, to, before);
      from_h0.add(h0 ? h0 + before * p_.P : nullptr, p_.P, to + before * p_.P, step.rows - before);
      step = previous;
    }
  }

  // dx [chunk.rows, I] = dz W_ih, the second direction added to the first.
  void add_input(int32_t d, const Chunk& chunk) {
    const int64_t first = chunk.row * p_.I;
    E* to = static_cast<E*>(sum(s_.dx, g_.dx));
    if (!kRounds || p_.D == 2) to += first;
    queue_.multiply(chunk.rows, p_.I, 4 * p_.H, Operand{s_.dz, 4 * p_.H},
                    Operand{p_.weights[d].w_ih, p_.I}, to, d > 0);
    if (kRounds && p_.D == 1) round(to, static_cast<S*>(g_.dx) + first, chunk.rows * p_.I);
  }

  void finish_direction(int32_t d) {
    const auto& w = g_.weights[d];
    if (w.db) round(s_.db, w.db, 4 * p_.H, s_.slices);
    if (!kRounds) return;
    if (w.dw_ih) round(s_.dw_ih, w.dw_ih, 4 * p_.H * p_.I);
    if (w.dw_hh) round(s_.dw_hh, w.dw_hh, 4 * p_.H * p_.P);
    if (w.dw_hr) round(s_.dw_hr, w.dw_hr, p_.P * p_.H);
  }

  // Where a gradient is summed: in scratch, or where it belongs.
  static void* sum(void* scratch, void* gradient) { return kRounds ? scratch : gradient; }
  void round(const void* from, void* to, int64_t count, int64_t slices = 1) {
    const Round<S> all = {slices, count, static_cast<const E*>(from), static_cast<S*>(to)};
    queue_.run(round_kernel<S>, cover(1, count), all);
  }

  template <class X>
  const X* saved(int64_t offset) const {
    return reinterpret_cast<const X*>(static_cast<const char*>(g_.reserve) + offset);
  }
  const S* dy_at(int32_t d, const Step& step) const {
    const Rows rows = {g_.dy_t, g_.dy_b};
    return g_.dy ? static_cast<const S*>(g_.dy) + rows.offset(p_, step) + d * p_.P : nullptr;
  }
  // Direction d of [D, B, features], null when that is not given.
  const S* state(const void* all, int32_t d, int64_t features) const {
    return all ? static_cast<const S*>(all) + d * p_.B * features : nullptr;
  }
  S* state(void* all, int32_t d, int64_t features) const {
    return all ? static_cast<S*>(all) + d * p_.B * features : nullptr;
  }

  const Problem& p_;
  const Gradients& g_;
  const Rows y_ = {g_.y_t, g_.y_b};
  const ReserveLayout layout_ = reserve_layout(p_);
  const BackwardScratch s_;
  Queue queue_;
};

}  // namespace

Status backward(const Problem& p, const Gradients& g, void* workspace, const Launch& launch) {
  switch (p.dtype) {
    case DType::kFloat32:
      return Backward<float>(p, g, workspace, launch).run();
    case DType::kFloat64:
      return Backward<double>(p, g, workspace, launch).run();
    case DType::kBFloat16:
      return Backward<device::bf16>(p, g, workspace, launch).run();
    case DType::kFloat16:
      return Backward<device::half>(p, g, workspace, launch).run();
  }
  return Status::kUnsupported;
}

}  // namespace stepwise
}  // namespace cuda
}  // namespace fused_lstm
