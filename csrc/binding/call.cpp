// The arguments of a call, checked in the order in which their sizes follow from each other.
#include "call.h"

#include <stdexcept>

namespace fused_lstm {
namespace {

constexpr const char* kFrozenSizes =
    "[ceil(H/16), I + H, 4, 16] (int8: I and H rounded up to multiples of 4)";

const Tensor* pointer(const OptionalTensor& tensor) { return tensor ? &*tensor : nullptr; }

}  // namespace

bool fits_in_memory(const Problem& p) {
  const double per_row = 16.0 * static_cast<double>(p.H) + 4.0 * static_cast<double>(p.I + p.P);
  const double rows = static_cast<double>(p.T) * static_cast<double>(p.B);
  constexpr double kMost = 1e17;  // elements; 8 bytes each stay below 2^63
  return rows < kMost && rows * per_row * p.D < kMost;
}

WeightArguments direction0(const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                           const OptionalTensor& b_hh, const OptionalTensor& w_hr) {
  return {"w_ih", "w_hh", "b_ih", "b_hh", "w_hr", &w_ih, &w_hh, b_ih, b_hh, w_hr};
}

WeightArguments direction1(const OptionalTensor& w_ih, const OptionalTensor& w_hh,
                           const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                           const OptionalTensor& w_hr) {
  if (!w_ih && (w_hh || b_ih || b_hh || w_hr)) {
    reject("w_ih_reverse", "a tensor beside the other weights of that direction", "None");
  }
  return {"w_ih_reverse", "w_hh_reverse", "b_ih_reverse", "b_hh_reverse", "w_hr_reverse",
          pointer(w_ih),  pointer(w_hh),  b_ih,           b_hh,           w_hr};
}

Call::Call(const Place& place, const Tensor& x, const OptionalTensor& batch_sizes,
           const OptionalTensor& h0, const OptionalTensor& c0,
           const WeightArguments& forward_weights, const WeightArguments& reverse_weights)
    : Arguments(place) {
  const View x_view = look("x", x);
  dtype_ = x_view.dtype;
  const std::optional<DType> dtype = kernel_dtype(dtype_);
  if (!dtype) {
    reject("x", "dtype float32, float64, bfloat16 or float16", dtype_name(dtype_));
  }
  problem_.dtype = *dtype;
  problem_.D = reverse_weights.w_ih != nullptr ? 2 : 1;

  set_weight_sizes(forward_weights);
  set_rows(x_view, batch_sizes);
  set_states(x_view, h0, c0);
  set_weights(forward_weights, &problem_.weights[0]);
  if (problem_.D == 2) set_weights(reverse_weights, &problem_.weights[1]);
}

Call::Call(const Place& place, const Tensor& x, const OptionalTensor& batch_sizes,
           const OptionalTensor& h0, const OptionalTensor& c0, int64_t hidden_size,
           const FrozenArguments& forward_weights, const FrozenArguments& reverse_weights,
           Frozen* frozen)
    : Arguments(place) {
  const View x_view = look("x", x);
  dtype_ = x_view.dtype;
  if (kernel_dtype(dtype_) != DType::kFloat32) reject("x", "dtype float32", dtype_name(dtype_));
  problem_.D = reverse_weights.panels != nullptr ? 2 : 1;

  set_frozen_sizes(x_view, hidden_size, forward_weights, frozen);
  set_rows(x_view, batch_sizes);
  set_states(x_view, h0, c0);
  set_frozen(forward_weights, frozen->stored, &frozen->weights[0]);
  if (problem_.D == 2) set_frozen(reverse_weights, frozen->stored, &frozen->weights[1]);
}

void Call::set_options(const OptionalTensor& marks, const OptionalTensor& keep,
                       const OptionalTensor& h_factors, double zoneout_h, double zoneout_c,
                       bool recompute, bool cells) {
  set_marks(marks);
  set_zoneout(keep, zoneout_h, zoneout_c);
  problem_.h_factors =
      contiguous("h_factors", h_factors, "[D, B, P]", {problem_.D, problem_.B, problem_.P});
  problem_.recompute = recompute;
  const bool others = marks || h_factors || problem_.zoneout.on() || cells;
  if (problem_.weights[0].w_hr != nullptr && others) {
    reject("w_hr", "None with any option but recompute", "a tensor");
  }
}

void Call::set_marks(const OptionalTensor& marks) {
  if (!marks) return;
  const View v = look("marks", *marks);
  expect_dtype(v, torch_uint8());
  expect_sizes(v, "[T, B]", {problem_.T, problem_.B});
  problem_.marks = bytes(v);
}

void Call::set_zoneout(const OptionalTensor& keep, double h, double c) {
  for (const auto& [name, share] : {std::pair("zoneout_h", h), std::pair("zoneout_c", c)}) {
    if (!(share >= 0 && share <= 1)) {
      reject(name, "a share from 0 to 1", std::to_string(share));
    }
  }
  problem_.zoneout.h = h;
  problem_.zoneout.c = c;
  if (!keep) return;
  const View v = look("keep", *keep);
  expect_dtype(v, torch_uint8());
  expect_sizes(v, "[T, B, D*H]", {problem_.T, problem_.B, problem_.D * problem_.H});
  problem_.zoneout.keep = bytes(v);
}

Tensor Call::new_cells(bool wanted, Outputs* out) {
  if (!wanted) return place_.empty({0}, dtype_);
  problem_.cells = true;
  Tensor cells = new_rows(problem_.D * problem_.H);
  out->cells = write_data(cells);
  return cells;
}

void Call::read_cells_gradient(const OptionalTensor& grad_cells, Gradients* g) {
  if (!grad_cells) return;
  problem_.cells = true;
  g->dcells = sequence("grad_cells", *grad_cells, "[T, B, D*H]", problem_.D * problem_.H,
                       &g->dcells_t, &g->dcells_b);
}

ForwardResult Call::new_outputs(Tensor reserve, Outputs* out) const {
  const int64_t D = problem_.D, B = problem_.B, H = problem_.H, P = problem_.P;
  Tensor y = new_rows(D * P);
  Tensor h_n = place_.empty({D, B, P}, dtype_);
  Tensor c_n = place_.empty({D, B, H}, dtype_);
  out->y = write_data(y);
  out->y_t = B * D * P;
  out->y_b = D * P;
  out->h_n = write_data(h_n);
  out->c_n = write_data(c_n);
  return {std::move(y), std::move(h_n), std::move(c_n), std::move(reserve)};
}

void Call::read_gradients(const Tensor& y, const OptionalTensor& grad_y,
                          const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
                          Gradients* g) {
  const int64_t D = problem_.D, B = problem_.B, H = problem_.H, P = problem_.P;
  g->y = sequence("y", y, "[T, B, D*P]", D * P, &g->y_t, &g->y_b);
  if (grad_y) g->dy = sequence("grad_y", *grad_y, "[T, B, D*P]", D * P, &g->dy_t, &g->dy_b);
  g->dh_n = contiguous("grad_h_n", grad_h_n, "[D, B, P]", {D, B, P});
  g->dc_n = contiguous("grad_c_n", grad_c_n, "[D, B, H]", {D, B, H});
}

// Hands out the results of backward in the order of `needs`, one bit each.
class Call::Results {
 public:
  Results(const Call& call, int64_t needs) : call_(call), needs_(needs) {}

