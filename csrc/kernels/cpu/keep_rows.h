// Zoneout's random bits (../random.h) by vectors: a lane draws four units' words, one round of
// Philox after the other. A word lies in the lower half of 64 bits all along, where a product
// leaves one; what is in the upper half no product reads. So quads of units go by two vectors,
// those of even numbers and those of odd ones. Included inside an ISA's namespace; sets without
// 32-bit integer vectors draw a quad at a time (keep_bits.cpp).

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
// Of lower halves, 64 bits each.
FL_INLINE Words product(Words a, Words m) { return {_mm512_mul_epu32(a.v, m.v)}; }
FL_INLINE Words upper(Words a) { return {_mm512_srli_epi64(a.v, 32)}; }
FL_INLINE Words lower_halves(Words even, Words odd) {
  return {_mm512_mask_blend_epi32(0xaaaa, even.v, _mm512_slli_epi64(odd.v, 32))};
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
// Of lower halves, 64 bits each.
FL_INLINE Words product(Words a, Words m) { return {_mm256_mul_epu32(a.v, m.v)}; }
FL_INLINE Words upper(Words a) { return {_mm256_srli_epi64(a.v, 32)}; }
FL_INLINE Words lower_halves(Words even, Words odd) {
  return {_mm256_blend_epi32(even.v, _mm256_slli_epi64(odd.v, 32), 0xaa)};
}
#endif

// The bytes of row b at step t.
inline void keep_row(const KeepBits& bits, uint32_t t, uint32_t b, uint8_t* keep) {
  static const uint32_t kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Words first = Words::load(kLanes), m0 = Words::set1(0xd2511f53u),
              m2 = Words::set1(0xcd9e8d57u), h = Words::set1(bits.h), c = Words::set1(bits.c);
  constexpr int64_t kUnits = 4 * Words::kWidth;
  for (int64_t u = 0; u < bits.U; u += kUnits) {
    const Words quads = first + Words::set1(static_cast<uint32_t>(u / 4));
    Words w[2][4] = {{quads, Words::set1(b), Words::set1(t), Words::set1(bits.stream)},
                     {upper(quads), Words::set1(b), Words::set1(t), Words::set1(bits.stream)}};
    uint32_t key0 = static_cast<uint32_t>(bits.key), key1 = static_cast<uint32_t>(bits.key >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 2
      for (int odd = 0; odd < 2; ++odd) {
        Words* v = w[odd];
        const Words p0 = product(v[0], m0), p2 = product(v[2], m2);
        v[0] = upper(p2) ^ v[1] ^ Words::set1(key0);
        v[1] = p2;
        v[2] = upper(p0) ^ v[3] ^ Words::set1(key1);
        v[3] = p0;
      }
      key0 += 0x9e3779b9u;
      key1 += 0xbb67ae85u;
    }
    // Unit k of a lane's four is its byte k.
    Words bytes = Words::set1(0);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Words word = lower_halves(w[0][k], w[1][k]);
      bytes = bytes | bit_below(low_half(word), h, uint32_t{kKeepH} << (8 * k)) |
              bit_below(high_half(word), c, uint32_t{kKeepC} << (8 * k));
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
