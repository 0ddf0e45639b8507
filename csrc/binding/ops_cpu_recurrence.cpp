// The CPU operators of the recurrence alone (csrc/kernels/recurrence.h), from their arguments to
// their results: what could make a kernel leave its memory is refused here. Arguments and results
// are those of schema.cpp, in its order and with its shapes.
#include <string>
#include <tuple>

#include "../kernels/recurrence.h"
#include "arguments.h"
#include "run_cpu.h"

namespace fused_lstm {
namespace {

// y, h_n, c_n and the reserve.
using RecurrenceResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
// dzx, dzh, dh0, dc0, dpeepholes, dln_hh, dln_c, dln_c_bias.
using RecurrenceGradientsResult =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The checked arguments that both operators share, as the Recurrence they make.
class RecurrenceCall : public Arguments {
 public:
  RecurrenceCall(const CpuPlace& place, const Tensor& zx, const OptionalTensor& h0,
                 const OptionalTensor& c0, const Tensor& w_hh, const OptionalTensor& peepholes,
                 const OptionalTensor& ln_hh, const OptionalTensor& ln_c,
                 const OptionalTensor& ln_c_bias, bool reverse, double cell_clip,
                 double hidden_clip)
      : Arguments(place) {
    const View v = look("zx", zx);
    const std::optional<DType> dtype = kernel_dtype(v.dtype);
    if (dtype != DType::kFloat32 && dtype != DType::kFloat64) {
      reject("zx", "dtype float32 or float64", dtype_name(v.dtype));
    }
    dtype_ = v.dtype;
    q_.dtype = *dtype;
    const View w = look("w_hh", w_hh);
    const int64_t H = w.dim == 2 ? w.sizes[1] : 0;
    if (H < 1 || (w.sizes[0] != 4 * H && w.sizes[0] != 3 * H)) {
      reject("w_hh", "sizes [4H, H], or [3H, H] with coupled gates", describe_sizes(w));
    }
    q_.H = H;
    q_.gates = static_cast<int32_t>(w.sizes[0] / H);
    const int64_t G = q_.gates;
    if (v.dim != 3 || v.sizes[0] < 1 || v.sizes[2] != G * H) {
      reject("zx", "[T, B, G*H] with T > 0 and G*H = " + std::to_string(G * H), describe_sizes(v));
    }
    q_.T = v.sizes[0];
    q_.B = v.sizes[1];
    const double elements =
        static_cast<double>(q_.T) * static_cast<double>(q_.B) * static_cast<double>(G * H + H);
    if (!(elements < 1e17)) reject("zx", "a problem that fits in memory", "more elements");
    q_.zx = rows(v, &q_.zx_t, &q_.zx_b);
    q_.h0 = contiguous("h0", h0, "[B, H]", {q_.B, H});
    q_.c0 = contiguous("c0", c0, "[B, H]", {q_.B, H});
    q_.w_hh = contiguous("w_hh", w_hh, "[G*H, H]", {G * H, H});
    q_.peepholes = contiguous("peepholes", peepholes, "[G-1, H]", {G - 1, H});
    q_.ln_hh = contiguous("ln_hh", ln_hh, "[G*H]", {G * H});
    q_.ln_c = contiguous("ln_c", ln_c, "[H]", {H});
    q_.ln_c_bias = contiguous("ln_c_bias", ln_c_bias, "[H]", {H});
    if ((q_.ln_hh == nullptr) != (q_.ln_c == nullptr)) {
      reject("ln_c", "a tensor exactly where ln_hh is one", q_.ln_c ? "a tensor" : "None");
    }
    if (q_.ln_c == nullptr && ln_c_bias) reject("ln_c_bias", "None without ln_c", "a tensor");
    q_.reverse = reverse;
    q_.cell_clip = limit("cell_clip", cell_clip);
    q_.hidden_clip = limit("hidden_clip", hidden_clip);
  }
  const Recurrence& recurrence() const { return q_; }

  void read_gradients(const OptionalTensor& grad_y, const OptionalTensor& grad_h_n,
                      const OptionalTensor& grad_c_n, RecurrenceGradients* g) {
    if (grad_y) {
      const View v = look("grad_y", *grad_y);
      expect_dtype(v, dtype_);
      expect_sizes(v, "[T, B, H]", {q_.T, q_.B, q_.H});
      g->dy = rows(v, &g->dy_t, &g->dy_b);
    }
    g->dh_n = contiguous("grad_h_n", grad_h_n, "[B, H]", {q_.B, q_.H});
    g->dc_n = contiguous("grad_c_n", grad_c_n, "[B, H]", {q_.B, q_.H});
  }

  // A new result with its address in *data.
  Tensor result(Sizes sizes, void** data) const {
    Tensor tensor = place_.empty(sizes, dtype_);
    *data = write_data(tensor);
    place_.expect_writes(*data, bytes_of(sizes));
    return tensor;
  }
  // One that exists where its argument does, else [0]. Of no rows it is zero.
  Tensor gradient_of(const void* argument, Sizes sizes, void** data) const {
    if (argument == nullptr) return none();
    Tensor tensor = result(sizes, data);
    if (q_.B == 0) place_.clear(tensor, bytes_of(sizes));
    return tensor;
  }
  Tensor none() const { return place_.empty({0}, dtype_); }

 private:
  size_t bytes_of(Sizes sizes) const {
    size_t bytes = element_size(q_.dtype);
    for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
    return bytes;
  }
  static double limit(const char* name, double value) {
    if (!(value > 0)) reject(name, "a number above 0, or infinity", std::to_string(value));
    return value;
  }

  Recurrence q_;
};

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
  Tensor y = call.result({q.T, q.B, q.H}, &out.y);
  Tensor h_n = call.result({q.B, q.H}, &out.h_n);
  Tensor c_n = call.result({q.B, q.H}, &out.c_n);
  Tensor reserve = saves ? place.empty_scratch(cpu::recurrence_reserve_bytes(q))
                         : place.empty({0}, torch_uint8());
  if (saves) out.reserve = write_data(reserve);
  run_in_workspace(
      q.B, "recurrence_forward",
      [&](int32_t threads) { return cpu::recurrence_forward_workspace_bytes(q, saves, threads); },
      [&](void* workspace, size_t bytes, const Parallel& parallel) {
        return cpu::recurrence_forward(q, out, workspace, bytes, parallel);
      });
  return {std::move(y), std::move(h_n), std::move(c_n), std::move(reserve)};
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
  const int64_t G = q.gates;
  RecurrenceGradients g;
  call.read_gradients(grad_y, grad_h_n, grad_c_n, &g);
  // Braces evaluate from left to right.
  RecurrenceGradientsResult results{
      call.result({q.T, q.B, G * q.H}, &g.dzx),
      q.ln_hh ? call.result({q.T, q.B, G * q.H}, &g.dzh) : call.none(),
      call.gradient_of(q.h0, {q.B, q.H}, &g.dh0),
      call.gradient_of(q.c0, {q.B, q.H}, &g.dc0),
      call.gradient_of(q.peepholes, {G - 1, q.H}, &g.dpeepholes),
      call.gradient_of(q.ln_hh, {G * q.H}, &g.dln_hh),
      call.gradient_of(q.ln_c, {q.H}, &g.dln_c),
      call.gradient_of(q.ln_c_bias, {q.H}, &g.dln_c_bias),
  };
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
