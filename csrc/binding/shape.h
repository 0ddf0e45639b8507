// What the two pybind11 modules share: a problem made of sizes alone, for the functions that only
// measure and plan, and the text of a macro. No torch header is included here.
#pragma once

#include <stdexcept>
#include <string>

#include "../kernels/lstm.h"

// setup.py passes facts as bare text, which no shell or build tool can unquote.
#define FUSED_LSTM_TEXT_OF(...) #__VA_ARGS__
#define FUSED_LSTM_TEXT(macro) FUSED_LSTM_TEXT_OF(macro)

namespace fused_lstm {

inline DType parse_dtype(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "float64") return DType::kFloat64;
  if (name == "bfloat16") return DType::kBFloat16;
  if (name == "float16") return DType::kFloat16;
  throw std::invalid_argument("dtype: expected float32, float64, bfloat16 or float16, got '" +
                              name + "'");
}

// A problem of these sizes without memory, for the functions that only measure and plan. Pointers
// that a plan asks about (a gradient is wanted or not) point at a byte that nobody reads.
struct Shape {
  Problem problem;
  Gradients gradients;

  Shape(int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t D,
        const std::string& dtype) {
    const auto positive = [](const char* name, int64_t size) {
      constexpr int64_t kMost = int64_t{1} << 40;
      if (size >= 1 && size < kMost) return;
      throw std::invalid_argument(std::string(name) + ": expected a size of at least 1, got " +
                                  std::to_string(size));
    };
    positive("T", T), positive("B", B), positive("I", I), positive("H", H), positive("P", P);
    if (D != 1 && D != 2) {
      throw std::invalid_argument("D: expected 1 or 2, got " + std::to_string(D));
    }
    static char byte = 0;
    problem.dtype = parse_dtype(dtype);
    problem.T = T, problem.B = B, problem.I = I, problem.H = H, problem.P = P;
    problem.D = static_cast<int32_t>(D);
    problem.x = &byte;
    problem.x_t = B * I, problem.x_b = I;
    gradients.y_t = gradients.dy_t = B * D * P, gradients.y_b = gradients.dy_b = D * P;
    gradients.y = gradients.reserve = gradients.dy = &byte;
    gradients.dx = gradients.dh0 = gradients.dc0 = &byte;
    for (int64_t d = 0; d < D; ++d) {
      Weights& weights = problem.weights[d];
      weights.w_ih = weights.w_hh = weights.b_ih = weights.b_hh = &byte;
      gradients.weights[d].dw_ih = gradients.weights[d].dw_hh = gradients.weights[d].db = &byte;
      if (P != H) weights.w_hr = gradients.weights[d].dw_hr = &byte;
    }
  }
};

}  // namespace fused_lstm
