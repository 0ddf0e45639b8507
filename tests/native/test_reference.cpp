// The reference itself: its backward against central differences of its forward in float64, packed
// rows against each sequence alone, a cell computed by hand, and its 16-bit rounding.
#include <cmath>
#include <limits>

#include "suite.h"

using fused_lstm::DType;
using reference::Values;

namespace {

double dot(const Values& a, const double* b, int64_t count) {
  double sum = 0.0;
  for (int64_t k = 0; b != nullptr && k < count; ++k) sum += a[k] * b[k];
  return sum;
}

// The scalar whose gradients backward() returns; dense float64 incoming gradients.
double loss(const Data& data) {
  const fused_lstm::Problem& p = data.problem;
  const reference::Forward f = reference::forward(p);
  const auto* dy = static_cast<const double*>(data.incoming.dy);
  return dot(f.y, dy, data.rows * p.D * p.P) +
         dot(f.h_n, static_cast<const double*>(data.incoming.dh_n), p.D * p.B * p.P) +
         dot(f.c_n, static_cast<const double*>(data.incoming.dc_n), p.D * p.B * p.H);
}

void check_array(Suite& suite, const Data& data, const std::string& name, const void* array,
                 const reference::Gradient& gradient) {
  if (array == nullptr) return;
  auto* values = static_cast<double*>(const_cast<void*>(array));
  constexpr double kStep = 1e-5;  // truncation 1e-10, cancellation 1e-11
  Values differences(gradient.sum.size());
  for (size_t k = 0; k < differences.size(); ++k) {
    const double kept = values[k];
    values[k] = kept + kStep;
    const double above = loss(data);
    values[k] = kept - kStep;
    differences[k] = (above - loss(data)) / (2 * kStep);
    values[k] = kept;
  }
  suite.expect_close(name, differences, gradient.sum, 1e-7);
}

void check_differences(Suite& suite, const Case& c) {
  suite.begin(c);
  const Data data(c);
  const fused_lstm::Problem& p = data.problem;
  const reference::Backward g = reference::backward(p, data.incoming);
  check_array(suite, data, "dx", p.x, g.dx);
  check_array(suite, data, "dh0", p.h0, g.dh0);
  check_array(suite, data, "dc0", p.c0, g.dc0);
  for (int32_t d = 0; d < p.D; ++d) {
    const auto& w = p.weights[d];
    check_array(suite, data, "dw_ih", w.w_ih, g.weights[d].dw_ih);
    check_array(suite, data, "dw_hh", w.w_hh, g.weights[d].dw_hh);
    check_array(suite, data, "db (b_ih)", w.b_ih, g.weights[d].db);
    check_array(suite, data, "db (b_hh)", w.b_hh, g.weights[d].db);
    check_array(suite, data, "dw_hr", w.w_hr, g.weights[d].dw_hr);
  }
  suite.end();
}

// One unit, one step, numbers small enough to check with a pocket calculator.
void check_by_hand(Suite& suite) {
  suite.begin("one cell by hand");
  const double x[] = {2.0}, h0[] = {0.5}, c0[] = {-1.0}, w_ih[] = {0.1, 0.2, 0.3, 0.4},
               w_hh[] = {1.0, -1.0, 0.5, 2.0}, bias[] = {0.0, 0.1, 0.0, -0.8};
  fused_lstm::Problem p;
  p.dtype = DType::kFloat64;
  p.T = p.B = p.I = p.H = p.P = 1;
  p.x = x;
  p.x_t = p.x_b = 1;
  p.h0 = h0;
  p.c0 = c0;
  p.weights[0] = {w_ih, w_hh, bias, nullptr, nullptr};
  const reference::Forward f = reference::forward(p);
  // i = sigmoid(0.7), f = sigmoid(0), g = tanh(0.85), o = sigmoid(1.0)
  const double c = 0.5 * -1.0 + 0.6681877721681662 * 0.6910694698329307;
  suite.expect_close("c_n", {c}, f.c_n, 1e-14);
  suite.expect_close("h_n", {0.7310585786300049 * std::tanh(c)}, f.h_n, 1e-14);
  suite.end();
}

void check_packed(Suite& suite, Case c) {
  c.packed = 1;
  suite.begin(c);
  const Data data(c);
  const fused_lstm::Problem& p = data.problem;
  const reference::Forward all = reference::forward(p);
  for (int64_t b = 0; b < c.B; ++b) {
    fused_lstm::Problem one = p;
    one.B = 1;
    one.batch_sizes = nullptr;
    one.T = 0;
    Values x, y, h0, c0, h_n, c_n;
    int64_t offset = 0;
    for (int64_t t = 0; t < c.T && p.batch_sizes[t] > b; offset += p.batch_sizes[t++]) {
      const auto* row = static_cast<const double*>(p.x) + (offset + b) * p.x_b;
      x.insert(x.end(), row, row + c.I);
      const double* out = &all.y[(offset + b) * p.D * p.P];
      y.insert(y.end(), out, out + p.D * p.P);
      ++one.T;
    }
    for (int32_t d = 0; d < p.D; ++d) {
      const auto* h = static_cast<const double*>(p.h0) + (d * c.B + b) * p.P;
      const auto* cell = static_cast<const double*>(p.c0) + (d * c.B + b) * p.H;
      h0.insert(h0.end(), h, h + p.P);
      c0.insert(c0.end(), cell, cell + p.H);
      const double* h_last = &all.h_n[(d * c.B + b) * p.P];
      const double* c_last = &all.c_n[(d * c.B + b) * p.H];
      h_n.insert(h_n.end(), h_last, h_last + p.P);
      c_n.insert(c_n.end(), c_last, c_last + p.H);
    }
    one.x = x.data();
    one.x_t = one.x_b = c.I;
    one.h0 = h0.data();
    one.c0 = c0.data();
    const reference::Forward alone = reference::forward(one);
    suite.expect(alone.y == y, "y of a packed row differs from the sequence alone");
    suite.expect(alone.h_n == h_n, "h_n of a packed row differs from the sequence alone");
    suite.expect(alone.c_n == c_n, "c_n of a packed row differs from the sequence alone");
  }
  suite.end();
}

void check_rounding(Suite& suite) {
  struct Row {
    DType dtype;
    double value, want;
  };
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const Row rows[] = {
      {DType::kBFloat16, 1.00390625, 1.0},       // a tie goes to even
      {DType::kBFloat16, 1.01171875, 1.015625},  // and here up
      {DType::kBFloat16, 3.5e38, kInfinity},
      {DType::kBFloat16, -3.38e38, -3.3761e38},
      {DType::kFloat16, 65519.0, 65504.0},
      {DType::kFloat16, 65520.0, kInfinity},
      {DType::kFloat16, 0x1p-24, 0x1p-24},
      {DType::kFloat16, 0x1p-25, 0.0},
      {DType::kFloat16, 0x1.8p-24, 0x1p-23},
      {DType::kFloat16, 1.00048828125, 1.0},
      {DType::kFloat16, -0.333251953125, -0.333251953125},
      {DType::kFloat16, 0x1.ffep-15, 0x1p-14},  // rounds up into the normal numbers
  };
  suite.begin("rounding to 16 bits");
  for (const Row& row : rows) {
    uint16_t bits = 0;
    reference::store(row.dtype, &bits, 0, row.value);
    const double got = reference::load(row.dtype, &bits, 0);
    const bool close = std::isinf(row.want)
                           ? got == row.want
                           : std::fabs(got - row.want) <= 1e-4 * std::fabs(row.want);
    const bool exact = std::fabs(row.want) > 1e38 || got == row.want;
    suite.expect(close && exact, std::to_string(row.value) + " became " + std::to_string(got));
    suite.expect(reference::rounded(row.dtype, row.value) == got, "rounded() differs from store()");
  }
  // Every 16-bit pattern survives reading and writing.
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (uint32_t pattern = 0; pattern < 0x10000; ++pattern) {
      const auto bits = static_cast<uint16_t>(pattern);
      const double value = reference::load(dtype, &bits, 0);
      uint16_t back = 0;
      reference::store(dtype, &back, 0, value);
      if (!std::isnan(value) && back != bits) suite.expect(false, std::to_string(pattern));
    }
  }
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_reference");
  const auto float64 = static_cast<int64_t>(DType::kFloat64);
  Random random(static_cast<uint64_t>(suite.seed()) + 2000);
  if (suite.single()) {
    check_differences(suite, suite.single_case());
    return suite.finish();
  }
  check_by_hand(suite);
  check_rounding(suite);
  for (int64_t k = 0; k < 40; ++k) {
    Case c = random_case(random, float64);
    c.T = 1 + random.below(4);
    c.B = 1 + random.below(3);
    c.I = 1 + random.below(3);
    c.H = 1 + random.below(4);
    c.P = k % 3 == 0 && c.H > 1 ? 1 + random.below(c.H - 1) : 0;
    c.x_layout = c.dy_layout = kDense;
    check_differences(suite, c);
    c.h0 = c.c0 = 1;
    check_packed(suite, c);
  }
  return suite.finish();
}
