// Forward of the stepwise family; stepwise.h says how.
#include "copier.cuh"
#include "stepwise.h"
#include "stepwise_options.cuh"

namespace fused_lstm {
namespace cuda {
namespace stepwise {
namespace {

template <class S>
class Forward {
  using E = Compute<S>;

 public:
  Forward(const Problem& p, const Outputs& out, void* workspace, const Launch& launch)
      : p_(p),
        out_(out),
        s_(forward_scratch(p, out.reserve != nullptr, workspace)),
        queue_(launch, p.dtype) {}

  Status run() {
    for (int32_t d = 0; d < p_.D; ++d) run_direction(d);
    return queue_.status();
  }

 private:
  void run_direction(int32_t d) {
    const bool upward = d == 0;
    const Weights& w = p_.weights[d];
    int64_t before = 0;  // rows of the step before
    Step step = first_step(p_, upward), previous = step;
    if (s_.next_h) gather_first_h(d, step);
    while (exists(p_, step)) {
      const Chunk chunk = chunk_from(p_, step, upward, s_.chunk_rows);
      const Operand x = rows_of_x<S>(queue_, p_, chunk, upward, s_.x);
      queue_.multiply(chunk.rows, 4 * p_.H, p_.I, x, Operand{w.w_ih, p_.I, true}, s_.z, false);
      for (int64_t i = 0; i < chunk.steps; ++i) {
        E* const z = static_cast<E*>(s_.z) + (step.row - chunk.row) * 4 * p_.H;
        run_step(d, step, previous, before < step.rows ? before : step.rows, z);
        before = step.rows;
        previous = step;
        step = next_step(p_, step, upward);
      }
    }
  }

  // z [rows, 4H] holds x W_ih^T. The first `before` rows go on from step `previous`.
  void run_step(int32_t d, const Step& step, const Step& previous, int64_t before, E* z) {
    const Weights& w = p_.weights[d];
    add_state(d, step, previous, before, z);
    const int64_t after = next_step(p_, step, d == 0).rows;
    CellForward<S> cell = {};
    cell.rows = step.rows;
    cell.hidden = p_.H;
    cell.before = before;
    cell.after = after;
    cell.z = z;
    cell.b_ih = static_cast<const S*>(w.b_ih);
    cell.b_hh = static_cast<const S*>(w.b_hh);
    cell.c0 = p_.c0 ? state(p_.c0, d, p_.H) : nullptr;
    cell.c = cells_at(d, step);
    cell.c_before = cells_at(d, previous);
    cell.gates =
        out_.reserve && !p_.recompute ? saved(layout_.gates[d]) + step.row * 4 * p_.H : nullptr;
    cell.c_n = state(out_.c_n, d, p_.H);
    if (w.w_hr) {
      cell.h = out_.reserve ? saved(layout_.projected[d]) + step.row * p_.H
                            : static_cast<S*>(s_.before_hr);
      cell.h_row = p_.H;
    } else {
      cell.h = y_at(d, step);
      cell.h_row = out_.y_b;
      cell.h_n = state(out_.h_n, d, p_.H);
    }
    if (has_options(p_)) return run_options(d, step, previous, cell);
    queue_.run(cell_forward_kernel<S>, cover(cell.rows, cell.hidden), cell);
    if (w.w_hr) project(d, step, after, cell.h);
  }

  // z += h W_hh^T
  void add_state(int32_t d, const Step& step, const Step& previous, int64_t before, E* z) {
    const Operand w_hh = {p_.weights[d].w_hh, p_.P, true};
    if (s_.next_h) {
      if (before == 0 && !p_.h0) return;
      return queue_.multiply(step.rows, 4 * p_.H, p_.P, Operand{s_.next_h, p_.P}, w_hh, z, true);
    }
    if (before > 0) {
      const Operand h = {y_at(d, previous), y_.within(previous, p_.P)};
      queue_.multiply(before, 4 * p_.H, p_.P, h, w_hh, z, true);
    }
    if (before < step.rows && p_.h0) {
      const Operand h = {state(p_.h0, d, p_.P) + before * p_.P, p_.P};
      queue_.multiply(step.rows - before, 4 * p_.H, p_.P, h, w_hh, z + before * 4 * p_.H, true);
    }
  }

