// The CPU operators: tensors in, a Problem of csrc/kernels/lstm.h filled and handed to the kernels,
// tensors out. Everything that could make a kernel read or write outside its memory is refused
// here; what a caller means is checked in Python.
//
// Arguments and results are those of schema.cpp, in its order and with its shapes.
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "runtime.h"
#include "scratch.h"
#include "stable.h"

namespace fused_lstm {
namespace {

// The weights of one direction as they were passed, with the names they were passed under.
struct WeightArguments {
  const char *w_ih_name, *w_hh_name, *b_ih_name, *b_hh_name, *w_hr_name;
  const Tensor* w_ih;
  const Tensor* w_hh;
  const OptionalTensor& b_ih;
  const OptionalTensor& b_hh;
  const OptionalTensor& w_hr;
};

constexpr uintptr_t kAlignment = 64;

// Checks the arguments that forward and backward share and holds the Problem they make, together
// with the contiguous copies its pointers may point into.
class Call {
 public:
  Call(const Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
       const OptionalTensor& c0, const WeightArguments& forward_weights,
       const WeightArguments* reverse_weights) {
    const View x_view = view("x", x);
    dtype_ = x_view.dtype;
    const std::optional<DType> dtype = kernel_dtype(dtype_);
    if (!dtype) {
      reject("x", "dtype float32, float64, bfloat16 or float16", dtype_name(dtype_));
    }
    problem_.dtype = *dtype;
    problem_.D = reverse_weights != nullptr ? 2 : 1;

    set_sizes(x_view, forward_weights);
    if (batch_sizes) set_batch_sizes(view("batch_sizes", *batch_sizes));
    check_extent();

    problem_.x = rows(x_view, problem_.I, &problem_.x_t, &problem_.x_b);
    const int64_t D = problem_.D, B = problem_.B, H = problem_.H, P = problem_.P;
    problem_.h0 = contiguous("h0", h0, "[D, B, P]", {D, B, P});
    problem_.c0 = contiguous("c0", c0, "[D, B, H]", {D, B, H});
    set_weights(forward_weights, &problem_.weights[0]);
    if (reverse_weights != nullptr) set_weights(*reverse_weights, &problem_.weights[1]);
  }

  const Problem& problem() const { return problem_; }
  int32_t dtype() const { return dtype_; }
  bool packed() const { return packed_; }

  // A new tensor of x's dtype; [T, B, size], or [N, size] when x is packed.
  Tensor new_rows(int64_t size) const {
    Tensor rows =
        packed_ ? empty({N_, size}, dtype_) : empty({problem_.T, problem_.B, size}, dtype_);
    const size_t bytes = static_cast<size_t>(N_ * size) * element_size(problem_.dtype);
    scratch::prefer_large_pages(write_data(rows), bytes);
    return rows;
  }
  Tensor new_tensor(Sizes sizes) const { return empty(sizes, dtype_); }

  // A tensor with one row of `size` features per row of x: its data and strides. A copy is made
  // only when the features do not lie side by side.
  const void* sequence(const char* name, const Tensor& tensor, int64_t size, int64_t* t_stride,
                       int64_t* b_stride) {
    const View v = view(name, tensor);
    expect_dtype(v, dtype_);
    if (packed_) {
      expect_sizes(v, "[N, D*P]", {N_, size});
    } else {
      expect_sizes(v, "[T, B, D*P]", {problem_.T, problem_.B, size});
    }
    return rows(v, size, t_stride, b_stride);
  }

  // The data of a tensor of exactly these sizes, contiguous; null when there is none.
  const void* contiguous(const char* name, const OptionalTensor& tensor, const char* letters,
                         Sizes sizes) {
    return tensor ? contiguous(name, *tensor, letters, sizes) : nullptr;
  }

  const void* contiguous(const char* name, const Tensor& tensor, const char* letters, Sizes sizes) {
    const View v = view(name, tensor);
    expect_dtype(v, dtype_);
    expect_sizes(v, letters, sizes);
    return contiguous_data(v);
  }

