// Vectors for one instruction set. Included once by each isa_*.cpp, inside that file's own
// namespace, after its target pragma: Vec<float> and Vec<double> with the same operations
// everywhere, so that everything above this file is written once.
//
// FUSED_LSTM_SIMD selects the backing: 2 = AVX2 + FMA + F16C, 3 = AVX-512 F/VL/BW/DQ,
// otherwise GCC/clang vector extensions of FUSED_LSTM_VECTOR_BYTES bytes.

template <class Element>
struct Vec;

// An inline-assembly operand that may have changed: in a register where a register holds it, or
// each use would wait for a store and a load.
#if FUSED_LSTM_SIMD == 3
#define FUSED_LSTM_OPAQUE(x) "+v"(x)
#elif FUSED_LSTM_SIMD == 2 || (FUSED_LSTM_VECTOR_BYTES == 16 && defined(__SSE2__))
#define FUSED_LSTM_OPAQUE(x) "+x"(x)
#elif FUSED_LSTM_VECTOR_BYTES == 16 && defined(__aarch64__)
#define FUSED_LSTM_OPAQUE(x) "+w"(x)
#else
#define FUSED_LSTM_OPAQUE(x) "+m"(x)
#endif

#if FUSED_LSTM_SIMD == 3

template <>
struct Vec<float> {
  using Element = float;
  static constexpr int kWidth = 16;
  __m512 v;
  static __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static FL_INLINE Vec set1(float x) { return {_mm512_set1_ps(x)}; }
  static FL_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static FL_INLINE Vec load(const float* p, int n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
  FL_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  FL_INLINE void store(float* p, int n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
};
FL_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm512_add_ps(a.v, b.v)}; }
FL_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm512_sub_ps(a.v, b.v)}; }
FL_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm512_mul_ps(a.v, b.v)}; }
FL_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
FL_INLINE Vec<float> fnma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}
// The second operand wins where either is NaN: clamp(bound, x) keeps NaN.
FL_INLINE Vec<float> vmin(Vec<float> a, Vec<float> b) { return {_mm512_min_ps(a.v, b.v)}; }
FL_INLINE Vec<float> vmax(Vec<float> a, Vec<float> b) { return {_mm512_max_ps(a.v, b.v)}; }
FL_INLINE Vec<float> fms(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm512_fmsub_ps(a.v, b.v, c.v)};
}
FL_INLINE Vec<float> absolute(Vec<float> x) { return {_mm512_abs_ps(x.v)}; }
// magnitude with the sign bit of x; magnitude >= 0 or NaN.
FL_INLINE Vec<float> with_sign_of(Vec<float> x, Vec<float> magnitude) {
  return {_mm512_or_ps(magnitude.v, _mm512_and_ps(x.v, _mm512_set1_ps(-0.0)))};
}
// value where |x| <= limit, else zero, as where x is NaN.
FL_INLINE Vec<float> within(Vec<float> x, Vec<float> limit, Vec<float> value) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(absolute(x).v, limit.v, _CMP_LE_OQ), value.v)};
}
// x * 2^n for an integral n.
FL_INLINE Vec<float> scale2(Vec<float> x, Vec<float> n) { return {_mm512_scalef_ps(x.v, n.v)}; }
// 1 / (x + low) with |low| below an ulp of x, within 1 ulp: the divider is slow at 512 bits, so a
// Newton step on an estimate of 14 bits.
FL_INLINE Vec<float> reciprocal(Vec<float> x, Vec<float> low) {
  const __m512 estimate = _mm512_rcp14_ps(x.v);
  const __m512 error = _mm512_fnmadd_ps(x.v, estimate, _mm512_set1_ps(1.0f));
  return {_mm512_fmadd_ps(estimate, _mm512_fnmadd_ps(low.v, estimate, error), estimate)};
}
// a / b to the last place: the estimate's error is taken from the exact remainder.
FL_INLINE Vec<float> quotient(Vec<float> a, Vec<float> b) {
  const __m512 estimate = _mm512_rcp14_ps(b.v);
  const __m512 first = _mm512_mul_ps(a.v, estimate);
  return {_mm512_fmadd_ps(_mm512_fnmadd_ps(first, b.v, a.v), estimate, first)};
}
// x * scale rounded to a multiple of 1/16, and 2^of that, as e (1 + low), from a table of the 16
// fractions: e's bits are those of 2^(k/16) plus n in the exponent, where k is the low four bits of
// the rounded sum and n what stands above them. |x * scale| < 126.
FL_INLINE Vec<float> table_power(Vec<float> x, Vec<float> scale, Vec<float>& e, Vec<float>& low) {
  // 2^(k/16) less k << 19, which the shift below brings in beside n.
  const __m512i high_bits =
      _mm512_setr_epi32(0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532,
                        0x3f75fed7, 0x3f75583f, 0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c,
                        0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d);
  // What 2^(k/16) loses in float, relatively.
  const __m512 low_part = _mm512_setr_ps(
      0.0f, 4.62854715e-08f, -1.19921575e-08f, 4.72978243e-08f, 3.19341815e-08f, 3.62105723e-08f,
      -3.09907193e-08f, -7.47521334e-09f, 1.71142709e-08f, -3.04768335e-08f, 5.23333421e-09f,
      6.10759177e-09f, -1.47196051e-08f, -5.25879518e-09f, -6.12825968e-09f, 5.14060927e-09f);
  const __m512 magic = _mm512_set1_ps(786432.0f);  // 1.5 * 2^19: its last place is 1/16
  __m512 shifted = _mm512_fmadd_ps(x.v, scale.v, magic);
  __asm__("" : FUSED_LSTM_OPAQUE(shifted));  // or the compiler may cancel magic
  const __m512i k = _mm512_castps_si512(shifted);
  e.v = _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_permutexvar_epi32(k, high_bits), _mm512_slli_epi32(k, 19)));
  low.v = _mm512_permutexvar_ps(k, low_part);
  return {_mm512_sub_ps(shifted, magic)};
}
FL_INLINE float sum(Vec<float> x) { return _mm512_reduce_add_ps(x.v); }

