// The numbers that gate_math.h computes with where results keep all the digits of float or double:
// a value that brings its own sigmoid and tanh, no approximation faster than the accurate ones.
#pragma once

#include "../gate_math.h"
#include "device.cuh"

namespace fused_lstm {
namespace cuda {

template <class E>
struct Scalar {
  E value;
};

template <class E>
DEVICE Scalar<E> operator*(Scalar<E> a, Scalar<E> b) {
  return {a.value * b.value};
}
template <class E>
DEVICE Scalar<E> operator-(Scalar<E> a, Scalar<E> b) {
  return {a.value - b.value};
}
DEVICE Scalar<float> fma(Scalar<float> a, Scalar<float> b, Scalar<float> c) {
  return {fmaf(a.value, b.value, c.value)};
}
DEVICE Scalar<double> fma(Scalar<double> a, Scalar<double> b, Scalar<double> c) {
  return {::fma(a.value, b.value, c.value)};
}
template <class E>
DEVICE Scalar<E> one_minus(Scalar<E> a) {
  return {E(1) - a.value};
}
template <class E>
DEVICE Scalar<E> one_minus_square(Scalar<E> a) {
  return fma(Scalar<E>{-a.value}, a, Scalar<E>{E(1)});
}

// exp overflows to infinity where sigmoid is 0, and a NaN stays one.
DEVICE Scalar<float> sigmoid(Scalar<float> a) { return {1.0f / (1.0f + expf(-a.value))}; }
DEVICE Scalar<double> sigmoid(Scalar<double> a) { return {1.0 / (1.0 + ::exp(-a.value))}; }
DEVICE Scalar<float> tanh(Scalar<float> a) { return {tanhf(a.value)}; }
DEVICE Scalar<double> tanh(Scalar<double> a) { return {::tanh(a.value)}; }

// The smaller one, or b where one is no number.
template <class E>
DEVICE Scalar<E> vmin(Scalar<E> a, Scalar<E> b) {
  return a.value < b.value ? a : b;
}
DEVICE Scalar<float> absolute(Scalar<float> a) { return {fabsf(a.value)}; }
DEVICE Scalar<double> absolute(Scalar<double> a) { return {::fabs(a.value)}; }
// magnitude with the sign of a.
DEVICE Scalar<float> with_sign_of(Scalar<float> a, Scalar<float> magnitude) {
  return {copysignf(magnitude.value, a.value)};
}
DEVICE Scalar<double> with_sign_of(Scalar<double> a, Scalar<double> magnitude) {
  return {::copysign(magnitude.value, a.value)};
}
// value where |a| <= limit, else zero, as where a is no number.
template <class E>
DEVICE Scalar<E> within(Scalar<E> a, Scalar<E> limit, Scalar<E> value) {
  return {absolute(a).value <= limit.value ? value.value : E(0)};
}
DEVICE Scalar<float> square_root(Scalar<float> a) { return {sqrtf(a.value)}; }
DEVICE Scalar<double> square_root(Scalar<double> a) { return {::sqrt(a.value)}; }

}  // namespace cuda
}  // namespace fused_lstm