  // A wanted result gets memory and *data its address; another is [0] and *data stays null.
  Tensor next(bool exists, Sizes sizes, void** data) {
    if (!take(exists)) return none();
    Tensor tensor = call_.place_.empty(sizes, call_.dtype_);
    *data = write_data(tensor);
    if (call_.problem_.B == 0) {  // no row contributes
      size_t bytes = element_size(call_.problem_.dtype);
      for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
      call_.place_.clear(tensor, bytes);
    }
    return tensor;
  }
  Tensor next_rows(int64_t size, void** data) {
    if (!take(true)) return none();
    Tensor rows = call_.new_rows(size);
    *data = write_data(rows);
    return rows;
  }

 private:
  bool take(bool exists) {
    const bool wanted = (needs_ & 1) != 0 && exists;
    needs_ >>= 1;
    return wanted;
  }
  Tensor none() const { return call_.place_.empty({0}, call_.dtype_); }

  const Call& call_;
  int64_t needs_;
};

BackwardResult Call::new_gradients(int64_t needs, Gradients* g) const {
  const int64_t D = problem_.D, B = problem_.B, I = problem_.I, H = problem_.H, P = problem_.P;
  Results results(*this, needs);
  // Braces evaluate from left to right: the order of the bits.
  return BackwardResult{
      results.next_rows(I, &g->dx),
      results.next(true, {D, B, P}, &g->dh0),
      results.next(true, {D, B, H}, &g->dc0),
      results.next(true, {4 * H, I}, &g->weights[0].dw_ih),
      results.next(true, {4 * H, P}, &g->weights[0].dw_hh),
      results.next(true, {4 * H}, &g->weights[0].db),
      results.next(problem_.weights[0].w_hr != nullptr, {P, H}, &g->weights[0].dw_hr),
      results.next(D == 2, {4 * H, I}, &g->weights[1].dw_ih),
      results.next(D == 2, {4 * H, P}, &g->weights[1].dw_hh),
      results.next(D == 2, {4 * H}, &g->weights[1].db),
      results.next(problem_.weights[1].w_hr != nullptr, {P, H}, &g->weights[1].dw_hr),
  };
}

void Call::set_weight_sizes(const WeightArguments& weights) {
  const View w_ih = look(weights.w_ih_name, *weights.w_ih);
  if (w_ih.dim != 2 || w_ih.sizes[0] < 4 || w_ih.sizes[0] % 4 != 0 || w_ih.sizes[1] < 1) {
    reject(w_ih.name, "sizes [4H, I]", describe_sizes(w_ih));
  }
  problem_.H = problem_.P = w_ih.sizes[0] / 4;
  problem_.I = w_ih.sizes[1];
  if (weights.w_hr) {
    const View w_hr = look(weights.w_hr_name, *weights.w_hr);
    if (w_hr.dim != 2 || w_hr.sizes[0] < 1) {
      reject(w_hr.name, "sizes [P, H]", describe_sizes(w_hr));
    }
    problem_.P = w_hr.sizes[0];
  }
}

void Call::set_frozen_sizes(const View& x, int64_t hidden_size, const FrozenArguments& weights,
                            Frozen* frozen) {
  constexpr int64_t kMost = int64_t{1} << 40;
  if (hidden_size < 1 || hidden_size >= kMost) {
    reject("hidden_size", "a size of at least 1", std::to_string(hidden_size));
  }
  const View panels = look(weights.panels_name, *weights.panels);
  const std::optional<DType> dtype = kernel_dtype(panels.dtype);
  if (panels.dtype == torch_int8()) {
    frozen->stored = Stored::kInt8;
  } else if (dtype == DType::kFloat32 || dtype == DType::kBFloat16) {
    frozen->stored = dtype == DType::kFloat32 ? Stored::kFloat32 : Stored::kBFloat16;
  } else {
    reject(panels.name, "dtype float32, bfloat16 or int8", dtype_name(panels.dtype));
  }
  if (x.dim < 1 || x.sizes[x.dim - 1] < 1) {
    reject("x", "at least one feature", describe_sizes(x));
  }
  problem_.H = problem_.P = hidden_size;
  problem_.I = x.sizes[x.dim - 1];  // set_frozen holds the panels' sizes against it
}

// T, B and N, from sizes of x and the counts of a packed one.
void Call::set_rows(const View& x, const OptionalTensor& batch_sizes) {
  const bool three = x.dim == 3;
  if (!three && x.dim != 2) {
    reject("x", "sizes [T, B, I], or [N, I] with batch_sizes", describe_sizes(x));
  }
  if (x.sizes[x.dim - 1] != problem_.I) {
    reject("x", std::to_string(problem_.I) + " features in its last dimension",
           std::to_string(x.sizes[x.dim - 1]));
  }
  packed_ = !three;
  problem_.T = x.sizes[0];
  problem_.B = three ? x.sizes[1] : 0;
  N_ = three ? problem_.T * problem_.B : x.sizes[0];
  if (three && problem_.T < 1) reject("x", "at least one step", describe_sizes(x));
  // Counts stay on the CPU, whatever computes.
  if (batch_sizes) set_batch_sizes(view("batch_sizes", *batch_sizes, cpu_device()));
  check_extent();
}

void Call::set_states(const View& x, const OptionalTensor& h0, const OptionalTensor& c0) {
  problem_.x = rows(x, &problem_.x_t, &problem_.x_b);
  const int64_t D = problem_.D, B = problem_.B, H = problem_.H, P = problem_.P;
  problem_.h0 = contiguous("h0", h0, "[D, B, P]", {D, B, P});
  problem_.c0 = contiguous("c0", c0, "[D, B, H]", {D, B, H});
}

void Call::set_batch_sizes(const View& v) {
  if (!packed_) reject("batch_sizes", "None with x of sizes [T, B, I]", describe_sizes(v));
  expect_dtype(v, torch_int64());
  if (v.dim != 1 || v.sizes[0] < 1) {
    reject("batch_sizes", "sizes [T] with at least one step", describe_sizes(v));
  }
  const int64_t T = v.sizes[0];
  const int64_t* counts = static_cast<const int64_t*>(read_data(*v.tensor));
  if (v.strides[0] != 1 && T > 1) {
    for (int64_t t = 0; t < T; ++t) batch_sizes_.push_back(counts[t * v.strides[0]]);
    counts = batch_sizes_.data();
  }
  int64_t left = N_;
  for (int64_t t = 0; t < T; ++t) {
    const int64_t most = t == 0 ? left : counts[t - 1];
    if (counts[t] < 1 || counts[t] > most || counts[t] > left) {
      reject("batch_sizes", "counts >= 1, never increasing, whose sum is " + std::to_string(N_),
             std::to_string(counts[t]) + " at step " + std::to_string(t));
    }
    left -= counts[t];
  }
  if (left != 0) {
    reject("batch_sizes", "a sum of " + std::to_string(N_), std::to_string(N_ - left));
  }
  problem_.T = T;
  problem_.B = counts[0];
  problem_.batch_sizes = counts;
}

void Call::check_extent() const {
  if (packed_ && problem_.batch_sizes == nullptr) {
    reject("x", "sizes [T, B, I], or batch_sizes with [N, I]", "[N, I] without batch_sizes");
  }
  if (!fits_in_memory(problem_)) {
    reject("x", "a problem that fits in memory", "more than 1e17 elements");
  }
}

void Call::set_weights(const WeightArguments& w, Weights* out) {
  const int64_t gates = 4 * problem_.H, I = problem_.I, P = problem_.P, H = problem_.H;
  if (w.w_hh == nullptr) reject(w.w_hh_name, "a tensor beside w_ih_reverse", "None");
  out->w_ih = contiguous(w.w_ih_name, *w.w_ih, "[4H, I]", {gates, I});
  out->w_hh = contiguous(w.w_hh_name, *w.w_hh, "[4H, P]", {gates, P});
  out->b_ih = contiguous(w.b_ih_name, w.b_ih, "[4H]", {gates});
  out->b_hh = contiguous(w.b_hh_name, w.b_hh, "[4H]", {gates});
  out->w_hr = contiguous(w.w_hr_name, w.w_hr, "[P, H]", {P, H});
  if (out->w_hr == nullptr && P != H) reject(w.w_hr_name, "a tensor as in direction 0", "None");
}

// Packed weights are large and made to lie side by side: what does not is refused, not copied.
void Call::set_frozen(const FrozenArguments& w, Stored stored, FrozenWeights* out) {
  const int64_t panels = (problem_.H + kFrozenUnits - 1) / kFrozenUnits;
  const auto look_at = [&](const char* name, const Tensor& tensor, int32_t dtype,
                           const char* letters, Sizes sizes) {
    const View v = look(name, tensor);
    expect_dtype(v, dtype);
    expect_sizes(v, letters, sizes);
    if (!is_dense(v)) reject(name, "a contiguous tensor", "other strides");
    return read_data(tensor);
  };
  const int32_t dtypes[] = {dtype_, torch_bfloat16(), torch_int8()};
  out->panels = look_at(
      w.panels_name, *w.panels, dtypes[static_cast<int32_t>(stored)], kFrozenSizes,
      {panels, frozen_rows(stored, problem_.I) + frozen_rows(stored, problem_.H), 4, kFrozenUnits});
  if (w.bias == nullptr) reject(w.bias_name, "a tensor beside the panels", "None");
  out->bias = static_cast<const float*>(
      look_at(w.bias_name, *w.bias, dtype_, "[ceil(H/16), 4, 16]", {panels, 4, kFrozenUnits}));
  if (w.scales.has_value() != (stored == Stored::kInt8)) {
    reject(w.scales_name, "a tensor with int8 panels, None with others",
           w.scales ? "a tensor" : "None");
  }
  if (!w.scales) return;
  out->scales = static_cast<const float*>(look_at(
      w.scales_name, *w.scales, dtype_, "[2, ceil(H/16), 4, 16]", {2, panels, 4, kFrozenUnits}));
}

// A new tensor of x's dtype; [T, B, size], or [N, size] when x is packed.
Tensor Call::new_rows(int64_t size) const {
  Tensor rows = packed_ ? place_.empty({N_, size}, dtype_)
                        : place_.empty({problem_.T, problem_.B, size}, dtype_);
  const size_t bytes = static_cast<size_t>(N_ * size) * element_size(problem_.dtype);
  place_.expect_writes(write_data(rows), bytes);
  return rows;
}

const void* Call::sequence(const char* name, const Tensor& tensor, const char* letters,
                           int64_t size, int64_t* t_stride, int64_t* b_stride) {
  const View v = look(name, tensor);
  expect_dtype(v, dtype_);
  if (packed_) {
    expect_sizes(v, "[N, D*P]", {N_, size});
  } else {
    expect_sizes(v, letters, {problem_.T, problem_.B, size});
  }
  return rows(v, t_stride, b_stride);
}

void check_status(Status status, const char* op, const std::string& reason) {
  if (status == Status::kOk) return;
  std::string why;
  switch (status) {
    case Status::kBadArgument:
      why = "the kernel refused an argument";
      break;
    case Status::kUnsupported:
      why = "no kernel for this dtype and these options";
      break;
    case Status::kWorkspaceTooSmall:
      why = "the kernel was given too little workspace";
      break;
    default:
      why = reason;
  }
  throw std::runtime_error(std::string("fused_lstm::") + op + ": " + why);
}

}  // namespace fused_lstm
