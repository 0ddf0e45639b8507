// What the tests of the families with resident weights share: one call of each kind against the
// reference, under several schedules; the reserve handed from one family to another; states that
// are aligned to nothing.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "kernels_cuda.h"
#include "run.h"
#include "suite.h"

using fused_lstm::Status;

constexpr int64_t kStepwise = 1, kSingleBlock = 2, kCluster = 3, kGrid = 4;  // Case::family
constexpr int64_t kFloat32 = 0, kBFloat16 = 2, kFloat16 = 3, kTf32 = 1;

// TF32 rounds both factors of each product to 11 bits, as float16 rounds what it stores; here the
// weights are rounded beside the state, by half a unit of 2^-11 each, and signs are random.
constexpr double kTf32Forward = 1.5e-3, kTf32Gradient = 3e-3;
inline double tolerance(const Case& c, bool gradient) {
  if (c.dtype == kFloat32 && c.math == kTf32) return gradient ? kTf32Gradient : kTf32Forward;
  return gradient ? gradient_tolerance(c) : forward_tolerance(c);
}

// y and cells of rows that have ended are zero, and not only close to it.
inline void expect_zeros(Suite& suite, const Data& data, const ForwardRun& run) {
  const fused_lstm::Problem& p = data.problem;
  if (p.marks == nullptr) return;
  const Strides& s = run.y_strides;
  const auto y = reference::read_rows(p, run.y->data(), s.t, s.b, p.D * p.P);
  reference::Values cells;
  if (run.cells) cells = reference::read_all(p.dtype, run.cells->data(), data.rows * p.D * p.H);
  bool zeros = true;
  for (int64_t n = 0; n < data.rows; ++n) {
    if (!reference::ended(p, n / p.B, n % p.B)) continue;
    for (int64_t k = 0; k < p.D * p.P; ++k) zeros = zeros && y[n * p.D * p.P + k] == 0.0;
    for (int64_t k = 0; run.cells && k < p.D * p.H; ++k) {
      zeros = zeros && cells[n * p.D * p.H + k] == 0.0;
    }
  }
  suite.expect(zeros, "something is left in rows that have ended");
}

inline void compare_forward(Suite& suite, const Case& c, const Data& data,
                            const reference::Forward& want, const ForwardRun& run,
                            const std::string& when) {
  const fused_lstm::Problem& p = data.problem;
  const Strides& s = run.y_strides;
  suite.expect(run.status == Status::kOk, when + " returns an error status");
  suite.expect(run.complaint.empty(), when + ": " + run.complaint);
  suite.expect_close(when + " y", want.y,
                     reference::read_rows(p, run.y->data(), s.t, s.b, p.D * p.P),
                     tolerance(c, false));
  suite.expect_close(when + " h_n", want.h_n,
                     reference::read_all(p.dtype, run.h_n->data(), p.D * p.B * p.P),
                     tolerance(c, false));
  suite.expect_close(when + " c_n", want.c_n,
                     reference::read_all(p.dtype, run.c_n->data(), p.D * p.B * p.H),
                     tolerance(c, false));
  expect_zeros(suite, data, run);
  if (!run.cells) return;
  suite.expect_close(when + " cells", want.cells,
                     reference::read_all(p.dtype, run.cells->data(), data.rows * p.D * p.H),
                     tolerance(c, false));
}

inline void compare_backward(Suite& suite, const Case& c, const Data& data,
                             const reference::Backward& want, const BackwardRun& run,
                             const std::string& when) {
  const fused_lstm::Problem& p = data.problem;
  suite.expect(run.status == Status::kOk, when + " returns an error status");
  suite.expect(run.complaint.empty(), when + ": " + run.complaint);
  for (int k = 0; k < kGradients; ++k) {
    if (!run.gradients[k]) continue;
    suite.expect_close(
        when + " " + kGradientNames[k], want[k],
        reference::read_all(p.dtype, run.gradients[k]->data(), gradient_size(p, data.rows, k)),
        tolerance(c, true));
  }
}

