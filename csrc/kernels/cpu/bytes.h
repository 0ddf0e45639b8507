// Products of h with 8-bit weights (../frozen.h) in integers, where a processor sums products of
// four bytes in one lane (AVX512_VNNI): weights then need no widening, which is what takes longest
// otherwise. A row of h becomes 16 bits of fixed point in two signed bytes, 256 * high + low =
// h / unit rounded, where its largest element is kByteOne units. Its error, 1.5e-5 of the largest,
// is a 250th of what rounding the weights costs. Rows whose largest is not finite, or so small that
// a unit would vanish, go by floats.
#pragma once

#include <cstdint>

namespace fused_lstm {
namespace cpu {

constexpr int64_t kByteBlock = 16;  // elements of a row of h whose bytes lie together
constexpr float kByteOne = 127 * 256;
// Sums of more products than this may leave 32 bits.
constexpr int64_t kMostBytes = 1 << 15;

// h as bytes: row r at data + r * row, [block][high or low][16], zeros behind its end. A lane sums
// (weight + 128) * byte, so it starts at -128 times the bytes' sum.
struct ByteRows {
  const int8_t* data;
  int64_t row;
  const int32_t* starts;  // [rows][high or low]
  const float* units;     // [rows]
};

// sums [rows][4][16] = rows of h times `groups` groups of 4 rows of a panel of W_hh,
// [group][4 gates][16 units][4].
using ByteProduct = void (*)(const uint8_t* weights, int64_t groups, const ByteRows& h,
                             int64_t rows, float* sums);

// That of this processor for the active instruction set, or null.
ByteProduct active_byte_product();

ByteProduct avx512vnni_byte_product();  // null where this build or architecture has none
// The same in plain C++, for the emulated vectors.
void plain_byte_product(const uint8_t* weights, int64_t groups, const ByteRows& h, int64_t rows,
                        float* sums);

}  // namespace cpu
}  // namespace fused_lstm
