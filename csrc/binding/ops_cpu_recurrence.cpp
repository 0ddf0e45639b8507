// The CPU operators of the recurrence alone (csrc/kernels/recurrence.h), from their arguments to
// their results: what could make a kernel leave its memory is refused here. Arguments and results
// are those of schema.cpp, in its order and with its shapes.
#include <string>
#include <tuple>
#include <vector>

#include "../kernels/recurrence.h"
#include "call.h"
#include "run_cpu.h"
#include "runtime.h"
#include "scratch.h"

namespace fused_lstm {
namespace {

// y, h_n, c_n and the reserve.
using RecurrenceResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
// dzx, dzh, dh0, dc0, dpeepholes, dln_hh, dln_c, dln_c_bias.
using RecurrenceGradientsResult =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The checked arguments that both operators share, with the copies that pointers may point into.
class Arguments {
 public:
  Arguments(const Tensor& zx, const OptionalTensor& h0, const OptionalTensor& c0,
            const Tensor& w_hh, const OptionalTensor& peepholes, const OptionalTensor& ln_hh,
            const OptionalTensor& ln_c, const OptionalTensor& ln_c_bias, bool reverse,
            double cell_clip, double hidden_clip) {
    const View v = look("zx", zx);
    const std::optional<DType> dtype = kernel_dtype(v.dtype);
    if (dtype != DType::kFloat32 && dtype != DType::kFloat64) {
      reject("zx", "dtype float32 or float64", dtype_name(v.dtype));
    }
    dtype_ = v.dtype;
    q.dtype = *dtype;
    const View w = look("w_hh", w_hh);
    const int64_t H = w.dim == 2 ? w.sizes[1] : 0;
    if (H < 1 || (w.sizes[0] != 4 * H && w.sizes[0] != 3 * H)) {
      reject("w_hh", "sizes [4H, H], or [3H, H] with coupled gates", describe_sizes(w));
    }
    q.H = H;
    q.gates = static_cast<int32_t>(w.sizes[0] / H);
    const int64_t G = q.gates;
    if (v.dim != 3 || v.sizes[0] < 1 || v.sizes[2] != G * H) {
      reject("zx", "[T, B, G*H] with T > 0 and G*H = " + std::to_string(G * H), describe_sizes(v));
    }
    q.T = v.sizes[0];
    q.B = v.sizes[1];
    const double elements =
        static_cast<double>(q.T) * static_cast<double>(q.B) * static_cast<double>(G * H + H);
    if (!(elements < 1e17)) reject("zx", "a problem that fits in memory", "more elements");
    q.zx = rows(v, &q.zx_t, &q.zx_b);
    q.h0 = contiguous("h0", h0, "[B, H]", {q.B, H});
    q.c0 = contiguous("c0", c0, "[B, H]", {q.B, H});
    q.w_hh = contiguous("w_hh", w_hh, "[G*H, H]", {G * H, H});
    q.peepholes = contiguous("peepholes", peepholes, "[G-1, H]", {G - 1, H});
    q.ln_hh = contiguous("ln_hh", ln_hh, "[G*H]", {G * H});
    q.ln_c = contiguous("ln_c", ln_c, "[H]", {H});
    q.ln_c_bias = contiguous("ln_c_bias", ln_c_bias, "[H]", {H});
    if ((q.ln_hh == nullptr) != (q.ln_c == nullptr)) {
      reject("ln_c", "a tensor exactly where ln_hh is one", q.ln_c ? "a tensor" : "None");
    }
    if (q.ln_c == nullptr && ln_c_bias) reject("ln_c_bias", "None without ln_c", "a tensor");
    q.reverse = reverse;
    q.cell_clip = limit("cell_clip", cell_clip);
    q.hidden_clip = limit("hidden_clip", hidden_clip);
  }

  // [T, B, size] with unit stride over its last dimension, or null.
  const void* sequence(const char* name, const OptionalTensor& tensor, int64_t size,
                       int64_t* t_stride, int64_t* b_stride) {
    if (!tensor) return nullptr;
    const View v = look(name, *tensor);
    expect_dtype(v, dtype_);
    expect_sizes(v, "[T, B, H]", {q.T, q.B, size});
    return rows(v, t_stride, b_stride);
  }
  const void* contiguous(const char* name, const OptionalTensor& tensor, const char* letters,
                         Sizes sizes) {
    return tensor ? contiguous(name, *tensor, letters, sizes) : nullptr;
  }
  const void* contiguous(const char* name, const Tensor& tensor, const char* letters, Sizes sizes) {
    const View v = look(name, tensor);
    expect_dtype(v, dtype_);
    expect_sizes(v, letters, sizes);
    int64_t stride = 1;
    bool dense = true;
    for (int64_t d = v.dim; d-- > 0; stride *= v.sizes[d]) {
      dense = dense && (v.sizes[d] <= 1 || v.strides[d] == stride);
    }
    return dense ? read_data(tensor) : copied(v);
  }
  const void* aligned_reserve(const Tensor& reserve) {
    const View v = look("reserve", reserve);
    expect_dtype(v, torch_uint8());
    expect_sizes(v, "[bytes]", {static_cast<int64_t>(cpu::recurrence_reserve_bytes(q))});
    if (v.strides[0] != 1) reject("reserve", "stride 1", std::to_string(v.strides[0]));
    const void* const data = read_data(reserve);
    return reinterpret_cast<uintptr_t>(data) % kReserveAlignment == 0 ? data : copied(v);
  }