// schedules: how many more runs, each under another one and with other contents of the scratch.
inline void check(Suite& suite, Case c, int64_t family, int schedules) {
  c.family = c.back_family = family;
  suite.begin(c);
  const Data data(c);
  const reference::Forward want = reference::forward(data.problem);
  const ForwardRun inference = run_forward(c, data, false, 0xff);
  const ForwardRun training = run_forward(c, data, true, 0xff);
  compare_forward(suite, c, data, want, inference, "inference");
  compare_forward(suite, c, data, want, training, "training");
  suite.expect(same_bytes(inference.y, training.y) && same_bytes(inference.c_n, training.c_n) &&
                   (!training.cells || same_bytes(inference.cells, training.cells)),
               "training differs from inference bitwise");
  const reference::Backward gradients = reference::backward(data.problem, data.incoming);
  const BackwardRun backward = run_backward(c, data, training, 0xff);
  compare_backward(suite, c, data, gradients, backward, "backward");
  for (int k = 0; k < schedules; ++k) {
    ++c.schedule;
    const ForwardRun again = run_forward(c, data, true, 0x3c);
    suite.expect(same_bytes(training.y, again.y) && same_bytes(training.h_n, again.h_n) &&
                     same_bytes(training.c_n, again.c_n),
                 "another schedule and other scratch contents give other bits");
    const BackwardRun second = run_backward(c, data, again, 0x3c);
    suite.expect(again.complaint.empty() && second.complaint.empty(),
                 "another schedule: " + again.complaint + second.complaint);
    const std::string other = difference(backward, second);
    suite.expect(other.empty(), "a second backward gives other bits in " + other);
  }
  suite.end();
}

// What one family saved, the other's backward reads.
inline void check_reserve(Suite& suite, Case c, int64_t family, int64_t back_family) {
  c.family = family;
  c.back_family = back_family;
  suite.begin(c);
  const Data data(c);
  const ForwardRun training = run_forward(c, data, true, 0xff);
  compare_backward(suite, c, data, reference::backward(data.problem, data.incoming),
                   run_backward(c, data, training, 0xff), "the other family's backward");
  suite.end();
}

struct Shape {
  int64_t T, B, I, H;
};
struct Kind {
  int64_t dtype, math;
};
constexpr Kind kKinds[] = {{kBFloat16, 0}, {kFloat16, 0}, {kFloat32, kTf32}, {kFloat32, 0}};

inline Case case_of(Random& random, const Shape& shape, const Kind& kind) {
  Case c = random_case(random, kind.dtype);
  c.math = kind.math;
  c.T = shape.T, c.B = shape.B, c.I = shape.I, c.H = shape.H, c.P = 0;
  draw_run(random, c);
  c.schedule = 1 + random.below(1000);
  return c;
}

// The same elements, one element past where the copy's memory begins.
class Shifted {
 public:
  Shifted(const void*& data, int64_t elements, size_t size) : copy_(elements * size + 64) {
    const auto begin = reinterpret_cast<uintptr_t>(copy_.data());
    unsigned char* const to = copy_.data() + (16 - begin % 16) % 16 + size;
    std::memcpy(to, data, elements * size);
    data = to;
  }

 private:
  std::vector<unsigned char> copy_;
};

// States and their gradients may be views that begin at any element: none is aligned to a pair.
inline void check_unaligned_states(Suite& suite, const Kind& kind, int64_t family) {
  Case c = parse_case("T=3 B=9 I=3 H=34 D=2 packed=1");
  c.dtype = kind.dtype, c.math = kind.math;
  c.family = c.back_family = family;
  suite.begin(c);
  Data data(c);
  fused_lstm::Problem& p = data.problem;
  const size_t size = reference::element_size(p.dtype);
  const int64_t elements = p.D * p.B * p.H;
  const Shifted h0(p.h0, elements, size), c0(p.c0, elements, size);
  const Shifted dh_n(data.incoming.dh_n, elements, size);
  const Shifted dc_n(data.incoming.dc_n, elements, size);
  const ForwardRun training = run_forward(c, data, true, 0xff);
  compare_forward(suite, c, data, reference::forward(p), training, "unaligned states");
  compare_backward(suite, c, data, reference::backward(p, data.incoming),
                   run_backward(c, data, training, 0xff), "unaligned states");
  suite.end();
}
