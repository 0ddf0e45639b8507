// The CUDA operators with what nn.LSTM lacks, twins of those in ops_cpu_marked.cpp.
#include "../kernels/cuda/cuda.h"
#include "call.h"
#include "run_cuda.h"

namespace fused_lstm {
namespace {

MarkedResult marked_forward(const Tensor& x, const OptionalTensor& marks, const OptionalTensor& h0,
                            const OptionalTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                            const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                            const OptionalTensor& w_hr, const OptionalTensor& w_ih_reverse,
                            const OptionalTensor& w_hh_reverse, const OptionalTensor& b_ih_reverse,
                            const OptionalTensor& b_hh_reverse, const OptionalTensor& w_hr_reverse,
                            const OptionalTensor& keep, const OptionalTensor& h_factors,
                            double zoneout_h, double zoneout_c, bool recompute, bool wants_cells,
                            bool save_for_backward, bool tf32) {
  const CudaPlace place(x);
  Call call(place, x, std::nullopt, h0, c0, direction0(w_ih, w_hh, b_ih, b_hh, w_hr),
            direction1(w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse));
  call.set_options(marks, keep, h_factors, zoneout_h, zoneout_c, recompute, wants_cells);
  const Problem& p = call.problem();
  Outputs out;
  Tensor reserve = new_reserve(place, p, save_for_backward, &out);
  Tensor cells = call.new_cells(wants_cells, &out);
  auto [y, h_n, c_n, kept] = call.new_outputs(std::move(reserve), &out);
  run_forward(place, p, out, tf32, "marked_forward");
  return {std::move(y), std::move(h_n), std::move(c_n), std::move(cells), std::move(kept)};
}

BackwardResult marked_backward(
    const OptionalTensor& grad_y, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const OptionalTensor& grad_cells, const Tensor& x, const OptionalTensor& marks,
    const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
    const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
    const OptionalTensor& w_ih_reverse, const OptionalTensor& w_hh_reverse,
    const OptionalTensor& b_ih_reverse, const OptionalTensor& b_hh_reverse,
    const OptionalTensor& w_hr_reverse, const OptionalTensor& keep, const OptionalTensor& h_factors,
    double zoneout_h, double zoneout_c, bool recompute, const Tensor& y, const Tensor& reserve,
    int64_t needs, bool tf32) {
  const CudaPlace place(x);
  Call call(place, x, std::nullopt, h0, c0, direction0(w_ih, w_hh, b_ih, b_hh, w_hr),
            direction1(w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse));
  call.set_options(marks, keep, h_factors, zoneout_h, zoneout_c, recompute, grad_cells.has_value());
  const Problem& p = call.problem();
  Gradients g;
  call.read_gradients(y, grad_y, grad_h_n, grad_c_n, &g);
  call.read_cells_gradient(grad_cells, &g);
  BackwardResult results = call.new_gradients(needs, &g);
  if (p.B > 0) {
    g.reserve = call.aligned_reserve(reserve, cuda::reserve_bytes(p), kDeviceReserveAlignment);
  }
  run_backward(place, p, g, tf32, "marked_backward");
  return results;
}

}  // namespace
}  // namespace fused_lstm

STABLE_TORCH_LIBRARY_IMPL(fused_lstm, CUDA, library) {
  library.impl("marked_forward", TORCH_BOX(&fused_lstm::marked_forward));
  library.impl("marked_backward", TORCH_BOX(&fused_lstm::marked_backward));
}