  Tensor none() const { return place_.empty({0}, dtype_); }
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
    if (q.B == 0) place_.clear(tensor, bytes_of(sizes));
    return tensor;
  }
  const CpuPlace& place() const { return place_; }

  Recurrence q;

 private:
  View look(const char* name, const Tensor& tensor) const {
    return view(name, tensor, place_.device());
  }
  size_t bytes_of(Sizes sizes) const {
    size_t bytes = element_size(q.dtype);
    for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
    return bytes;
  }
  static double limit(const char* name, double value) {
    if (!(value > 0)) reject(name, "a number above 0, or infinity", std::to_string(value));
    return value;
  }
  const void* rows(const View& v, int64_t* t_stride, int64_t* b_stride) {
    if (v.strides[2] == 1 || v.sizes[2] == 1) {
      *t_stride = v.strides[0];
      *b_stride = v.strides[1];
      return read_data(*v.tensor);
    }
    *t_stride = v.sizes[1] * v.sizes[2];
    *b_stride = v.sizes[2];
    return copied(v);
  }
  const void* copied(const View& v) {
    copies_.push_back(place_.contiguous_copy(v));
    return read_data(copies_.back());
  }

  const CpuPlace place_;
  int32_t dtype_ = 0;
  std::vector<Tensor> copies_;
};

RecurrenceResult recurrence_forward(const Tensor& zx, const OptionalTensor& h0,
                                    const OptionalTensor& c0, const Tensor& w_hh,
                                    const OptionalTensor& peepholes, const OptionalTensor& ln_hh,
                                    const OptionalTensor& ln_c, const OptionalTensor& ln_c_bias,
                                    bool reverse, double cell_clip, double hidden_clip,
                                    bool save_for_backward) {
  const Arguments a(zx, h0, c0, w_hh, peepholes, ln_hh, ln_c, ln_c_bias, reverse, cell_clip,
                    hidden_clip);
  const Recurrence& q = a.q;
  RecurrenceOutputs out;
  Tensor y = a.result({q.T, q.B, q.H}, &out.y);
  Tensor h_n = a.result({q.B, q.H}, &out.h_n);
  Tensor c_n = a.result({q.B, q.H}, &out.c_n);
  if (q.B == 0) {
    return {std::move(y), std::move(h_n), std::move(c_n), a.place().empty({0}, torch_uint8())};
  }
  Tensor reserve = save_for_backward ? a.place().empty_scratch(cpu::recurrence_reserve_bytes(q))
                                     : a.place().empty({0}, torch_uint8());
  if (save_for_backward) out.reserve = write_data(reserve);
  const Parallel parallel = runtime::parallel();
  const size_t bytes =
      cpu::recurrence_forward_workspace_bytes(q, save_for_backward, parallel.threads);
  const scratch::Buffer workspace(bytes);
  const Status status = cpu::recurrence_forward(q, out, workspace.data(), bytes, parallel);
  runtime::check_parallel();
  check_status(status, "recurrence_forward", "");
  return {std::move(y), std::move(h_n), std::move(c_n), std::move(reserve)};
}

RecurrenceGradientsResult recurrence_backward(
    const OptionalTensor& grad_y, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const Tensor& zx, const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& w_hh,
    const OptionalTensor& peepholes, const OptionalTensor& ln_hh, const OptionalTensor& ln_c,
    const OptionalTensor& ln_c_bias, bool reverse, double cell_clip, double hidden_clip,
    const Tensor& reserve) {
  Arguments a(zx, h0, c0, w_hh, peepholes, ln_hh, ln_c, ln_c_bias, reverse, cell_clip, hidden_clip);
  const Recurrence& q = a.q;
  RecurrenceGradients g;
  g.dy = a.sequence("grad_y", grad_y, q.H, &g.dy_t, &g.dy_b);
  g.dh_n = a.contiguous("grad_h_n", grad_h_n, "[B, H]", {q.B, q.H});
  g.dc_n = a.contiguous("grad_c_n", grad_c_n, "[B, H]", {q.B, q.H});
  const int64_t G = q.gates;
  // Braces evaluate from left to right.
  RecurrenceGradientsResult results{
      a.result({q.T, q.B, G * q.H}, &g.dzx),
      q.ln_hh ? a.result({q.T, q.B, G * q.H}, &g.dzh) : a.none(),
      a.gradient_of(q.h0, {q.B, q.H}, &g.dh0),
      a.gradient_of(q.c0, {q.B, q.H}, &g.dc0),
      a.gradient_of(q.peepholes, {G - 1, q.H}, &g.dpeepholes),
      a.gradient_of(q.ln_hh, {G * q.H}, &g.dln_hh),
      a.gradient_of(q.ln_c, {q.H}, &g.dln_c),
      a.gradient_of(q.ln_c_bias, {q.H}, &g.dln_c_bias),
  };
  if (q.B == 0) return results;
  g.reserve = a.aligned_reserve(reserve);
  const Parallel parallel = runtime::parallel();
  const size_t bytes = cpu::recurrence_backward_workspace_bytes(q, parallel.threads);
  const scratch::Buffer workspace(bytes);
  const Status status = cpu::recurrence_backward(q, g, workspace.data(), bytes, parallel);
  runtime::check_parallel();
  check_status(status, "recurrence_backward", "");
  return results;
}

}  // namespace
}  // namespace fused_lstm

STABLE_TORCH_LIBRARY_IMPL(fused_lstm, CPU, library) {
  library.impl("recurrence_forward", TORCH_BOX(&fused_lstm::recurrence_forward));
  library.impl("recurrence_backward", TORCH_BOX(&fused_lstm::recurrence_backward));
}
