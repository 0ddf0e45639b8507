// Stand-in for cuda_fp16.h: storage and conversion only, since kernels compute in float.
#pragma once

#include <cmath>
#include <cstdint>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                     : exponent     ? std::ldexp(static_cast<float>(1024 + fraction), exponent - 25)
                                    : std::ldexp(static_cast<float>(fraction), -24);
  return value.bits & 0x8000 ? -size : size;
}

// To the nearest, ties to even; NaN stays NaN.
inline __half __float2half(float value) {
  const unsigned sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return {0x7fff};
  value = std::fabs(value);
  if (value == 0) return {static_cast<uint16_t>(sign)};
  if (value >= 65520.f) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent;
  std::frexp(value, &exponent);  // value = m * 2^exponent with 0.5 <= m < 1
  const int step = (exponent < -13 ? -13 : exponent) - 11;  // 2^step: a unit in the last place
  // 0 .. 2048 units: a carry moves into the exponent by itself.
  const auto units = static_cast<unsigned>(std::nearbyint(std::ldexp(value, -step)));
  return {static_cast<uint16_t>(sign | ((static_cast<unsigned>(step + 24) << 10) + units))};
}
