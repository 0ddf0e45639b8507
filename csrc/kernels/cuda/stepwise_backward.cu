// Backward of the stepwise family; stepwise.h says how. Steps are visited against the order in
// which forward visited them: `before` and `after` keep forward's sense.
#include "copier.cuh"
#include "stepwise.h"
#include "stepwise_options.cuh"

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
      const Operand x = p_.recompute ? compute_gates(d, chunk) : Operand{};
      for (int64_t i = 0; i < chunk.steps; ++i) {
        run_step(d, step, after < step.rows ? after : step.rows, chunk);
        after = step.rows;
        step = next_step(p_, step, upward);
      }
      add_weights(d, chunk, x, add);
      add = true;
      if (g_.dx) add_input(d, chunk);
    }
    if (has_options(p_) && g_.dh0) finish_dh0(d);
  }

  // The chunk's gates, where dz will be: a thread reads those of its unit before it writes there.
  // Returns x as it has been gathered for them.
  Operand compute_gates(int32_t d, const Chunk& chunk) {
    const Weights& w = p_.weights[d];
    const Operand x = gather_x(d, chunk);
    gather_h_before(d, chunk);
    queue_.multiply(chunk.rows, 4 * p_.H, p_.I, x, Operand{w.w_ih, p_.I, true}, s_.z, false);
    queue_.multiply(chunk.rows, 4 * p_.H, p_.P, Operand{s_.h_before, p_.P},
                    Operand{w.w_hh, p_.P, true}, s_.z, true);
    Activate<S> call = {};
    call.rows = chunk.rows;
    call.hidden = p_.H;
    call.z = static_cast<const E*>(s_.z);
    call.b_ih = static_cast<const S*>(w.b_ih);
    call.b_hh = static_cast<const S*>(w.b_hh);
    call.gates = static_cast<S*>(s_.dz);
    queue_.run(activate_kernel<S>, cover(call.rows, call.hidden), call);
    return x;
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
    cell.c = saved<E>(layout_.cells[d]) + step.row * p_.H;
    if (before > 0) cell.c_before = saved<E>(layout_.cells[d]) + previous.row * p_.H;
    cell.c0 = state(p_.c0, d, p_.H);
    cell.dc_n = state(g_.dc_n, d, p_.H);
    cell.dc = static_cast<E*>(s_.dc);
    cell.dz = static_cast<S*>(s_.dz) + (step.row - chunk.row) * 4 * p_.H;
    cell.gates = p_.recompute ? cell.dz : saved<S>(layout_.gates[d]) + step.row * 4 * p_.H;
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
    if (has_options(p_)) {
      run_options(d, step, cell);
    } else {
      queue_.run(cell_backward_kernel<S>, cover(cell.rows, cell.hidden), cell);
    }

    const int64_t rows = g_.dh0 ? step.rows : before;  // whose dh somebody reads
    if (rows > 0) {
      queue_.multiply(rows, p_.P, 4 * p_.H, Operand{cell.dz, 4 * p_.H},
                      Operand{p_.weights[d].w_hh, p_.P}, s_.dh, false);
    }
    if (rows > before && !has_options(p_)) {
      const int64_t first = before * p_.P;
      round(static_cast<E*>(s_.dh) + first, state(g_.dh0, d, p_.P) + first, (rows - before) * p_.P);
    }
  }

  HandBack<S> hand_back(int32_t d) const {
    HandBack<S> call = {};
    call.marks = marks_of(p_, d);
    call.hidden = p_.H;
    call.dh = static_cast<const E*>(s_.dh);
    call.dh_kept = static_cast<E*>(s_.dh_kept);
    call.factors = state(p_.h_factors, d, p_.H);
    call.dh0 = state(g_.dh0, d, p_.H);
    return call;
  }

  void run_options(int32_t d, const Step& step, const CellBackward<S>& cell) {
    OptionsBackward<S> options = {};
    options.cell = cell;
    options.t = static_cast<int32_t>(step.t);
    options.hand_back = hand_back(d);
    options.zones = zones_of<E>(p_, d);
    if (g_.dcells) {
      const Rows rows = {g_.dcells_t, g_.dcells_b};
      options.dcells = static_cast<const S*>(g_.dcells) + rows.offset(p_, step) + d * p_.H;
      options.dcells_row = g_.dcells_b;
    }
    queue_.run(options_backward_kernel<S>, cover(cell.rows, cell.hidden), options);
  }

  void finish_dh0(int32_t d) {
    const Step first = first_step(p_, d == 0);
    const FinishDh0<S> call = {first.rows, static_cast<int32_t>(first.t), hand_back(d)};
    queue_.run(finish_dh0_kernel<S>, cover(first.rows, p_.H), call);
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

  // The chunk's share of the weight gradients; the first chunk begins the sums. gathered: what
  // compute_gates left.
  void add_weights(int32_t d, const Chunk& chunk, const Operand& gathered, bool add) {
    const auto& w = g_.weights[d];
    const Operand dz = {s_.dz, 4 * p_.H, true};
    if (w.dw_ih) {
      const Operand x = p_.recompute ? gathered : gather_x(d, chunk);
      queue_.multiply(4 * p_.H, p_.I, chunk.rows, dz, x, sum(s_.dw_ih, w.dw_ih), add);
    }
    if (w.dw_hh) {
      if (!p_.recompute) gather_h_before(d, chunk);
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

  Operand gather_x(int32_t d, const Chunk& chunk) {
    if (!p_.marks) return rows_of_x<S>(queue_, p_, chunk, d != 0, s_.x);
    GatherX<S> gather = {};
    gather.marks = marks_of(p_, d);
    gather.first = chunk.row;
    gather.rows = chunk.rows;
    gather.features = p_.I;
    gather.x = static_cast<const S*>(p_.x);
    gather.x_t = p_.x_t;
    gather.x_b = p_.x_b;
    gather.to = static_cast<S*>(s_.x);
    queue_.run(gather_x_kernel<S>, cover(gather.rows, gather.features), gather);
    return {s_.x, p_.I};
  }

  // The h that each row's gates read: y of the step before it, or h0 where the row begins.
  void gather_h_before(int32_t d, const Chunk& chunk) {
    const bool upward = d != 0;
    const S* const y = static_cast<const S*>(g_.y) + d * p_.P;
    if (changes_h(p_)) {
      const GatherH<S> gather = {
          read_h_of<S>(p_, d),         chunk.row, chunk.rows, y, g_.y_t, g_.y_b,
          static_cast<S*>(s_.h_before)};
      return queue_.run(gather_h_kernel<S>, cover(gather.rows, p_.H), gather);
    }
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
