// Products of bytes (bytes.h): for AVX512_VNNI (Zen 4, Ice Lake and newer), and in plain C++.
#include "bytes.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fused_lstm {
namespace cpu {

void plain_byte_product(const uint8_t* weights, int64_t groups, const ByteRows& a, int64_t rows,
                        float* sums) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t lane = 0; lane < 4 * 16; ++lane) {
      int32_t total[2] = {a.starts[2 * r], a.starts[2 * r + 1]};
      for (int64_t k = 0; k < 4 * groups; ++k) {
        const int8_t* bytes = a.data + r * a.row + k / kByteBlock * 2 * kByteBlock + k % kByteBlock;
        const int32_t weight = weights[(k / 4 * 64 + lane) * 4 + k % 4];
        total[0] += weight * bytes[0];
        total[1] += weight * bytes[kByteBlock];
      }
      sums[r * 64 + lane] =
          (static_cast<float>(total[0]) * 256 + static_cast<float>(total[1])) * a.units[r];
    }
  }
}

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512vnni,avx512f,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512vnni,avx512f,avx2,fma")
#endif
namespace {

inline __m512i four_bytes(const int8_t* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return _mm512_set1_epi32(bits);
}

// sum += products of four bytes, weights unsigned. Not the intrinsic: with that GCC 12 copies every
// sum through memory.
__attribute__((always_inline)) inline void multiply_add(__m512i& sum, __m512i weights,
                                                        __m512i bytes) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(bytes));
}

inline __m512 as_floats(__m512i x) {
  typedef int32_t Ints __attribute__((vector_size(64)));
  typedef float Floats __attribute__((vector_size(64)));
  return reinterpret_cast<__m512>(__builtin_convertvector(reinterpret_cast<Ints>(x), Floats));
}

// Sums of R rows, in registers.
template <int R>
struct Sums {
  __m512i high[R][4], low[R][4];

  __attribute__((always_inline)) inline void start(const int32_t* starts) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int j = 0; j < 4; ++j) {
        high[r][j] = _mm512_set1_epi32(starts[2 * r]);
        low[r][j] = _mm512_set1_epi32(starts[2 * r + 1]);
      }
  }
  __attribute__((always_inline)) inline void add(const uint8_t* weights, const int8_t* bytes,
                                                 int64_t row) {
    __m512i w[4];
#pragma GCC unroll 16
    for (int j = 0; j < 4; ++j) w[j] = _mm512_loadu_si512(weights + j * 64);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const __m512i a = four_bytes(bytes + r * row), b = four_bytes(bytes + r * row + kByteBlock);
#pragma GCC unroll 16
      for (int j = 0; j < 4; ++j) {
        multiply_add(high[r][j], w[j], a);
        multiply_add(low[r][j], w[j], b);
      }
    }
  }
  __attribute__((always_inline)) inline void store(const float* units, float* sums) const {
    const __m512 byte = _mm512_set1_ps(256);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int j = 0; j < 4; ++j) {
        const __m512 sum = _mm512_fmadd_ps(as_floats(high[r][j]), byte, as_floats(low[r][j]));
        _mm512_storeu_ps(sums + (r * 4 + j) * 16, _mm512_mul_ps(sum, _mm512_set1_ps(units[r])));
      }
  }
};

template <int R>
void product(const uint8_t* weights, int64_t groups, const ByteRows& a, int64_t row, float* sums) {
  Sums<R> all;
  all.start(a.starts + 2 * row);
  const int8_t* bytes = a.data + row * a.row;
  for (int64_t group = 0; group < groups; ++group, weights += 4 * 64) {
    all.add(weights, bytes + group / 4 * 2 * kByteBlock + group % 4 * 4, a.row);
  }
  all.store(a.units + row, sums + row * 4 * 16);
}

void vnni_byte_product(const uint8_t* weights, int64_t groups, const ByteRows& a, int64_t rows,
                       float* sums) {
  for (int64_t row = 0; row < rows; row += 3) {
    switch (rows - row) {
      case 1:
        product<1>(weights, groups, a, row, sums);
        break;
      case 2:
        product<2>(weights, groups, a, row, sums);
        break;
      default:
        product<3>(weights, groups, a, row, sums);
    }
  }
}

}  // namespace
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

ByteProduct avx512vnni_byte_product() { return vnni_byte_product; }
#else
ByteProduct avx512vnni_byte_product() { return nullptr; }
#endif

}  // namespace cpu
}  // namespace fused_lstm
