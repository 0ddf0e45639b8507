// Products of fixed point (bytes.h): for AVX512_VNNI (Zen 4, Ice Lake and newer), for AVX2, and in
// plain C++.
#include "bytes.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fused_lstm {
namespace cpu {

namespace {

void plain_product(const uint8_t* weights, int64_t groups, const ByteRows& a, int64_t rows,
                   float* sums, int64_t) {
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

}  // namespace

ByteProduct plain_byte_product() { return {plain_product, false}; }

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

void vnni_product(const uint8_t* weights, int64_t groups, const ByteRows& a, int64_t rows,
                  float* sums, int64_t) {
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

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace {

// Sums of one gate's 16 units for R rows: a vector has four units, two sums of each.
template <int R>
struct PairSums {
  __m256i sums[R][4];

  __attribute__((always_inline)) inline void start() {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < 4; ++v) sums[r][v] = _mm256_setzero_si256();
  }
  // Four k of all 16 units; a row's four at a + r * row bytes.
  __attribute__((always_inline)) inline void add(const uint8_t* weights, const int8_t* a,
                                                 int64_t row) {
    __m256i four[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      int64_t bits;
      __builtin_memcpy(&bits, a + r * row, sizeof(bits));
      four[r] = _mm256_set1_epi64x(bits);
    }
#pragma GCC unroll 16
    for (int v = 0; v < 4; ++v) {
      const __m128i biased = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + v * 16));
      const __m256i w = _mm256_cvtepi8_epi16(_mm_xor_si128(biased, _mm_set1_epi8(-128)));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        // Not the intrinsic, for the same reason.
        __asm__("vpaddd %1, %0, %0" : "+x"(sums[r][v]) : "x"(_mm256_madd_epi16(w, four[r])));
      }
    }
  }
  // Adds to what is there, or stores.
  __attribute__((always_inline)) inline void finish(const float* units, float* out, int64_t strip,
                                                    bool first) const {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int half = 0; half < 2; ++half) {
        const __m256i both = _mm256_hadd_epi32(sums[r][2 * half], sums[r][2 * half + 1]);
        const __m256 sum = _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(both, 0xd8));
        float* at = out + half * strip + r * 4 * 8;
        const __m256 before = first ? _mm256_setzero_ps() : _mm256_loadu_ps(at);
        _mm256_storeu_ps(at, _mm256_fmadd_ps(sum, _mm256_set1_ps(units[r]), before));
      }
  }
};

template <int R>
void pair_product(const uint8_t* weights, int64_t groups, const ByteRows& a, float* out,
                  int64_t strip) {
  // Of a block, which stays in L1 for the gates, no sum leaves 32 bits: 64 * 4 * 127 * kByteOne.
  constexpr int64_t kBlock = 64;
  for (int64_t begin = 0; begin < groups; begin += kBlock) {
    const int64_t end = begin + kBlock < groups ? begin + kBlock : groups;
    for (int gate = 0; gate < 4; ++gate) {
      PairSums<R> all;
      all.start();
      for (int64_t group = begin; group < end; ++group) {
        const uint8_t* line = weights + (group * 4 + gate) * 64;
        __builtin_prefetch(line + kBlock * 4 * 64);  // of the block to come
        all.add(line, a.data + group * 8, a.row);
      }
      all.finish(a.units, out + gate * 8, strip, begin == 0);
    }
  }
}

void avx2_product(const uint8_t* weights, int64_t groups, const ByteRows& a, int64_t rows,
                  float* sums, int64_t strip) {
  for (int64_t row = 0; row < rows; row += 2) {
    float* out = sums + row * 4 * 8;
    if (rows - row == 1) {
      pair_product<1>(weights, groups, a.from(row), out, strip);
    } else {
      pair_product<2>(weights, groups, a.from(row), out, strip);
    }
  }
}

}  // namespace
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

ByteProduct avx512vnni_byte_product() { return {vnni_product, false}; }
ByteProduct avx2_byte_product() { return {avx2_product, true}; }
#else
ByteProduct avx512vnni_byte_product() { return {}; }
ByteProduct avx2_byte_product() { return {}; }
#endif

}  // namespace cpu
}  // namespace fused_lstm