  // Later steps find it where the kernel of the one before has left it.
  void gather_first_h(int32_t d, const Step& step) {
    if (!p_.h0) return;
    GatherH<S> gather = {};
    gather.read_h = read_h_of<S>(p_, d);
    gather.first = step.row;
    gather.rows = step.rows;
    gather.to = static_cast<S*>(s_.next_h);
    queue_.run(gather_h_kernel<S>, cover(step.rows, p_.H), gather);
  }

  void run_options(int32_t d, const Step& step, const Step& previous, const CellForward<S>& cell) {
    OptionsForward<S> options = {};
    options.cell = cell;
    options.t = static_cast<int32_t>(step.t);
    options.read_h = read_h_of<S>(p_, d);
    options.zones = zones_of<E>(p_, d);
    options.y_before = y_at(d, previous);
    options.next_h = static_cast<S*>(s_.next_h);
    if (out_.cells) {
      options.cells_row = p_.D * p_.H;
      options.cells = static_cast<S*>(out_.cells) + step.row * options.cells_row + d * p_.H;
    }
    queue_.run(options_forward_kernel<S>, cover(cell.rows, cell.hidden), options);
  }

  // h [rows, P] = m [rows, H] W_hr^T, m = o * tanh(c)
  void project(int32_t d, const Step& step, int64_t after, const S* m) {
    queue_.multiply(step.rows, p_.P, p_.H, Operand{m, p_.H},
                    Operand{p_.weights[d].w_hr, p_.H, true}, s_.h, false);
    StoreH<S> store = {};
    store.rows = step.rows;
    store.features = p_.P;
    store.after = after;
    store.from = static_cast<const E*>(s_.h);
    store.y = y_at(d, step);
    store.y_row = out_.y_b;
    store.h_n = state(out_.h_n, d, p_.P);
    queue_.run(store_h_kernel<S>, cover(store.rows, store.features), store);
  }

  S* y_at(int32_t d, const Step& step) const {
    return static_cast<S*>(out_.y) + y_.offset(p_, step) + d * p_.P;
  }
  E* cells_at(int32_t d, const Step& step) const {
    if (!out_.reserve) return static_cast<E*>(s_.c);
    char* const cells = static_cast<char*>(out_.reserve) + layout_.cells[d];
    return reinterpret_cast<E*>(cells) + step.row * p_.H;
  }
  S* saved(int64_t offset) const {
    return reinterpret_cast<S*>(static_cast<char*>(out_.reserve) + offset);
  }
  // Direction d of [D, B, features].
  const S* state(const void* all, int32_t d, int64_t features) const {
    return static_cast<const S*>(all) + d * p_.B * features;
  }
  S* state(void* all, int32_t d, int64_t features) const {
    return static_cast<S*>(all) + d * p_.B * features;
  }

  const Problem& p_;
  const Outputs& out_;
  const Rows y_ = {out_.y_t, out_.y_b};
  const ReserveLayout layout_ = reserve_layout(p_);
  const ForwardScratch s_;
  Queue queue_;
};

}  // namespace

Status forward(const Problem& p, const Outputs& out, void* workspace, const Launch& launch) {
  switch (p.dtype) {
    case DType::kFloat32:
      return Forward<float>(p, out, workspace, launch).run();
    case DType::kFloat64:
      return Forward<double>(p, out, workspace, launch).run();
    case DType::kBFloat16:
      return Forward<device::bf16>(p, out, workspace, launch).run();
    case DType::kFloat16:
      return Forward<device::half>(p, out, workspace, launch).run();
  }
  return Status::kUnsupported;
}

}  // namespace stepwise
}  // namespace cuda
}  // namespace fused_lstm
