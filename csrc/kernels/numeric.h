// Storage formats of 16 bits and their conversion to and from float, one value at a time: what the
// vector code does in bulk, and what tails and tests use. No arithmetic happens in these formats.
#pragma once

#include <cstdint>
#include <cstring>

namespace fused_lstm {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float to_float(float value) { return value; }
inline double to_float(double value) { return value; }

inline float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// aarch64 converts in one instruction; elsewhere the baseline has none.
#if defined(__aarch64__) && !defined(__CUDACC__)
inline float to_float(Float16 value) {
  __fp16 half;
  std::memcpy(&half, &value, sizeof(half));
  return half;
}
#else
inline float to_float(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  uint32_t exponent = (value.bits >> 10) & 0x1fu;
  uint32_t mantissa = value.bits & 0x3ffu;
  uint32_t bits;
  if (exponent == 0x1fu) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else if (mantissa == 0) {
    bits = sign;
  } else {  // subnormal: normalise
    exponent = 113;
    while ((mantissa & 0x400u) == 0) {
      mantissa <<= 1;
      --exponent;
    }
    bits = sign | (exponent << 23) | ((mantissa & 0x3ffu) << 13);
  }
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
#endif

// Rounds to nearest, ties to even; NaN stays NaN.
template <class Storage, class Compute>
Storage from_float(Compute value);

template <>
inline float from_float<float, float>(float value) {
  return value;
}
template <>
inline double from_float<double, double>(double value) {
  return value;
}

template <>
inline BFloat16 from_float<BFloat16, float>(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return {static_cast<uint16_t>(bits >> 16)};
}

#if defined(__aarch64__) && !defined(__CUDACC__)
template <>
inline Float16 from_float<Float16, float>(float value) {
  const __fp16 half = static_cast<__fp16>(value);
  Float16 result;
  std::memcpy(&result, &half, sizeof(result));
  return result;
}
#else
template <>
inline Float16 from_float<Float16, float>(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (bits >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
  if (bits < 0x38800000u) {  // subnormal: let float addition do the rounding
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(bits));
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof(bits));
    return {static_cast<uint16_t>(sign | (bits - 0x3f000000u))};
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((bits - 0x38000000u) >> 13))};
}
#endif

}  // namespace fused_lstm
