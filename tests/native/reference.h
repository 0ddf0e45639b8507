// The LSTM these tests believe in: one layer, forward and backward, in double precision and plain
// loops, over the same Problem and Gradients structs as the kernels. It is slow and obvious on
// purpose, shares no line with csrc/kernels, and its backward is checked against finite differences
// of its forward in test_reference.cpp before it judges anything else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lstm.h"

namespace reference {

using Values = std::vector<double>;

// Storage of one element: bytes, reading, and writing rounded to nearest even.
size_t element_size(fused_lstm::DType dtype);
double load(fused_lstm::DType dtype, const void* data, int64_t index);
void store(fused_lstm::DType dtype, void* data, int64_t index, double value);
// The nearest value that dtype can hold.
double rounded(fused_lstm::DType dtype, double value);

// Number of rows of x and y: T*B, or the sum of batch_sizes.
int64_t row_count(const fused_lstm::Problem& problem);
// Rows that are active at step t.
int64_t active_rows(const fused_lstm::Problem& problem, int64_t t);

// A whole contiguous array as doubles; zeros when data is null.
Values read_all(fused_lstm::DType dtype, const void* data, int64_t count);
// Rows [rows, features] of a strided [T, B, features] (packed: [N, features]) array as doubles.
Values read_rows(const fused_lstm::Problem& problem, const void* data, int64_t stride_t,
                 int64_t stride_b, int64_t features);

struct Forward {
  Values y;      // [rows, D*P]
  Values h_n;    // [D, B, P]
  Values c_n;    // [D, B, H]
  Values cells;  // [rows, D*H]
};

// What the marks of row b say of step t; neither without marks.
bool ended(const fused_lstm::Problem& problem, int64_t t, int64_t b);
bool resets(const fused_lstm::Problem& problem, int64_t t, int64_t b);

// What the gates read of a factor times h: the product as computed, or rounded to the problem's
// dtype, where kernels multiply operands as they are stored.
enum class Scaled { kComputed, kStored };

// h is rounded to the problem's dtype before the next step reads it, as it is in y.
Forward forward(const fused_lstm::Problem& problem, Scaled scaled = Scaled::kComputed);

// A gradient is a sum of many terms. Where they cancel, the sum is known no better than its terms
// are, so beside it stands what it would be if they had random signs: the measure for its error.
struct Gradient {
  Values sum;
  Values squares;  // sums of the squared terms

  void reset(int64_t count);
  void add(int64_t index, double term) {
    sum[index] += term;
    squares[index] += term * term;
  }
  // The largest finite |sum| or root of squares.
  double size() const;
};

struct Backward {
  Gradient dx;   // [rows, I]
  Gradient dh0;  // [D, B, P]
  Gradient dc0;  // [D, B, H]
  struct {
    Gradient dw_ih;  // [4H, I]
    Gradient dw_hh;  // [4H, P]
    Gradient db;     // [4H]
    Gradient dw_hr;  // [P, H], empty without w_hr
  } weights[2];

  // In the order dx dh0 dc0 dw_ih dw_hh db dw_hr, then the last four of the reverse direction.
  const Gradient& operator[](int k) const;
};

// Reads dy, dh_n, dc_n and dcells of incoming (null: zeros) and computes every gradient.
// The gates are rounded to the problem's dtype, as forward stores them for backward; c is not.
// Where a step meets the same values again and again, what that costs does not average out, and no
// tolerance for single roundings would hold.
Backward backward(const fused_lstm::Problem& problem, const fused_lstm::Gradients& incoming);

}  // namespace reference
