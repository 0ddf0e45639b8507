// The CUDA operators of the recurrence alone, twins of those in ops_cpu_recurrence.cpp. Products of
// float32 are strict, whatever torch's switches say: LayerNorm magnifies what TF32 rounds away.
#include "../kernels/cuda/cuda.h"
#include "launch_cuda.h"
#include "recurrence_call.h"
#include "run_cuda.h"

namespace fused_lstm {
namespace {

// One run of kernels in a workspace; nothing to do for an empty batch.
template <class Run>
void run(const CudaPlace& place, int64_t B, const char* op, size_t bytes, const Run& kernels) {
  if (B == 0) return;
  const LaunchContext context(place.device().index);
  const Tensor workspace = new_bytes(place, bytes);
  context.check(kernels(write_data(workspace), bytes, context.launch()), op);
}

RecurrenceResult recurrence_forward(const Tensor& zx, const OptionalTensor& h0,
                                    const OptionalTensor& c0, const Tensor& w_hh,
                                    const OptionalTensor& peepholes, const OptionalTensor& ln_hh,
                                    const OptionalTensor& ln_c, const OptionalTensor& ln_c_bias,
                                    bool reverse, double cell_clip, double hidden_clip,
                                    bool save_for_backward) {
  const CudaPlace place(zx);
  const RecurrenceCall call(place, zx, h0, c0, w_hh, peepholes, ln_hh, ln_c, ln_c_bias, reverse,
                            cell_clip, hidden_clip);
  const Recurrence& q = call.recurrence();
  const bool saves = save_for_backward && q.B > 0;
  RecurrenceOutputs out;
  Tensor reserve = new_bytes(place, saves ? cuda::recurrence_reserve_bytes(q) : 0);
  if (saves) out.reserve = write_data(reserve);
  RecurrenceResult results = call.new_outputs(std::move(reserve), &out);
  run(place, q.B, "recurrence_forward", cuda::recurrence_forward_workspace_bytes(q),
      [&](void* workspace, size_t bytes, const cuda::Launch& launch) {
        return cuda::recurrence_forward(q, out, workspace, bytes, launch);
      });
  return results;
}

RecurrenceGradientsResult recurrence_backward(
    const OptionalTensor& grad_y, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const Tensor& zx, const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& w_hh,
    const OptionalTensor& peepholes, const OptionalTensor& ln_hh, const OptionalTensor& ln_c,
    const OptionalTensor& ln_c_bias, bool reverse, double cell_clip, double hidden_clip,
    const Tensor& reserve) {
  const CudaPlace place(zx);
  RecurrenceCall call(place, zx, h0, c0, w_hh, peepholes, ln_hh, ln_c, ln_c_bias, reverse,
                      cell_clip, hidden_clip);
  const Recurrence& q = call.recurrence();
  RecurrenceGradients g;
  call.read_gradients(grad_y, grad_h_n, grad_c_n, &g);
  RecurrenceGradientsResult results = call.new_gradients(&g);
  if (q.B > 0) {
    g.reserve =
        call.aligned_reserve(reserve, cuda::recurrence_reserve_bytes(q), kDeviceReserveAlignment);
  }
  run(place, q.B, "recurrence_backward", cuda::recurrence_backward_workspace_bytes(q, g),
      [&](void* workspace, size_t bytes, const cuda::Launch& launch) {
        return cuda::recurrence_backward(q, g, workspace, bytes, launch);
      });
  return results;
}

}  // namespace
}  // namespace fused_lstm

STABLE_TORCH_LIBRARY_IMPL(fused_lstm, CUDA, library) {
  library.impl("recurrence_forward", TORCH_BOX(&fused_lstm::recurrence_forward));
  library.impl("recurrence_backward", TORCH_BOX(&fused_lstm::recurrence_backward));
}
