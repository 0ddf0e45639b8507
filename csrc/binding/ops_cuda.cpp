// The CUDA operators, twins of those in ops_cpu.cpp: the same arguments, checks and results, with
// all memory from torch's caching allocator and everything queued on the current stream.
#include "../kernels/cuda/cuda.h"
#include "call.h"
#include "run_cuda.h"

namespace fused_lstm {
namespace {

ForwardResult forward(const Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                      const OptionalTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                      const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                      const OptionalTensor& w_hr, const OptionalTensor& w_ih_reverse,
                      const OptionalTensor& w_hh_reverse, const OptionalTensor& b_ih_reverse,
                      const OptionalTensor& b_hh_reverse, const OptionalTensor& w_hr_reverse,
                      bool save_for_backward, bool tf32) {
  const CudaPlace place(x);
  const Call call(place, x, batch_sizes, h0, c0, direction0(w_ih, w_hh, b_ih, b_hh, w_hr),
                  direction1(w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse));
  const Problem& p = call.problem();
  Outputs out;
  Tensor reserve = new_reserve(place, p, save_for_backward, &out);
  ForwardResult results = call.new_outputs(std::move(reserve), &out);
  run_forward(place, p, out, tf32, "forward");
  return results;
}

BackwardResult backward(const OptionalTensor& grad_y, const OptionalTensor& grad_h_n,
                        const OptionalTensor& grad_c_n, const Tensor& x,
                        const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                        const OptionalTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                        const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                        const OptionalTensor& w_hr, const OptionalTensor& w_ih_reverse,
                        const OptionalTensor& w_hh_reverse, const OptionalTensor& b_ih_reverse,
                        const OptionalTensor& b_hh_reverse, const OptionalTensor& w_hr_reverse,
                        const Tensor& y, const Tensor& reserve, int64_t needs, bool tf32) {
  const CudaPlace place(x);
  Call call(place, x, batch_sizes, h0, c0, direction0(w_ih, w_hh, b_ih, b_hh, w_hr),
            direction1(w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse));
  const Problem& p = call.problem();
  Gradients g;
  call.read_gradients(y, grad_y, grad_h_n, grad_c_n, &g);
  BackwardResult results = call.new_gradients(needs, &g);
  if (p.B > 0) {
    g.reserve = call.aligned_reserve(reserve, cuda::reserve_bytes(p), kDeviceReserveAlignment);
  }
  run_backward(place, p, g, tf32, "backward");
  return results;
}

}  // namespace
}  // namespace fused_lstm

STABLE_TORCH_LIBRARY_IMPL(fused_lstm, CUDA, library) {
  library.impl("forward", TORCH_BOX(&fused_lstm::forward));
  library.impl("backward", TORCH_BOX(&fused_lstm::backward));
}
