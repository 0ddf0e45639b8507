// Exchanges between lanes: 8x8 float transpose, sums of W vectors at once. Included inside an ISA's
// namespace.

#if FUSED_LSTM_SIMD >= 2
// dst[k * dst_row + j] = src[j * src_row + k], j, k < 8.
FL_INLINE void transpose_8x8(const float* src, int64_t src_row, float* dst, int64_t dst_row) {
  __m256 r[8], t[8];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) r[j] = _mm256_loadu_ps(src + j * src_row);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    t[2 * j] = _mm256_unpacklo_ps(r[2 * j], r[2 * j + 1]);
    t[2 * j + 1] = _mm256_unpackhi_ps(r[2 * j], r[2 * j + 1]);
  }
#pragma GCC unroll 2
  for (int j = 0; j < 8; j += 4) {
    r[j] = _mm256_shuffle_ps(t[j], t[j + 2], 0x44);
    r[j + 1] = _mm256_shuffle_ps(t[j], t[j + 2], 0xEE);
    r[j + 2] = _mm256_shuffle_ps(t[j + 1], t[j + 3], 0x44);
    r[j + 3] = _mm256_shuffle_ps(t[j + 1], t[j + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_ps(dst + j * dst_row, _mm256_permute2f128_ps(r[j], r[j + 4], 0x20));
    _mm256_storeu_ps(dst + (j + 4) * dst_row, _mm256_permute2f128_ps(r[j], r[j + 4], 0x31));
  }
}
#endif

#if FUSED_LSTM_SIMD >= 2
// Lane j of the result is the sum of a[j]'s lanes.
FL_INLINE __m256 sum_each_8(const __m256* a) {
  const __m256 s0 = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
  const __m256 s1 = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(s0, s1, 0x20), _mm256_permute2f128_ps(s0, s1, 0x31));
}
#endif
#if FUSED_LSTM_SIMD == 3
FL_INLINE Vec<float> sum_each(const Vec<float> (&a)[16]) {
  __m256 half[16];
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) {
    half[j] = _mm256_add_ps(_mm512_castps512_ps256(a[j].v), _mm512_extractf32x8_ps(a[j].v, 1));
  }
  return {_mm512_insertf32x8(_mm512_castps256_ps512(sum_each_8(half)), sum_each_8(half + 8), 1)};
}
#elif FUSED_LSTM_SIMD == 2
FL_INLINE Vec<float> sum_each(const Vec<float> (&a)[8]) {
  __m256 lanes[8];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) lanes[j] = a[j].v;
  return {sum_each_8(lanes)};
}
#endif
template <class E, int N>
FL_INLINE Vec<E> sum_each(const Vec<E> (&a)[N]) {
  E sums[N];
  for (int j = 0; j < N; ++j) sums[j] = sum(a[j]);
  return Vec<E>::load(sums);
}

// [16][16 words] -> its transpose; a word is a pair of bfloat16.
inline void transpose_words(const BFloat16* src, BFloat16* dst) {
#if FUSED_LSTM_SIMD >= 2
  for (int i = 0; i < 16; i += 8) {
    for (int j = 0; j < 16; j += 8) {
      transpose_8x8(reinterpret_cast<const float*>(src) + i * 16 + j, 16,
                    reinterpret_cast<float*>(dst) + j * 16 + i, 16);
    }
  }
#else
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) std::memcpy(dst + (j * 16 + i) * 2, src + (i * 16 + j) * 2, 4);
  }
#endif
}

// Quarter j of vector i <-> quarter i of vector j.
template <class E>
FL_INLINE void transpose_quarters(Vec<E>* v) {
#if FUSED_LSTM_SIMD == 3
  if constexpr (std::is_same<E, float>::value) {
    const __m512 a = _mm512_shuffle_f32x4(v[0].v, v[1].v, 0x44),
                 b = _mm512_shuffle_f32x4(v[0].v, v[1].v, 0xee),
                 c = _mm512_shuffle_f32x4(v[2].v, v[3].v, 0x44),
                 d = _mm512_shuffle_f32x4(v[2].v, v[3].v, 0xee);
    v[0].v = _mm512_shuffle_f32x4(a, c, 0x88);
    v[1].v = _mm512_shuffle_f32x4(a, c, 0xdd);
    v[2].v = _mm512_shuffle_f32x4(b, d, 0x88);
    v[3].v = _mm512_shuffle_f32x4(b, d, 0xdd);
    return;
  }
#endif
  constexpr int kQuarter = Vec<E>::kWidth / 4;
  alignas(64) E from[4][4][kQuarter], to[4][4][kQuarter];
  for (int i = 0; i < 4; ++i) v[i].store(from[i][0]);
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) std::memcpy(to[i][j], from[j][i], sizeof(to[i][j]));
  }
  for (int i = 0; i < 4; ++i) v[i] = Vec<E>::load(to[i][0]);
}
