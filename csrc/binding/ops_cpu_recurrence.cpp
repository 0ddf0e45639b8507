// The CPU operators of the recurrence alone; ops_recurrence_cuda.cpp is their twin.
#include "recurrence_call.h"
#include "run_cpu.h"

namespace fused_lstm {
namespace {

RecurrenceResult recurrence_forward(const Tensor& zx, const OptionalTensor& h0,
                                    const OptionalTensor& c0, const Tensor& w_hh,
                                    const OptionalTensor& peepholes, const OptionalTensor& ln_hh,
                                    const OptionalTensor& ln_c, const OptionalTensor& ln_c_bias,
                                    bool reverse, double cell_clip, double hidden_clip,
                                    bool save_for_backward) {
  const CpuPlace place;
  const RecurrenceCall call(place, zx, h0, c0, w_hh, peepholes, ln_hh, ln_c, ln_c_bias, reverse,
                            cell_clip, hidden_clip);
  const Recurrence& q = call.recurrence();
  const bool saves = save_for_backward && q.B > 0;
  RecurrenceOutputs out;
  Tensor reserve = saves ? place.empty_scratch(cpu::recurrence_reserve_bytes(q))
                         : place.empty({0}, torch_uint8());
  if (saves) out.reserve = write_data(reserve);
  RecurrenceResult results = call.new_outputs(std::move(reserve), &out);
  run_in_workspace(
      q.B, "recurrence_forward",
      [&](int32_t threads) { return cpu::recurrence_forward_workspace_bytes(q, saves, threads); },
      [&](void* workspace, size_t bytes, const Parallel& parallel) {
        return cpu::recurrence_forward(q, out, workspace, bytes, parallel);
      });
  return results;
}

RecurrenceGradientsResult recurrence_backward(
    const OptionalTensor& grad_y, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const Tensor& zx, const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& w_hh,
    const OptionalTensor& peepholes, const OptionalTensor& ln_hh, const OptionalTensor& ln_c,
    const OptionalTensor& ln_c_bias, bool reverse, double cell_clip, double hidden_clip,
    const Tensor& reserve) {
  const CpuPlace place;
  RecurrenceCall call(place, zx, h0, c0, w_hh, peepholes, ln_hh, ln_c, ln_c_bias, reverse,
                      cell_clip, hidden_clip);
  const Recurrence& q = call.recurrence();
  RecurrenceGradients g;
  call.read_gradients(grad_y, grad_h_n, grad_c_n, &g);
  RecurrenceGradientsResult results = call.new_gradients(&g);
  if (q.B > 0) {
    g.reserve = call.aligned_reserve(reserve, cpu::recurrence_reserve_bytes(q), kReserveAlignment);
  }
  run_in_workspace(
      q.B, "recurrence_backward",
      [&](int32_t threads) { return cpu::recurrence_backward_workspace_bytes(q, threads); },
      [&](void* workspace, size_t bytes, const Parallel& parallel) {
        return cpu::recurrence_backward(q, g, workspace, bytes, parallel);
      });
  return results;
}

}  // namespace
}  // namespace fused_lstm

STABLE_TORCH_LIBRARY_IMPL(fused_lstm, CPU, library) {
  library.impl("recurrence_forward", TORCH_BOX(&fused_lstm::recurrence_forward));
  library.impl("recurrence_backward", TORCH_BOX(&fused_lstm::recurrence_backward));
}