 private:
  void set_sizes(const View& x, const WeightArguments& weights) {
    const View w_ih = view(weights.w_ih_name, *weights.w_ih);
    if (w_ih.dim != 2 || w_ih.sizes[0] < 4 || w_ih.sizes[0] % 4 != 0 || w_ih.sizes[1] < 1) {
      reject(w_ih.name, "sizes [4H, I]", describe_sizes(w_ih));
    }
    problem_.H = problem_.P = w_ih.sizes[0] / 4;
    problem_.I = w_ih.sizes[1];
    if (weights.w_hr) {
      const View w_hr = view(weights.w_hr_name, *weights.w_hr);
      if (w_hr.dim != 2 || w_hr.sizes[0] < 1) {
        reject(w_hr.name, "sizes [P, H]", describe_sizes(w_hr));
      }
      problem_.P = w_hr.sizes[0];
    }
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
  }

  void set_batch_sizes(const View& v) {
    if (!packed_) reject("batch_sizes", "None with x of sizes [T, B, I]", describe_sizes(v));
    expect_dtype(v, torch_int64());
    if (v.dim != 1 || v.sizes[0] < 1) {
      reject("batch_sizes", "sizes [T] with at least one step", describe_sizes(v));
    }
    const int64_t* const counts = static_cast<const int64_t*>(contiguous_data(v));
    const int64_t T = v.sizes[0];
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

  // Sizes may come from expanded tensors, which are larger than memory: no product that a kernel
  // forms may leave int64_t.
  void check_extent() const {
    if (packed_ && problem_.batch_sizes == nullptr) {
      reject("x", "sizes [T, B, I], or batch_sizes with [N, I]", "[N, I] without batch_sizes");
    }
    const double per_row =
        16.0 * static_cast<double>(problem_.H) + 4.0 * static_cast<double>(problem_.I + problem_.P);
    const double rows = static_cast<double>(problem_.T) * static_cast<double>(problem_.B);
    constexpr double kMost = 1e17;  // elements; 8 bytes each stay below 2^63
    if (!(rows < kMost) || !(rows * per_row * problem_.D < kMost)) {
      reject("x", "a problem that fits in memory", "more than 1e17 elements");
    }
  }

  void set_weights(const WeightArguments& w, Weights* out) {
    const int64_t gates = 4 * problem_.H, I = problem_.I, P = problem_.P, H = problem_.H;
    if (w.w_hh == nullptr) reject(w.w_hh_name, "a tensor beside w_ih_reverse", "None");
    out->w_ih = contiguous(w.w_ih_name, *w.w_ih, "[4H, I]", {gates, I});
    out->w_hh = contiguous(w.w_hh_name, *w.w_hh, "[4H, P]", {gates, P});
    out->b_ih = contiguous(w.b_ih_name, w.b_ih, "[4H]", {gates});
    out->b_hh = contiguous(w.b_hh_name, w.b_hh, "[4H]", {gates});
    out->w_hr = contiguous(w.w_hr_name, w.w_hr, "[P, H]", {P, H});
    if (out->w_hr == nullptr && P != H) reject(w.w_hr_name, "a tensor as in direction 0", "None");
  }

  const void* rows(const View& v, int64_t size, int64_t* t_stride, int64_t* b_stride) {
    const int64_t last = v.dim - 1;
    if (v.strides[last] == 1 || size == 1) {
      *t_stride = packed_ ? 0 : v.strides[0];
      *b_stride = v.strides[last - 1];
      return read_data(*v.tensor);
    }
    *t_stride = packed_ ? 0 : problem_.B * size;
    *b_stride = size;
    return copied(v);
  }

  const void* contiguous_data(const View& v) {
    int64_t stride = 1;
    for (int64_t d = v.dim; d-- > 0;) {
      if (v.sizes[d] == 1) continue;
      if (v.sizes[d] == 0) break;
      if (v.strides[d] != stride) return copied(v);
      stride *= v.sizes[d];
    }
    return read_data(*v.tensor);
  }

  const void* copied(const View& v) {
    copies_.push_back(contiguous_copy(v));
    return read_data(copies_.back());
  }

  Problem problem_;
  int32_t dtype_ = 0;
  int64_t N_ = 0;
  bool packed_ = false;
  std::vector<Tensor> copies_;
};

void check_status(Status status, const char* op) {
  runtime::check_parallel();
  if (status == Status::kOk) return;
  const char* const why = status == Status::kBadArgument ? "the kernel refused an argument"
                          : status == Status::kUnsupported
                              ? "no CPU kernel for this dtype and these options"
                              : "the kernel was given too little workspace";
  throw std::runtime_error(std::string("fused_lstm::") + op + ": " + why);
}

WeightArguments direction0(const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                           const OptionalTensor& b_hh, const OptionalTensor& w_hr) {
  return {"w_ih", "w_hh", "b_ih", "b_hh", "w_hr", &w_ih, &w_hh, b_ih, b_hh, w_hr};
}

const Tensor* pointer(const OptionalTensor& tensor) { return tensor ? &*tensor : nullptr; }

WeightArguments direction1(const OptionalTensor& w_ih, const OptionalTensor& w_hh,
                           const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                           const OptionalTensor& w_hr) {
  if (!w_ih && (w_hh || b_ih || b_hh || w_hr)) {
    reject("w_ih_reverse", "a tensor beside the other weights of that direction", "None");
  }
  return {"w_ih_reverse", "w_hh_reverse", "b_ih_reverse", "b_hh_reverse", "w_hr_reverse",
          pointer(w_ih),  pointer(w_hh),  b_ih,           b_hh,           w_hr};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
    const OptionalTensor& c0, const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
    const OptionalTensor& b_hh, const OptionalTensor& w_hr, const OptionalTensor& w_ih_reverse,
    const OptionalTensor& w_hh_reverse, const OptionalTensor& b_ih_reverse,
    const OptionalTensor& b_hh_reverse, const OptionalTensor& w_hr_reverse,
    bool save_for_backward) {
  const WeightArguments reverse =
      direction1(w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse);
  const Call call(x, batch_sizes, h0, c0, direction0(w_ih, w_hh, b_ih, b_hh, w_hr),
                  w_ih_reverse ? &reverse : nullptr);
  const Problem& p = call.problem();
  const bool saves = save_for_backward && p.B > 0;
  Tensor y = call.new_rows(p.D * p.P);
  Tensor h_n = call.new_tensor({p.D, p.B, p.P});
  Tensor c_n = call.new_tensor({p.D, p.B, p.H});
  Tensor reserve = saves ? empty_scratch(cpu::reserve_bytes(p)) : empty({0}, torch_uint8());
  if (p.B > 0) {
    Outputs out;
    out.y = write_data(y);
    out.y_t = p.B * p.D * p.P;
    out.y_b = p.D * p.P;
    out.h_n = write_data(h_n);
    out.c_n = write_data(c_n);
    if (saves) out.reserve = write_data(reserve);
    const Parallel parallel = runtime::parallel();
    const size_t bytes = cpu::forward_workspace_bytes(p, saves, parallel.threads);
    const scratch::Buffer workspace(bytes);
    check_status(cpu::forward(p, out, workspace.data(), bytes, parallel), "forward");
  }
  return {std::move(y), std::move(h_n), std::move(c_n), std::move(reserve)};
}

// The reserve's bytes, 64-byte aligned as forward wrote them: a saved-tensor hook may have moved
// them to memory with less alignment, and then `moved` holds a copy.
const void* aligned_reserve(const Tensor& reserve, const Problem& p,
                            std::unique_ptr<scratch::Buffer>* moved) {
  const size_t bytes = cpu::reserve_bytes(p);
  const View v = view("reserve", reserve);
  expect_dtype(v, torch_uint8());
  expect_sizes(v, "[bytes]", {static_cast<int64_t>(bytes)});
  if (v.strides[0] != 1 && bytes > 1) reject("reserve", "stride 1", std::to_string(v.strides[0]));
  const void* const data = read_data(reserve);
  if (reinterpret_cast<uintptr_t>(data) % kAlignment == 0) return data;
  *moved = std::make_unique<scratch::Buffer>(bytes);
  std::memcpy((*moved)->data(), data, bytes);
  return (*moved)->data();
}

// Hands out the results of backward in the order of `needs`, one bit each.
class Results {
 public:
  Results(const Call& call, int64_t needs) : call_(call), needs_(needs) {}