template <>
struct Vec<double> {
  using Element = double;
  static constexpr int kWidth = 8;
  __m512d v;
  static __mmask8 mask(int n) { return static_cast<__mmask8>((1u << n) - 1u); }
  static FL_INLINE Vec set1(double x) { return {_mm512_set1_pd(x)}; }
  static FL_INLINE Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static FL_INLINE Vec load(const double* p, int n) { return {_mm512_maskz_loadu_pd(mask(n), p)}; }
  FL_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
  FL_INLINE void store(double* p, int n) const { _mm512_mask_storeu_pd(p, mask(n), v); }
};
FL_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm512_add_pd(a.v, b.v)}; }
FL_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm512_sub_pd(a.v, b.v)}; }
FL_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm512_mul_pd(a.v, b.v)}; }
FL_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}
FL_INLINE Vec<double> fnma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm512_fnmadd_pd(a.v, b.v, c.v)};
}
FL_INLINE Vec<double> vmin(Vec<double> a, Vec<double> b) { return {_mm512_min_pd(a.v, b.v)}; }
FL_INLINE Vec<double> vmax(Vec<double> a, Vec<double> b) { return {_mm512_max_pd(a.v, b.v)}; }
FL_INLINE Vec<double> fms(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm512_fmsub_pd(a.v, b.v, c.v)};
}
FL_INLINE Vec<double> absolute(Vec<double> x) { return {_mm512_abs_pd(x.v)}; }
// magnitude with the sign bit of x; magnitude >= 0 or NaN.
FL_INLINE Vec<double> with_sign_of(Vec<double> x, Vec<double> magnitude) {
  return {_mm512_or_pd(magnitude.v, _mm512_and_pd(x.v, _mm512_set1_pd(-0.0)))};
}
FL_INLINE Vec<double> within(Vec<double> x, Vec<double> limit, Vec<double> value) {
  return {_mm512_maskz_mov_pd(_mm512_cmp_pd_mask(absolute(x).v, limit.v, _CMP_LE_OQ), value.v)};
}
FL_INLINE Vec<double> scale2(Vec<double> x, Vec<double> n) { return {_mm512_scalef_pd(x.v, n.v)}; }
FL_INLINE Vec<double> quotient(Vec<double> a, Vec<double> b) { return {_mm512_div_pd(a.v, b.v)}; }
FL_INLINE Vec<double> reciprocal(Vec<double> x, Vec<double> low) {
  const Vec<double> inverse = quotient(Vec<double>::set1(1), x);
  return fnma(low * inverse, inverse, inverse);
}
FL_INLINE double sum(Vec<double> x) { return _mm512_reduce_add_pd(x.v); }

