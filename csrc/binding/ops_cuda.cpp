// The CUDA operators, twins of those in ops_cpu.cpp: the same arguments, checks and results, with
// all memory from torch's caching allocator and everything queued on the current stream.
#include "call.h"
#include "launch_cuda.h"
#include "place_cuda.h"

namespace fused_lstm {
namespace {

constexpr uintptr_t kAlignment = 256;  // of the reserve

Tensor new_bytes(const Place& place, size_t bytes) {
  return place.empty({static_cast<int64_t>(bytes)}, torch_uint8());
}

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
  const bool saves = save_for_backward && p.B > 0;
  Tensor reserve = new_bytes(place, saves ? cuda::reserve_bytes(p) : 0);
  Outputs out;
  if (saves) out.reserve = write_data(reserve);
  ForwardResult results = call.new_outputs(std::move(reserve), &out);
  if (p.B > 0) {
    const LaunchContext context(place.device().index, p, saves, tf32);
    const cuda::Launch& launch = context.launch();
    const size_t bytes = cuda::forward_workspace_bytes(p, saves, launch);
    const Tensor workspace = new_bytes(place, bytes);
    context.check(cuda::forward(p, out, write_data(workspace), bytes, launch), "forward");
  }
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
    g.reserve = call.aligned_reserve(reserve, cuda::reserve_bytes(p), kAlignment);
    const LaunchContext context(place.device().index, p, true, tf32);
    const cuda::Launch& launch = context.launch();
    const size_t bytes = cuda::backward_workspace_bytes(p, g, launch);
    const Tensor workspace = new_bytes(place, bytes);
    context.check(cuda::backward(p, g, write_data(workspace), bytes, launch), "backward");
  }
  return results;
}

}  // namespace
}  // namespace fused_lstm

STABLE_TORCH_LIBRARY_IMPL(fused_lstm, CUDA, library) {
  library.impl("forward", TORCH_BOX(&fused_lstm::forward));
  library.impl("backward", TORCH_BOX(&fused_lstm::backward));
}
