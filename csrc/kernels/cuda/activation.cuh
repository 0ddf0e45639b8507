// The number that gate_math.h computes with where results end in 16 bits or come from TF32
// products: a float whose sigmoid and tanh are quick, and wrong by 2e-7 (tanh: also relatively,
// 1e-6), far below one unit of what is stored. Where float keeps all its digits, scalar.cuh is the
// choice.
#pragma once

#include "../gate_math.h"
#include "device.cuh"

namespace fused_lstm {
namespace cuda {

struct Quick {
  float value;
};

DEVICE Quick operator*(Quick a, Quick b) { return {a.value * b.value}; }
DEVICE Quick fma(Quick a, Quick b, Quick c) { return {fmaf(a.value, b.value, c.value)}; }
DEVICE Quick one_minus(Quick a) { return {1.0f - a.value}; }
DEVICE Quick one_minus_square(Quick a) { return {fmaf(-a.value, a.value, 1.0f)}; }

// exp overflows to infinity where sigmoid is 0, and a NaN stays one.
DEVICE Quick sigmoid(Quick a) {
  return {device::fast_divide(1.0f, 1.0f + device::fast_exp(-a.value))};
}
// Near zero the difference from 1 would lose digits: the series to x^9, relative error 5e-7 there.
DEVICE Quick tanh(Quick a) {
  const float x = a.value, square = x * x;
  const float large = 1.0f - device::fast_divide(2.0f, 1.0f + device::fast_exp(2.0f * x));
  float small = fmaf(square, 62.0f / 2835, -17.0f / 315);
  small = fmaf(small, square, 2.0f / 15);
  small = fmaf(small, square, -1.0f / 3);
  return {square < 0.16f ? fmaf(small * square, x, x) : large};
}

}  // namespace cuda
}  // namespace fused_lstm