  // A wanted result gets memory and *data its address; another is [0] and *data stays null.
  Tensor next(bool exists, Sizes sizes, void** data) {
    return take(exists) ? given(call_.new_tensor(sizes), sizes, data) : none();
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
  Tensor none() const { return call_.new_tensor({0}); }
  Tensor given(Tensor tensor, Sizes sizes, void** data) const {
    *data = write_data(tensor);
    if (call_.problem().B == 0) {  // no row contributes
      size_t bytes = element_size(call_.problem().dtype);
      for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
      if (bytes > 0) std::memset(*data, 0, bytes);
    }
    return tensor;
  }

  const Call& call_;
  int64_t needs_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
backward(const OptionalTensor& grad_y, const OptionalTensor& grad_h_n,
         const OptionalTensor& grad_c_n, const Tensor& x, const OptionalTensor& batch_sizes,
         const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
         const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
         const OptionalTensor& w_ih_reverse, const OptionalTensor& w_hh_reverse,
         const OptionalTensor& b_ih_reverse, const OptionalTensor& b_hh_reverse,
         const OptionalTensor& w_hr_reverse, const Tensor& y, const Tensor& reserve,
         int64_t needs) {
  const WeightArguments reverse =
      direction1(w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse);
  Call call(x, batch_sizes, h0, c0, direction0(w_ih, w_hh, b_ih, b_hh, w_hr),
            w_ih_reverse ? &reverse : nullptr);
  const Problem& p = call.problem();
  const int64_t D = p.D, B = p.B, I = p.I, H = p.H, P = p.P;

  Gradients g;
  g.y = call.sequence("y", y, D * P, &g.y_t, &g.y_b);
  if (grad_y) g.dy = call.sequence("grad_y", *grad_y, D * P, &g.dy_t, &g.dy_b);
  g.dh_n = call.contiguous("grad_h_n", grad_h_n, "[D, B, P]", {D, B, P});
  g.dc_n = call.contiguous("grad_c_n", grad_c_n, "[D, B, H]", {D, B, H});

  Results results(call, needs);
  Tensor dx = results.next_rows(I, &g.dx);
  Tensor dh0 = results.next(true, {D, B, P}, &g.dh0);
  Tensor dc0 = results.next(true, {D, B, H}, &g.dc0);
  Tensor dw_ih = results.next(true, {4 * H, I}, &g.weights[0].dw_ih);
  Tensor dw_hh = results.next(true, {4 * H, P}, &g.weights[0].dw_hh);
  Tensor db = results.next(true, {4 * H}, &g.weights[0].db);
  Tensor dw_hr = results.next(w_hr.has_value(), {P, H}, &g.weights[0].dw_hr);
  Tensor dw_ih_reverse = results.next(D == 2, {4 * H, I}, &g.weights[1].dw_ih);
  Tensor dw_hh_reverse = results.next(D == 2, {4 * H, P}, &g.weights[1].dw_hh);
  Tensor db_reverse = results.next(D == 2, {4 * H}, &g.weights[1].db);
  Tensor dw_hr_reverse = results.next(w_hr_reverse.has_value(), {P, H}, &g.weights[1].dw_hr);

  if (B > 0) {
    std::unique_ptr<scratch::Buffer> moved;
    g.reserve = aligned_reserve(reserve, p, &moved);
    const Parallel parallel = runtime::parallel();
    const size_t bytes = cpu::backward_workspace_bytes(p, g, parallel.threads);
    const scratch::Buffer workspace(bytes);
    check_status(cpu::backward(p, g, workspace.data(), bytes, parallel), "backward");
  }
  return {std::move(dx),         std::move(dh0),           std::move(dc0),
          std::move(dw_ih),      std::move(dw_hh),         std::move(db),
          std::move(dw_hr),      std::move(dw_ih_reverse), std::move(dw_hh_reverse),
          std::move(db_reverse), std::move(dw_hr_reverse)};
}

}  // namespace
}  // namespace fused_lstm

STABLE_TORCH_LIBRARY_IMPL(fused_lstm, CPU, library) {
  library.impl("forward", TORCH_BOX(&fused_lstm::forward));
  library.impl("backward", TORCH_BOX(&fused_lstm::backward));
}
