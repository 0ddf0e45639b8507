#include "recurrence_call.h"

#include <string>

namespace fused_lstm {
namespace {

double limit(const char* name, double value) {
  if (!(value > 0)) reject(name, "a number above 0, or infinity", std::to_string(value));
  return value;
}

}  // namespace

RecurrenceCall::RecurrenceCall(const Place& place, const Tensor& zx, const OptionalTensor& h0,
                               const OptionalTensor& c0, const Tensor& w_hh,
                               const OptionalTensor& peepholes, const OptionalTensor& ln_hh,
                               const OptionalTensor& ln_c, const OptionalTensor& ln_c_bias,
                               bool reverse, double cell_clip, double hidden_clip)
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
  has_h0_ = h0.has_value();
  has_c0_ = c0.has_value();
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

RecurrenceResult RecurrenceCall::new_outputs(Tensor reserve, RecurrenceOutputs* outputs) const {
  // Braces evaluate from left to right.
  return RecurrenceResult{result({q_.T, q_.B, q_.H}, &outputs->y),
                          result({q_.B, q_.H}, &outputs->h_n), result({q_.B, q_.H}, &outputs->c_n),
                          std::move(reserve)};
}

void RecurrenceCall::read_gradients(const OptionalTensor& grad_y, const OptionalTensor& grad_h_n,
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

RecurrenceGradientsResult RecurrenceCall::new_gradients(RecurrenceGradients* g) const {
  const int64_t G = q_.gates;
  return RecurrenceGradientsResult{
      result({q_.T, q_.B, G * q_.H}, &g->dzx),
      q_.ln_hh ? result({q_.T, q_.B, G * q_.H}, &g->dzh) : none(),
      gradient_of(has_h0_, {q_.B, q_.H}, &g->dh0),
      gradient_of(has_c0_, {q_.B, q_.H}, &g->dc0),
      gradient_of(q_.peepholes != nullptr, {G - 1, q_.H}, &g->dpeepholes),
      gradient_of(q_.ln_hh != nullptr, {G * q_.H}, &g->dln_hh),
      gradient_of(q_.ln_c != nullptr, {q_.H}, &g->dln_c),
      gradient_of(q_.ln_c_bias != nullptr, {q_.H}, &g->dln_c_bias),
  };
}

// A new result with its address in *data.
Tensor RecurrenceCall::result(Sizes sizes, void** data) const {
  Tensor tensor = place_.empty(sizes, dtype_);
  *data = write_data(tensor);
  place_.expect_writes(*data, bytes_of(sizes));
  return tensor;
}

// One that exists where its argument does, else [0]. Of no rows it is zero.
Tensor RecurrenceCall::gradient_of(bool given, Sizes sizes, void** data) const {
  if (!given) return none();
  Tensor tensor = result(sizes, data);
  if (q_.B == 0) place_.clear(tensor, bytes_of(sizes));
  return tensor;
}

size_t RecurrenceCall::bytes_of(Sizes sizes) const {
  size_t bytes = element_size(q_.dtype);
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  return bytes;
}

}  // namespace fused_lstm
