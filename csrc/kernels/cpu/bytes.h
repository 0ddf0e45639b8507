// Products of x and h with 8-bit weights (../frozen.h) in integers, where a processor sums products
// of four bytes in one lane (AVX512_VNNI) or of two 16-bit integers (AVX2): weights then need
// little or no widening, which is what takes longest otherwise. A row of x or h becomes 16 bits of
// fixed point, element / unit rounded, where its largest element is kByteOne units; for products of
// bytes it is cut into two signed ones, 256 * high + low. Its error is 1.5e-5 of the largest; what
// rounding a weight does to the product with the largest is 250 times that. Rows whose largest is
// not finite, or so small that a unit would vanish, go by floats; so do rows of x of which more
// than a quarter lies below a 256th of the largest, for its weights may be zero, and exact.
#pragma once

#include <cstdint>

namespace fused_lstm {
namespace cpu {

constexpr int64_t kByteBlock = 16;  // elements of a row whose bytes lie together
constexpr float kByteOne = 127 * 256;
// Sums of more products of bytes than this may leave 32 bits.
constexpr int64_t kMostBytes = 1 << 15;

// Rows in fixed point: row r at data + r * row bytes, zeros behind its end: of 16-bit integers, or
// [block][high or low][16] of bytes. With those a lane sums (weight + 128) * byte, so it starts at
// -128 times the bytes' sum.
struct ByteRows {
  int8_t* data = nullptr;
  int64_t row = 0;
  int32_t* starts = nullptr;  // [rows][high or low]
  float* units = nullptr;     // [rows]; 0: the row has no fixed point

  ByteRows from(int64_t r) const {
    if (data == nullptr) return {};
    return {data + r * row, row, starts + 2 * r, units + r};
  }
};

// sums = rows times `groups` groups of 4 rows of a panel, [group][4 gates][16 units][4]:
// [rows][4][16] or, where vectors have 8 lanes, [rows][4][8] for the first 8 units and at `strip`
// for the others.
struct ByteProduct {
  void (*run)(const uint8_t* weights, int64_t groups, const ByteRows& a, int64_t rows, float* sums,
              int64_t strip) = nullptr;
  bool halves = false;  // takes 16-bit integers
};

// That of this processor for the active instruction set; none: null.
ByteProduct active_byte_product();

ByteProduct avx512vnni_byte_product();  // null where this build or architecture has none
ByteProduct avx2_byte_product();        // likewise
// The first in plain C++, for the emulated vectors.
ByteProduct plain_byte_product();

}  // namespace cpu
}  // namespace fused_lstm
