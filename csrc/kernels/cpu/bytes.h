// Products of x and h with 8-bit weights (../frozen.h) in integers, where a processor sums products
// of four bytes in one lane (AVX512_VNNI): weights then need no widening, which is what takes
// longest otherwise. A row of x or h becomes 16 bits of fixed point in two signed bytes, 256 * high
// + low = element / unit rounded, where its largest element is kByteOne units. Its error is 1.5e-5
// of the largest; what rounding a weight does to the product with the largest is 250 times that.
// Rows whose largest is not finite, or so small that a unit would vanish, go by floats.
#pragma once

#include <cstdint>

namespace fused_lstm {
namespace cpu {

constexpr int64_t kByteBlock = 16;  // elements of a row whose bytes lie together
constexpr float kByteOne = 127 * 256;
// Sums of more products than this may leave 32 bits.
constexpr int64_t kMostBytes = 1 << 15;

// Rows as bytes: row r at data + r * row, [block][high or low][16], zeros behind its end. A lane
// sums (weight + 128) * byte, so it starts at -128 times the bytes' sum.
struct ByteRows {
  int8_t* data = nullptr;
  int64_t row = 0;
  int32_t* starts = nullptr;  // [rows][high or low]
  float* units = nullptr;     // [rows]; 0: the row is none of bytes

  ByteRows from(int64_t r) const { return {data + r * row, row, starts + 2 * r, units + r}; }
};

// sums [rows][4][16] = rows times `groups` groups of 4 rows of a panel, [group][4 gates][16
// units][4].
using ByteProduct = void (*)(const uint8_t* weights, int64_t groups, const ByteRows& a,
                             int64_t rows, float* sums);

// That of this processor for the active instruction set, or null.
ByteProduct active_byte_product();

ByteProduct avx512vnni_byte_product();  // null where this build or architecture has none
// The same in plain C++, for the emulated vectors.
void plain_byte_product(const uint8_t* weights, int64_t groups, const ByteRows& a, int64_t rows,
                        float* sums);

}  // namespace cpu
}  // namespace fused_lstm
