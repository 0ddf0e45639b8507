// Backward of the variants' recurrence; recurrence_steps.h says how.
#include "pointwise.cuh"
#include "recurrence_cells.cuh"

namespace fused_lstm {
namespace cuda {
namespace recurrence {
namespace {

template <class E>
class Backward {
 public:
  Backward(const Recurrence& q, const RecurrenceGradients& g, void* workspace, const Launch& launch)
      : q_(q),
        g_(g),
        records_(q, const_cast<void*>(g.reserve)),
        s_(q, g, workspace),
        queue_(launch, q.dtype) {}

  Status run() {
    for (int64_t s = q_.T - 1; s >= 0; --s) {
      run_step(s);
      if (s > 0 || g_.dh0) hand_back(s);
    }
    add_rows(s_.peepholes, (q_.gates - 1) * q_.H, g_.dpeepholes);
    add_rows(s_.ln_hh, q_.gates * q_.H, g_.dln_hh);
    add_rows(s_.ln_c, q_.H, g_.dln_c);
    add_rows(s_.ln_c_bias, q_.H, g_.dln_c_bias);
    return queue_.status();
  }

 private:
  void run_step(int64_t s) {
    const int64_t t = time_of(q_, s), row = t * q_.B, columns = q_.gates * q_.H;
    const bool last = s == q_.T - 1;
    StepBackward<E> step = {};
    step.cells = cells_of<E>(q_);
    step.gates = records_.gates + row * columns;
    step.c = c_at(s);
    step.c_before = s > 0 ? c_at(s - 1) : static_cast<const E*>(q_.c0);
    if (g_.dy) step.dy = static_cast<const E*>(g_.dy) + t * g_.dy_t;
    step.dy_row = g_.dy_b;
    step.dh = last ? static_cast<const E*>(g_.dh_n) : s_.dh;
    step.dc_after = last ? static_cast<const E*>(g_.dc_n) : s_.dc;
    step.dc = s > 0 ? s_.dc : static_cast<E*>(g_.dc0);
    step.dzx = static_cast<E*>(g_.dzx) + row * columns;
    step.sums = {s_.peepholes, s_.ln_hh, s_.ln_c, s_.ln_c_bias, last};
    if (q_.ln_hh == nullptr) {
      queue_.run(step_backward_kernel<E>, cover(q_.B, q_.H), step);
      return;
    }
    step.normalised = records_.normalised + row * columns;
    step.moments = records_.moments + row * Records<E>::kMoments;
    step.dzh = static_cast<E*>(g_.dzh) + row * columns;
    queue_.run(step_backward_rows_kernel<E>, cover_rows(q_.B, q_.H, sizeof(E)), step);
  }

  // dh = dzh W_hh, for the step before or for the initial state.
  void hand_back(int64_t s) {
    const int64_t columns = q_.gates * q_.H;
    const E* const all = static_cast<const E*>(q_.ln_hh ? g_.dzh : g_.dzx);
    const Operand dzh = {all + time_of(q_, s) * q_.B * columns, columns};
    queue_.multiply(q_.B, q_.H, columns, dzh, Operand{q_.w_hh, q_.H}, s > 0 ? s_.dh : g_.dh0,
                    false);
  }

  // to [columns] = the sum of all rows of sums [B, columns].
  void add_rows(const E* sums, int64_t columns, void* to) {
    if (to == nullptr) return;
    const int64_t slices = slice_count(q_);
    const SumSlices<E> sum = {q_.B, columns, slices, sums, s_.slices, false};
    queue_.run(sum_slices_kernel<E>, cover(slices, columns), sum);
    const Round<E> all = {slices, columns, s_.slices, static_cast<E*>(to)};
    queue_.run(round_kernel<E>, cover(1, columns), all);
  }

  E* c_at(int64_t s) const { return records_.cells + time_of(q_, s) * q_.B * q_.H; }

  const Recurrence& q_;
  const RecurrenceGradients& g_;
  const Records<E> records_;
  const BackwardScratch<E> s_;
  Queue queue_;
};

}  // namespace

template <class E>
Status backward(const Recurrence& q, const RecurrenceGradients& gradients, void* workspace,
                const Launch& launch) {
  return Backward<E>(q, gradients, workspace, launch).run();
}
template Status backward<float>(const Recurrence&, const RecurrenceGradients&, void*,
                                const Launch&);
template Status backward<double>(const Recurrence&, const RecurrenceGradients&, void*,
                                 const Launch&);

}  // namespace recurrence
}  // namespace cuda
}  // namespace fused_lstm
