// Forward of the variants' recurrence; recurrence_steps.h says how.
#include "copier.cuh"
#include "recurrence_cells.cuh"

namespace fused_lstm {
namespace cuda {
namespace recurrence {
namespace {

template <class E>
class Forward {
 public:
  Forward(const Recurrence& q, const RecurrenceOutputs& out, void* workspace, const Launch& launch)
      : q_(q), out_(out), records_(q, out.reserve), s_(q, workspace), queue_(launch, q.dtype) {}

  Status run() {
    for (int64_t s = 0; s < q_.T; ++s) {
      add_state(s);
      run_step(s);
    }
    return queue_.status();
  }

 private:
  // z = h W_hh^T
  void add_state(int64_t s) {
    const int64_t columns = q_.gates * q_.H;
    const void* const h = s > 0 ? y_at(s - 1) : q_.h0;
    if (h == nullptr) {
      Copier<E>(queue_, columns).add(nullptr, columns, s_.z, q_.B);
      return;
    }
    queue_.multiply(q_.B, columns, q_.H, Operand{h, q_.H}, Operand{q_.w_hh, q_.H, true}, s_.z,
                    false);
  }

  void run_step(int64_t s) {
    const int64_t t = time_of(q_, s), row = t * q_.B;
    const bool last = s == q_.T - 1;
    StepForward<E> step = {};
    step.cells = cells_of<E>(q_);
    step.z = s_.z;
    step.zx = static_cast<const E*>(q_.zx) + t * q_.zx_t;
    step.zx_row = q_.zx_b;
    step.c_before = s > 0 ? c_at(s - 1) : static_cast<const E*>(q_.c0);
    step.c = c_at(s);
    step.y = y_at(s);
    if (last) step.h_n = static_cast<E*>(out_.h_n);
    if (last && out_.reserve) step.c_n = static_cast<E*>(out_.c_n);
    if (out_.reserve) step.gates = records_.gates + row * q_.gates * q_.H;
    if (q_.ln_hh == nullptr) {
      queue_.run(step_forward_kernel<E>, cover(q_.B, q_.H), step);
      return;
    }
    if (out_.reserve) {
      step.normalised = records_.normalised + row * q_.gates * q_.H;
      step.moments = records_.moments + row * Records<E>::kMoments;
    }
    queue_.run(step_forward_rows_kernel<E>, cover_rows(q_.B, q_.H, sizeof(E)), step);
  }

  E* y_at(int64_t s) const { return static_cast<E*>(out_.y) + time_of(q_, s) * q_.B * q_.H; }
  // In inference the running c lies where the last one belongs.
  E* c_at(int64_t s) const {
    if (!out_.reserve) return static_cast<E*>(out_.c_n);
    return records_.cells + time_of(q_, s) * q_.B * q_.H;
  }

  const Recurrence& q_;
  const RecurrenceOutputs& out_;
  const Records<E> records_;
  const ForwardScratch<E> s_;
  Queue queue_;
};

}  // namespace

template <class E>
Status forward(const Recurrence& q, const RecurrenceOutputs& outputs, void* workspace,
               const Launch& launch) {
  return Forward<E>(q, outputs, workspace, launch).run();
}
template Status forward<float>(const Recurrence&, const RecurrenceOutputs&, void*, const Launch&);
template Status forward<double>(const Recurrence&, const RecurrenceOutputs&, void*, const Launch&);

}  // namespace recurrence
}  // namespace cuda
}  // namespace fused_lstm
