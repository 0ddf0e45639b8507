// The kernel on packed rows against the same kernel on each sequence alone, every gradient
// included: a promise of PackedSequence that the comparison with the reference tests only within a
// tolerance.
#include <algorithm>
#include <cmath>

#include "run.h"
#include "suite.h"

using fused_lstm::Problem;
using reference::Values;

namespace {

// Rows of sequence b in a packed [rows, features] array.
Values rows_of(const Problem& p, const Values& all, int64_t b, int64_t features) {
  Values rows;
  int64_t offset = 0;
  for (int64_t t = 0; t < p.T && p.batch_sizes[t] > b; offset += p.batch_sizes[t++]) {
    const double* row = &all[(offset + b) * features];
    rows.insert(rows.end(), row, row + features);
  }
  return rows;
}

// Row b of every direction of a [D, B, features] array.
Values state_of(const Problem& p, const Values& all, int64_t b, int64_t features) {
  Values rows;
  for (int32_t d = 0; d < p.D; ++d) {
    const double* row = &all[(d * p.B + b) * features];
    rows.insert(rows.end(), row, row + features);
  }
  return rows;
}

double largest(const Values& values) {
  double result = 0.0;
  for (double value : values) result = std::max(result, std::fabs(value));
  return result;
}

// Writes values into an input of the case of one sequence.
void set_input(Data& data, const void* array, const Values& values) {
  for (size_t k = 0; array != nullptr && k < values.size(); ++k) {
    reference::store(data.problem.dtype, const_cast<void*>(array), static_cast<int64_t>(k),
                     values[k]);
  }
}

void check(Suite& suite, const Case& c) {
  suite.begin(c);
  const Data data(c);
  const Problem& p = data.problem;
  const auto read = [&](const Guarded& array, int64_t count) {
    return reference::read_all(p.dtype, array.data(), count);
  };
  const ForwardRun all = run_forward(c, data, true, 0xff);
  if (all.status == fused_lstm::Status::kUnsupported) {
    suite.unsupported();
    suite.end();
    return;
  }
  const BackwardRun back = run_backward(c, data, all, 0xff);
  const Values y = reference::read_rows(p, all.y->data(), 0, all.y_strides.b, p.D * p.P);
  const Values x = reference::read_rows(p, p.x, 0, p.x_b, p.I);
  const Values dy = reference::read_rows(p, data.incoming.dy, 0, data.incoming.dy_b, p.D * p.P);
  Values weight_sums[kGradients];
  double part_sizes[kGradients] = {};  // sum of the largest |gradient| of each sequence
  for (int64_t b = 0; b < c.B; ++b) {
    Case alone = c;
    alone.packed = alone.x_layout = alone.y_layout = alone.dy_layout = 0;
    alone.B = 1;
    alone.T = static_cast<int64_t>(rows_of(p, x, b, p.I).size()) / p.I;
    Data one(alone);
    for (int32_t d = 0; d < p.D; ++d) one.problem.weights[d] = p.weights[d];
    const auto state = [&](const void* array, int64_t features) {
      return state_of(p, reference::read_all(p.dtype, array, p.D * p.B * features), b, features);
    };
    set_input(one, one.problem.x, rows_of(p, x, b, p.I));
    set_input(one, one.problem.h0, state(p.h0, p.P));
    set_input(one, one.problem.c0, state(p.c0, p.H));
    set_input(one, one.incoming.dy, rows_of(p, dy, b, p.D * p.P));
    set_input(one, one.incoming.dh_n, state(data.incoming.dh_n, p.P));
    set_input(one, one.incoming.dc_n, state(data.incoming.dc_n, p.H));
    const ForwardRun f = run_forward(alone, one, true, 0xff);
    const BackwardRun g = run_backward(alone, one, f, 0xff);
    const double tolerance = forward_tolerance(c), gradient = gradient_tolerance(c);
    const auto expect_rows = [&](const char* name, const Values& whole, const Guarded& got,
                                 int64_t features, double allowed) {
      suite.expect_close(name, rows_of(p, whole, b, features), read(got, alone.T * features),
                         allowed, largest(whole));
    };
    const auto expect_state = [&](const char* name, const Guarded& whole, const Guarded& got,
                                  int64_t features, double allowed) {
      const Values values = read(whole, p.D * p.B * features);
      suite.expect_close(name, state_of(p, values, b, features), read(got, p.D * features), allowed,
                         largest(values));
    };
    expect_rows("y", y, *f.y, p.D * p.P, tolerance);
    expect_rows("dx", read(*back.gradients[0], data.rows * p.I), *g.gradients[0], p.I, gradient);
    expect_state("h_n", *all.h_n, *f.h_n, p.P, tolerance);
    expect_state("c_n", *all.c_n, *f.c_n, p.H, tolerance);
    expect_state("dh0", *back.gradients[1], *g.gradients[1], p.P, gradient);
    expect_state("dc0", *back.gradients[2], *g.gradients[2], p.H, gradient);
    for (int k = 3; k < kGradients; ++k) {
      if (!g.gradients[k]) continue;
      const Values part = read(*g.gradients[k], gradient_size(p, data.rows, k));
      weight_sums[k].resize(part.size(), 0.0);
      for (size_t j = 0; j < part.size(); ++j) weight_sums[k][j] += part[j];
      part_sizes[k] += largest(part);
    }
  }
  for (int k = 3; k < kGradients; ++k) {
    if (!back.gradients[k]) continue;
    // Each part was rounded to storage by itself, and parts may cancel in the sum.
    suite.expect_close(kGradientNames[k], weight_sums[k],
                       read(*back.gradients[k], gradient_size(p, data.rows, k)),
                       gradient_tolerance(c), part_sizes[k]);
  }
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_packed");
  if (suite.single()) {
    check(suite, suite.single_case());
    return suite.finish();
  }
  Random random(static_cast<uint64_t>(suite.seed()) + 4000);
  for (int64_t isa : suite.isas()) {
    for (int64_t dtype = 0; dtype < 4; ++dtype) {
      for (int64_t k = 0; k < suite.random_cases(10); ++k) {
        Case c = random_case(random, dtype);
        c.packed = 1;
        c.T = random.pick({2, 5, 7, 12});
        c.isa = isa;
        draw_run(random, c);
        c.needs = 2047;
        check(suite, c);
      }
    }
  }
  return suite.finish();
}