FL_INLINE Vec<float> load_as(Tag<float>, const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
FL_INLINE Vec<float> load_as(Tag<float>, const Float16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
FL_INLINE Vec<float> load_as(Tag<float>, const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
FL_INLINE void store_as(Vec<float> x, BFloat16* p) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  rounded =
      _mm512_mask_or_epi32(rounded, nan, _mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}
FL_INLINE void store_as(Vec<float> x, Float16* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif FUSED_LSTM_SIMD == 2

template <>
struct Vec<float> {
  using Element = float;
  static constexpr int kWidth = 8;
  __m256 v;
  static FL_INLINE __m256i mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static FL_INLINE Vec set1(float x) { return {_mm256_set1_ps(x)}; }
  static FL_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static FL_INLINE Vec load(const float* p, int n) { return {_mm256_maskload_ps(p, mask(n))}; }
  FL_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  FL_INLINE void store(float* p, int n) const { _mm256_maskstore_ps(p, mask(n), v); }
};
FL_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm256_add_ps(a.v, b.v)}; }
FL_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm256_sub_ps(a.v, b.v)}; }
FL_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm256_mul_ps(a.v, b.v)}; }
FL_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
FL_INLINE Vec<float> fnma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm256_fnmadd_ps(a.v, b.v, c.v)};
}
FL_INLINE Vec<float> vmin(Vec<float> a, Vec<float> b) { return {_mm256_min_ps(a.v, b.v)}; }
FL_INLINE Vec<float> vmax(Vec<float> a, Vec<float> b) { return {_mm256_max_ps(a.v, b.v)}; }
FL_INLINE Vec<float> fms(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm256_fmsub_ps(a.v, b.v, c.v)};
}
FL_INLINE Vec<float> absolute(Vec<float> x) {
  return {_mm256_andnot_ps(_mm256_set1_ps(-0.0), x.v)};
}
FL_INLINE Vec<float> with_sign_of(Vec<float> x, Vec<float> magnitude) {
  return {_mm256_or_ps(magnitude.v, _mm256_and_ps(x.v, _mm256_set1_ps(-0.0)))};
}
FL_INLINE Vec<float> within(Vec<float> x, Vec<float> limit, Vec<float> value) {
  return {_mm256_and_ps(_mm256_cmp_ps(absolute(x).v, limit.v, _CMP_LE_OQ), value.v)};
}
// x * 2^n for an integral n in [-126, 127].
FL_INLINE Vec<float> scale2(Vec<float> x, Vec<float> n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_mul_ps(x.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))};
}
FL_INLINE Vec<float> quotient(Vec<float> a, Vec<float> b) { return {_mm256_div_ps(a.v, b.v)}; }
FL_INLINE Vec<float> reciprocal(Vec<float> x, Vec<float> low) {
  const Vec<float> inverse = quotient(Vec<float>::set1(1), x);
  return fnma(low * inverse, inverse, inverse);
}
FL_INLINE float sum(Vec<float> x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

template <>
struct Vec<double> {
  using Element = double;
  static constexpr int kWidth = 4;
  __m256d v;
  static FL_INLINE __m256i mask(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static FL_INLINE Vec set1(double x) { return {_mm256_set1_pd(x)}; }
  static FL_INLINE Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static FL_INLINE Vec load(const double* p, int n) { return {_mm256_maskload_pd(p, mask(n))}; }
  FL_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
  FL_INLINE void store(double* p, int n) const { _mm256_maskstore_pd(p, mask(n), v); }
};
FL_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm256_add_pd(a.v, b.v)}; }
FL_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm256_sub_pd(a.v, b.v)}; }
FL_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm256_mul_pd(a.v, b.v)}; }
FL_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}
FL_INLINE Vec<double> fnma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm256_fnmadd_pd(a.v, b.v, c.v)};
}
FL_INLINE Vec<double> vmin(Vec<double> a, Vec<double> b) { return {_mm256_min_pd(a.v, b.v)}; }
FL_INLINE Vec<double> vmax(Vec<double> a, Vec<double> b) { return {_mm256_max_pd(a.v, b.v)}; }
FL_INLINE Vec<double> fms(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm256_fmsub_pd(a.v, b.v, c.v)};
}
FL_INLINE Vec<double> absolute(Vec<double> x) {
  return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), x.v)};
}
FL_INLINE Vec<double> with_sign_of(Vec<double> x, Vec<double> magnitude) {
  return {_mm256_or_pd(magnitude.v, _mm256_and_pd(x.v, _mm256_set1_pd(-0.0)))};
}
FL_INLINE Vec<double> within(Vec<double> x, Vec<double> limit, Vec<double> value) {
  return {_mm256_and_pd(_mm256_cmp_pd(absolute(x).v, limit.v, _CMP_LE_OQ), value.v)};
}
FL_INLINE Vec<double> scale2(Vec<double> x, Vec<double> n) {  // n in [-1022, 1023]
  const __m256i exponent =
      _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n.v)), _mm256_set1_epi64x(1023));
  return {_mm256_mul_pd(x.v, _mm256_castsi256_pd(_mm256_slli_epi64(exponent, 52)))};
}
FL_INLINE Vec<double> quotient(Vec<double> a, Vec<double> b) { return {_mm256_div_pd(a.v, b.v)}; }
FL_INLINE Vec<double> reciprocal(Vec<double> x, Vec<double> low) {
  const Vec<double> inverse = quotient(Vec<double>::set1(1), x);
  return fnma(low * inverse, inverse, inverse);
}
FL_INLINE double sum(Vec<double> x) {
  const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(x.v), _mm256_extractf128_pd(x.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}

FL_INLINE Vec<float> load_as(Tag<float>, const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
FL_INLINE Vec<float> load_as(Tag<float>, const Float16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
FL_INLINE Vec<float> load_as(Tag<float>, const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
}
FL_INLINE void store_as(Vec<float> x, BFloat16* p) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(chosen, chosen), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
FL_INLINE void store_as(Vec<float> x, Float16* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#else  // vector extensions of GCC and clang

template <class Lane>
struct Vec {
  using Element = Lane;
  static constexpr int kWidth = FUSED_LSTM_VECTOR_BYTES / sizeof(Lane);
  typedef Lane Lanes __attribute__((vector_size(FUSED_LSTM_VECTOR_BYTES)));
  using Integer = std::conditional_t<sizeof(Lane) == 4, int32_t, int64_t>;
  typedef Integer Bits __attribute__((vector_size(FUSED_LSTM_VECTOR_BYTES)));
  Lanes v;
  // The sign bit of each lane, and its other bits.
  FL_INLINE Bits sign() const {
    return reinterpret_cast<Bits>(v) & std::numeric_limits<Integer>::min();
  }
  FL_INLINE Bits magnitude() const {
    return reinterpret_cast<Bits>(v) & std::numeric_limits<Integer>::max();
  }
  static FL_INLINE Vec set1(Lane x) { return {x - Lanes{}}; }
  static FL_INLINE Vec load(const Lane* p) {
    Vec r;
    __builtin_memcpy(&r.v, p, sizeof(Lanes));
    return r;
  }
  static FL_INLINE Vec load(const Lane* p, int n) {
    Vec r = set1(0);
    for (int i = 0; i < n; ++i) r.v[i] = p[i];
    return r;
  }
  FL_INLINE void store(Lane* p) const { __builtin_memcpy(p, &v, sizeof(Lanes)); }
  FL_INLINE void store(Lane* p, int n) const {
    for (int i = 0; i < n; ++i) p[i] = v[i];
  }
};
template <class E>
FL_INLINE Vec<E> operator+(Vec<E> a, Vec<E> b) {
  return {a.v + b.v};
}
template <class E>
FL_INLINE Vec<E> operator-(Vec<E> a, Vec<E> b) {
  return {a.v - b.v};
}
template <class E>
FL_INLINE Vec<E> operator*(Vec<E> a, Vec<E> b) {
  return {a.v * b.v};
}
template <class E>
FL_INLINE Vec<E> fma(Vec<E> a, Vec<E> b, Vec<E> c) {
  return {a.v * b.v + c.v};
}
template <class E>
FL_INLINE Vec<E> fnma(Vec<E> a, Vec<E> b, Vec<E> c) {
  return {c.v - a.v * b.v};
}
template <class E>
FL_INLINE Vec<E> vmin(Vec<E> a, Vec<E> b) {
  return {a.v < b.v ? a.v : b.v};
}
template <class E>
FL_INLINE Vec<E> vmax(Vec<E> a, Vec<E> b) {
  return {a.v > b.v ? a.v : b.v};
}
template <class E>
FL_INLINE Vec<E> fms(Vec<E> a, Vec<E> b, Vec<E> c) {
  return {a.v * b.v - c.v};
}
template <class E>
FL_INLINE Vec<E> absolute(Vec<E> x) {
  return {reinterpret_cast<typename Vec<E>::Lanes>(x.magnitude())};
}
template <class E>
FL_INLINE Vec<E> with_sign_of(Vec<E> x, Vec<E> magnitude) {
  using Bits = typename Vec<E>::Bits;
  return {reinterpret_cast<typename Vec<E>::Lanes>(x.sign() | reinterpret_cast<Bits>(magnitude.v))};
}
template <class E>
FL_INLINE Vec<E> within(Vec<E> x, Vec<E> limit, Vec<E> value) {
  return {absolute(x).v <= limit.v ? value.v : typename Vec<E>::Lanes{}};
}
template <class E>
FL_INLINE Vec<E> scale2(Vec<E> x, Vec<E> n) {
  using Bits = typename Vec<E>::Bits;
  constexpr int kBias = sizeof(E) == 4 ? 127 : 1023, kMantissa = sizeof(E) == 4 ? 23 : 52;
  const Bits exponent = (__builtin_convertvector(n.v, Bits) + kBias) << kMantissa;
  return {x.v * reinterpret_cast<typename Vec<E>::Lanes>(exponent)};
}
template <class E>
FL_INLINE Vec<E> quotient(Vec<E> a, Vec<E> b) {
  return {a.v / b.v};
}
template <class E>
FL_INLINE Vec<E> reciprocal(Vec<E> x, Vec<E> low) {
  const Vec<E> inverse = quotient(Vec<E>::set1(1), x);
  return fnma(low * inverse, inverse, inverse);
}
template <class E>
FL_INLINE E sum(Vec<E> x) {
  E total = 0;
  for (int i = 0; i < Vec<E>::kWidth; ++i) total += x.v[i];
  return total;
}

// Four stored halves or more, and as many 32-bit words as a vector has.
typedef uint16_t HalfBits __attribute__((vector_size(FUSED_LSTM_VECTOR_BYTES / 2)));
typedef uint32_t WordBits __attribute__((vector_size(FUSED_LSTM_VECTOR_BYTES)));
FL_INLINE Vec<float> load_as(Tag<float>, const BFloat16* p) {
  HalfBits bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  const WordBits words = __builtin_convertvector(bits, WordBits) << 16;
  return {reinterpret_cast<Vec<float>::Lanes>(words)};
}
FL_INLINE void store_as(Vec<float> x, BFloat16* p) {
  const WordBits bits = reinterpret_cast<WordBits>(x.v), high = bits >> 16;
  const WordBits rounded = (bits + (high & 1) + 0x7fff) >> 16;
  const HalfBits halves = __builtin_convertvector(x.v == x.v ? rounded : high | 0x40, HalfBits);
  __builtin_memcpy(p, &halves, sizeof(halves));
}
#if FUSED_LSTM_VECTOR_BYTES == 16 && defined(__aarch64__)
// Intrinsics, because GCC takes __builtin_convertvector to or from halves apart into lanes.
FL_INLINE Vec<float> load_as(Tag<float>, const Float16* p) {
  float16x4_t halves;
  __builtin_memcpy(&halves, p, sizeof(halves));
  return {reinterpret_cast<Vec<float>::Lanes>(vcvt_f32_f16(halves))};
}
FL_INLINE Vec<float> load_as(Tag<float>, const int8_t* p) {
  uint32_t four;
  __builtin_memcpy(&four, p, sizeof(four));
  const int8x8_t bytes = vreinterpret_s8_u32(vdup_n_u32(four));
  const int32x4_t words = vmovl_s16(vget_low_s16(vmovl_s8(bytes)));
  return {reinterpret_cast<Vec<float>::Lanes>(vcvtq_f32_s32(words))};
}
FL_INLINE void store_as(Vec<float> x, Float16* p) {
  const float16x4_t halves = vcvt_f16_f32(reinterpret_cast<float32x4_t>(x.v));
  __builtin_memcpy(p, &halves, sizeof(halves));
}
#else
FL_INLINE Vec<float> load_as(Tag<float>, const Float16* p) {
  Vec<float> r;
  for (int i = 0; i < Vec<float>::kWidth; ++i) r.v[i] = to_float(p[i]);
  return r;
}
FL_INLINE Vec<float> load_as(Tag<float>, const int8_t* p) {
  Vec<float> r;
  for (int i = 0; i < Vec<float>::kWidth; ++i) r.v[i] = p[i];
  return r;
}
FL_INLINE void store_as(Vec<float> x, Float16* p) {
  for (int i = 0; i < Vec<float>::kWidth; ++i) p[i] = from_float<Float16, float>(x.v[i]);
}
#endif

#endif

// The first or the second of two bfloat16 in each lane's 32 bits, as floats. A tile of 3x4 leaves
// one of 16 registers: there the second is loaded anew, and shifted twice, for a mask would take
// another.
FL_INLINE Vec<float> either_of_pairs(const BFloat16* p, bool second) {
  typedef uint32_t Bits __attribute__((vector_size(4 * Vec<float>::kWidth)));
  constexpr bool kFew = FUSED_LSTM_REGISTERS == 16;
  if (second && kFew) __asm__("" : "+r"(p));
  Bits pairs;
  __builtin_memcpy(&pairs, p, sizeof(pairs));
  if (second && !kFew) return {reinterpret_cast<decltype(Vec<float>::v)>(pairs & 0xffff0000u)};
  if (second) {
    pairs >>= 16;
    __asm__("" : FUSED_LSTM_OPAQUE(pairs));  // or the compiler makes a mask of it
  }
  return {reinterpret_cast<decltype(Vec<float>::v)>(pairs << 16)};
}

// Byte k of each lane's 32 bits, as floats; bytes are weights with 128 added.
FL_INLINE Vec<float> byte_of_quads(const int8_t* p, int k) {
  typedef uint32_t Bits __attribute__((vector_size(4 * Vec<float>::kWidth)));
  typedef int32_t Ints __attribute__((vector_size(4 * Vec<float>::kWidth)));
  typedef float Floats __attribute__((vector_size(4 * Vec<float>::kWidth)));
  Bits quads;
  __builtin_memcpy(&quads, p, sizeof(quads));
  const Ints value = reinterpret_cast<Ints>((quads ^ 0x80808080u) << (24 - 8 * k)) >> 24;
  return {reinterpret_cast<decltype(Vec<float>::v)>(__builtin_convertvector(value, Floats))};
}

// Lanes of yes whose byte has the bit, of no elsewhere.
template <class E>
FL_INLINE Vec<E> either_where(const uint8_t* bytes, uint8_t bit, Vec<E> yes, Vec<E> no) {
  constexpr int W = Vec<E>::kWidth;
#if FUSED_LSTM_SIMD == 3
  if constexpr (W == 16) {
    const __m128i set = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
    const __mmask16 mask = _mm_test_epi8_mask(set, _mm_set1_epi8(static_cast<char>(bit)));
    return {_mm512_mask_mov_ps(no.v, mask, yes.v)};
  }
#elif FUSED_LSTM_SIMD == 2
  if constexpr (W == 8) {
    const __m128i set = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
    const __m256i bits = _mm256_and_si256(_mm256_cvtepu8_epi32(set), _mm256_set1_epi32(bit));
    const __m256 mask = _mm256_castsi256_ps(_mm256_cmpeq_epi32(bits, _mm256_set1_epi32(bit)));
    return {_mm256_blendv_ps(no.v, yes.v, mask)};
  }
#endif
  alignas(64) E lanes[W], others[W];
  yes.store(others);
  no.store(lanes);
  for (int j = 0; j < W; ++j) lanes[j] = bytes[j] & bit ? others[j] : lanes[j];
  return Vec<E>::load(lanes);
}

#if FUSED_LSTM_PAIRS
// Two bfloat16 in each lane: acc + a.first * b.first + a.second * b.second.
#if FUSED_LSTM_SIMD == 3
FL_INLINE Vec<float> fma_pairs(Vec<float> a, Vec<float> b, Vec<float> acc) {
  return {
      _mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}
FL_INLINE Vec<float> from_bits(uint32_t bits) {
  return {_mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(bits)))};
}
#else
FL_INLINE Vec<float> fma_pairs(Vec<float> a, Vec<float> b, Vec<float> acc) {
  typedef uint32_t Bits __attribute__((vector_size(FUSED_LSTM_VECTOR_BYTES)));
  typedef Vec<float>::Lanes Lanes;
  const Bits x = reinterpret_cast<Bits>(a.v), y = reinterpret_cast<Bits>(b.v);
  const Lanes first = reinterpret_cast<Lanes>(x << 16) * reinterpret_cast<Lanes>(y << 16);
  const Lanes second =
      reinterpret_cast<Lanes>(x & 0xffff0000u) * reinterpret_cast<Lanes>(y & 0xffff0000u);
  return {acc.v + first + second};
}
FL_INLINE Vec<float> from_bits(uint32_t bits) {
  typedef uint32_t Bits __attribute__((vector_size(FUSED_LSTM_VECTOR_BYTES)));
  return {reinterpret_cast<Vec<float>::Lanes>(Bits{} + bits)};
}
#endif
FL_INLINE Vec<float> broadcast_pair(const BFloat16* p) {
  uint32_t bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return from_bits(bits);
}
FL_INLINE Vec<float> broadcast_first(const BFloat16* p) { return from_bits(p->bits); }
// kWidth pairs as they lie; n elements of them, zeros behind.
FL_INLINE Vec<float> load_pairs(const BFloat16* p) {
  Vec<float> r;
  __builtin_memcpy(&r.v, p, sizeof(r.v));
  return r;
}
#if FUSED_LSTM_SIMD == 3
FL_INLINE Vec<float> load_pairs(const BFloat16* p, int n) {
  const __mmask32 first = n < 32 ? (1U << n) - 1 : ~0U;
  return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(first, p))};
}
#else
FL_INLINE Vec<float> load_pairs(const BFloat16* p, int n) {
  BFloat16 elements[2 * Vec<float>::kWidth] = {};
  for (int i = 0; i < n; ++i) elements[i] = p[i];
  return load_pairs(elements);
}
#endif
#endif

// The type in which a product takes x and h: as stored where the processor multiplies it so,
// otherwise as computed.
template <class S, class E>
struct Operand {
  using type = E;
};
#if FUSED_LSTM_PAIRS
template <>
struct Operand<BFloat16, float> {
  using type = BFloat16;
};
#endif

// Whether Vec<E> has table_power().
template <class E>
constexpr bool has_power_table() {
  return FUSED_LSTM_SIMD == 3 && std::is_same<E, float>::value;
}

// a * b rounded to an integer, |a * b| far below 2^22 (2^51): the sum with 1.5 * 2^23 (1.5 * 2^52)
// has no bits left for a fraction.
template <class E>
FL_INLINE Vec<E> round_product(Vec<E> a, Vec<E> b) {
  const Vec<E> magic = Vec<E>::set1(sizeof(E) == 4 ? E(12582912.0) : E(6755399441055744.0));
  Vec<E> shifted = fma(a, b, magic);
  __asm__("" : FUSED_LSTM_OPAQUE(shifted.v));  // or the compiler may cancel magic
  return shifted - magic;
}

// Loads and stores between storage and compute formats; the format alone where they are the same.
FL_INLINE Vec<float> load_as(Tag<float>, const float* p) { return Vec<float>::load(p); }
FL_INLINE Vec<double> load_as(Tag<double>, const double* p) { return Vec<double>::load(p); }
FL_INLINE void store_as(Vec<float> x, float* p) { x.store(p); }
FL_INLINE void store_as(Vec<double> x, double* p) { x.store(p); }

// Stores a line, at a multiple of its size, past the caches: for what nobody will read for long. No
// line is fetched to be overwritten, none in use is displaced. Other threads may read it after
// finish_streams(). Where a vector is no line, it is an ordinary store.
#if FUSED_LSTM_SIMD == 3
FL_INLINE void stream_as(Vec<float> x, float* p) { _mm512_stream_ps(p, x.v); }
FL_INLINE void stream_as(Vec<double> x, double* p) { _mm512_stream_pd(p, x.v); }
FL_INLINE void finish_streams() { _mm_sfence(); }
#else
FL_INLINE void stream_as(Vec<float> x, float* p) { x.store(p); }
FL_INLINE void stream_as(Vec<double> x, double* p) { x.store(p); }
FL_INLINE void finish_streams() {}
#endif
template <class Half>
FL_INLINE void stream_as(Vec<float> x, Half* p) {
  store_as(x, p);
}

FL_INLINE Vec<float> load_as(Tag<float>, const float* p, int n) { return Vec<float>::load(p, n); }
FL_INLINE Vec<double> load_as(Tag<double>, const double* p, int n) {
  return Vec<double>::load(p, n);
}
template <class Half>
FL_INLINE Vec<float> load_as(Tag<float> tag, const Half* p, int n) {
  Half lanes[Vec<float>::kWidth] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load_as(tag, lanes);
}
FL_INLINE void store_as(Vec<float> x, float* p, int n) { x.store(p, n); }
FL_INLINE void store_as(Vec<double> x, double* p, int n) { x.store(p, n); }
template <class Half>
FL_INLINE void store_as(Vec<float> x, Half* p, int n) {
  Half lanes[Vec<float>::kWidth];
  store_as(x, lanes);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

// x in the first n lanes, zero behind them, whatever stood there.
template <class E>
FL_INLINE Vec<E> first_lanes(Vec<E> x, int n) {
  E lanes[Vec<E>::kWidth];
  x.store(lanes);
  return Vec<E>::load(lanes, n);
}

// N independent vectors that go through the same operations side by side. One cell is a chain of
// some 150 dependent cycles, longer than the processor's scheduler looks ahead: two or three chains
// in turn keep it busy.
template <class E, int N>
struct Rows {
  using Element = E;
  Vec<E> v[N];
  static FL_INLINE Rows set1(E x) {
    Rows r;
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) r.v[i] = Vec<E>::set1(x);
    return r;
  }
};
#define FUSED_LSTM_EACH(expression)                                          \
  Rows<E, N> r;                                                              \
  _Pragma("GCC unroll 4") for (int i = 0; i < N; ++i) r.v[i] = (expression); \
  return r
template <class E, int N>
FL_INLINE Rows<E, N> absolute(const Rows<E, N>& a) {
  FUSED_LSTM_EACH(absolute(a.v[i]));
}
template <class E, int N>
FL_INLINE Rows<E, N> operator+(const Rows<E, N>& a, const Rows<E, N>& b) {
  FUSED_LSTM_EACH(a.v[i] + b.v[i]);
}
template <class E, int N>
FL_INLINE Rows<E, N> operator-(const Rows<E, N>& a, const Rows<E, N>& b) {
  FUSED_LSTM_EACH(a.v[i] - b.v[i]);
}
template <class E, int N>
FL_INLINE Rows<E, N> operator*(const Rows<E, N>& a, const Rows<E, N>& b) {
  FUSED_LSTM_EACH(a.v[i] * b.v[i]);
}
template <class E, int N>
FL_INLINE Rows<E, N> vmin(const Rows<E, N>& a, const Rows<E, N>& b) {
  FUSED_LSTM_EACH(vmin(a.v[i], b.v[i]));
}
template <class E, int N>
FL_INLINE Rows<E, N> vmax(const Rows<E, N>& a, const Rows<E, N>& b) {
  FUSED_LSTM_EACH(vmax(a.v[i], b.v[i]));
}
template <class E, int N>
FL_INLINE Rows<E, N> scale2(const Rows<E, N>& a, const Rows<E, N>& b) {
  FUSED_LSTM_EACH(scale2(a.v[i], b.v[i]));
}
template <class E, int N>
FL_INLINE Rows<E, N> round_product(const Rows<E, N>& a, const Rows<E, N>& b) {
  FUSED_LSTM_EACH(round_product(a.v[i], b.v[i]));
}
template <class E, int N>
FL_INLINE Rows<E, N> reciprocal(const Rows<E, N>& a, const Rows<E, N>& b) {
  FUSED_LSTM_EACH(reciprocal(a.v[i], b.v[i]));
}
template <class E, int N>
FL_INLINE Rows<E, N> with_sign_of(const Rows<E, N>& a, const Rows<E, N>& b) {
  FUSED_LSTM_EACH(with_sign_of(a.v[i], b.v[i]));
}
template <class E, int N>
FL_INLINE Rows<E, N> fma(const Rows<E, N>& a, const Rows<E, N>& b, const Rows<E, N>& c) {
  FUSED_LSTM_EACH(fma(a.v[i], b.v[i], c.v[i]));
}
template <class E, int N>
FL_INLINE Rows<E, N> fnma(const Rows<E, N>& a, const Rows<E, N>& b, const Rows<E, N>& c) {
  FUSED_LSTM_EACH(fnma(a.v[i], b.v[i], c.v[i]));
}
template <class E, int N>
FL_INLINE Rows<E, N> fms(const Rows<E, N>& a, const Rows<E, N>& b, const Rows<E, N>& c) {
  FUSED_LSTM_EACH(fms(a.v[i], b.v[i], c.v[i]));
}
template <class E, int N>
FL_INLINE Rows<E, N> quotient(const Rows<E, N>& a, const Rows<E, N>& b) {
  FUSED_LSTM_EACH(quotient(a.v[i], b.v[i]));
}
template <class E, int N>
FL_INLINE Rows<E, N> table_power(const Rows<E, N>& x, const Rows<E, N>& scale, Rows<E, N>& e,
                                 Rows<E, N>& low) {
  FUSED_LSTM_EACH(table_power(x.v[i], scale.v[i], e.v[i], low.v[i]));
}
template <class E>
FL_INLINE Vec<E> opaque(Vec<E> x) {
  __asm__("" : FUSED_LSTM_OPAQUE(x.v));
  return x;
}
template <class E, int N>
FL_INLINE Rows<E, N> opaque(const Rows<E, N>& a) {
  FUSED_LSTM_EACH(opaque(a.v[i]));
}
#undef FUSED_LSTM_EACH
