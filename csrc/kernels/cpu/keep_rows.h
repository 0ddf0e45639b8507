// Zoneout's random bits (../random.h) by vectors: a lane draws four units' words, one round of
// Philox after the other. Included inside an ISA's namespace; sets without 32-bit integer vectors
// draw a quad at a time (keep_bits.cpp).

#if FUSED_LSTM_SIMD >= 2

#if FUSED_LSTM_SIMD == 3
struct Words {
  static constexpr int kWidth = 16;
  __m512i v;
  static FL_INLINE Words set1(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
  static FL_INLINE Words load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
  FL_INLINE void store(uint8_t* p) const { _mm512_storeu_si512(p, v); }
};
FL_INLINE Words operator+(Words a, Words b) { return {_mm512_add_epi32(a.v, b.v)}; }
FL_INLINE Words operator|(Words a, Words b) { return {_mm512_or_si512(a.v, b.v)}; }
FL_INLINE Words operator^(Words a, Words b) { return {_mm512_xor_si512(a.v, b.v)}; }
FL_INLINE Words low_half(Words a) { return {_mm512_and_si512(a.v, Words::set1(0xffff).v)}; }
FL_INLINE Words high_half(Words a) { return {_mm512_srli_epi32(a.v, 16)}; }
// bit where a < bound, both below 2^17.
FL_INLINE Words bit_below(Words a, Words bound, uint32_t bit) {
  return {_mm512_maskz_mov_epi32(_mm512_cmplt_epi32_mask(a.v, bound.v), Words::set1(bit).v)};
}
// Both halves of a * m.
FL_INLINE void multiply_words(Words a, Words m, Words& high, Words& low) {
  const __m512i even = _mm512_mul_epu32(a.v, m.v);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), m.v);
  low.v = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  high.v = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
}
#else
struct Words {
  static constexpr int kWidth = 8;
  __m256i v;
  static FL_INLINE Words set1(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
  static FL_INLINE Words load(const uint32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
  FL_INLINE void store(uint8_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
};
FL_INLINE Words operator+(Words a, Words b) { return {_mm256_add_epi32(a.v, b.v)}; }
FL_INLINE Words operator|(Words a, Words b) { return {_mm256_or_si256(a.v, b.v)}; }
FL_INLINE Words operator^(Words a, Words b) { return {_mm256_xor_si256(a.v, b.v)}; }
FL_INLINE Words low_half(Words a) { return {_mm256_and_si256(a.v, Words::set1(0xffff).v)}; }
FL_INLINE Words high_half(Words a) { return {_mm256_srli_epi32(a.v, 16)}; }
// bit where a < bound, both below 2^17.
FL_INLINE Words bit_below(Words a, Words bound, uint32_t bit) {
  return {_mm256_and_si256(_mm256_cmpgt_epi32(bound.v, a.v), Words::set1(bit).v)};
}
// Both halves of a * m.
FL_INLINE void multiply_words(Words a, Words m, Words& high, Words& low) {
  const __m256i even = _mm256_mul_epu32(a.v, m.v);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a.v, 32), m.v);
  low.v = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  high.v = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
}
#endif

// The bytes of row b at step t.
inline void keep_row(const KeepBits& bits, uint32_t t, uint32_t b, uint8_t* keep) {
  static const uint32_t kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Words first = Words::load(kLanes), m0 = Words::set1(0xd2511f53u),
              m2 = Words::set1(0xcd9e8d57u), h = Words::set1(bits.h), c = Words::set1(bits.c);
  constexpr int64_t kUnits = 4 * Words::kWidth;
  for (int64_t u = 0; u < bits.U; u += kUnits) {
    Words w[4] = {first + Words::set1(static_cast<uint32_t>(u / 4)), Words::set1(b), Words::set1(t),
                  Words::set1(bits.stream)};
    uint32_t key0 = static_cast<uint32_t>(bits.key), key1 = static_cast<uint32_t>(bits.key >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      Words high0, low0, high2, low2;
      multiply_words(w[0], m0, high0, low0);
      multiply_words(w[2], m2, high2, low2);
      w[0] = high2 ^ w[1] ^ Words::set1(key0);
      w[1] = low2;
      w[2] = high0 ^ w[3] ^ Words::set1(key1);
      w[3] = low0;
      key0 += 0x9e3779b9u;
      key1 += 0xbb67ae85u;
    }
    // Unit k of a lane's four is its byte k.
    Words bytes = Words::set1(0);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      bytes = bytes | bit_below(low_half(w[k]), h, uint32_t{kKeepH} << (8 * k)) |
              bit_below(high_half(w[k]), c, uint32_t{kKeepC} << (8 * k));
    }
    if (bits.U - u >= kUnits) {
      bytes.store(keep + u);
    } else {
      uint8_t last[kUnits];
      bytes.store(last);
      std::memcpy(keep + u, last, static_cast<size_t>(bits.U - u));
    }
  }
}
constexpr auto kKeepRow = keep_row;
#else
constexpr auto kKeepRow = nullptr;
#endif
