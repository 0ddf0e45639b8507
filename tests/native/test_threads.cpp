// Threads: every kind of Parallel with every number of threads on shapes that split by batch and by
// hidden unit, two callers at once, and other numbers of threads in backward than in forward. Small
// enough to run under ThreadSanitizer.
#include <algorithm>
#include <cmath>
#include <thread>

#include "parallel.h"
#include "run.h"
#include "suite.h"

namespace {

bool close_to(const reference::Values& want, const reference::Values& got, double tolerance) {
  double largest = 0.0, error = 0.0;
  for (size_t k = 0; k < want.size(); ++k) {
    largest = std::max(largest, std::abs(want[k]));
    if (!(std::abs(want[k] - got[k]) <= error)) error = std::abs(want[k] - got[k]);
  }
  return error <= tolerance * largest;
}

// Forward and backward of one case; empty when right.
std::string run(const Case& c, const Data& data, const reference::Forward& want,
                const reference::Backward& back, bool* shared) {
  const fused_lstm::Problem& p = data.problem;
  const ForwardRun forward = run_forward(c, data, true, 0xff);
  if (forward.status != fused_lstm::Status::kOk) return "forward returns an error status";
  const ForwardRun inference = run_forward(c, data, false, 0xff);
  const BackwardRun backward = run_backward(c, data, forward, 0xff);
  if (backward.status != fused_lstm::Status::kOk) return "backward returns an error status";
  std::string complaint = forward.complaint + inference.complaint + backward.complaint;
  *shared = (c.threads == 1 || (forward.shared && inference.shared)) &&
            (c.back_threads == 1 || backward.shared);
  for (const ForwardRun* one : {&forward, &inference}) {
    const Strides& s = one->y_strides;
    const auto y = reference::read_rows(p, one->y->data(), s.t, s.b, p.D * p.P);
    if (!close_to(want.y, y, forward_tolerance(c))) complaint += " y is wrong;";
  }
  const auto gradient = [&](int k) {
    return reference::read_all(p.dtype, backward.gradients[k]->data(),
                               gradient_size(p, data.rows, k));
  };
  const double tolerance = gradient_tolerance(c);
  for (int k = 0; k < kGradients; ++k) {
    if (backward.gradients[k] && !close_to(back[k].sum, gradient(k), tolerance)) {
      complaint += std::string(" ") + kGradientNames[k] + " is wrong;";
    }
  }
  return complaint;
}

void check(Suite& suite, const Case& c, const Data& data, const reference::Forward& want,
           const reference::Backward& back) {
  suite.begin(c);
  bool shared = false;
  const std::string complaint = run(c, data, want, back, &shared);
  suite.expect(complaint.empty(), complaint);
  suite.expect(shared, "the case is too small to be given its threads, and tests nothing");
  suite.end();
}

// Two callers with problems of their own: the kernels keep nothing between calls.
void check_two_callers(Suite& suite, Case first, Case second) {
  suite.begin(to_text(first) + " beside " + to_text(second));
  std::string complaints[2];
  std::thread callers[2];
  const Case* cases[] = {&first, &second};
  for (int k = 0; k < 2; ++k) {
    callers[k] = std::thread([&complaints, &cases, k] {
      const Data data(*cases[k]);
      const auto want = reference::forward(data.problem);
      const auto back = reference::backward(data.problem, data.incoming);
      bool unknown;  // the other caller counts, too
      for (int round = 0; round < 4; ++round) {
        complaints[k] += run(*cases[k], data, want, back, &unknown);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const std::string& complaint : complaints) suite.expect(complaint.empty(), complaint);
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_threads");
  if (suite.single()) {
    const Case c = suite.single_case();
    const Data data(c);
    check(suite, c, data, reference::forward(data.problem),
          reference::backward(data.problem, data.incoming));
    return suite.finish();
  }
  struct Shape {
    int64_t T, B, I, H, D, packed, P = 0;
  };
  const Shape shapes[] = {
      {2, 1, 3, 360, 1, 0},  // one row: hidden units, dot products forward
      {14, 1, 3, 130, 2, 0},     {8, 5, 20, 130, 1, 1},     {3, 8, 5, 150, 2, 1},
      {4, 36, 2, 50, 1, 0},      {10, 60, 2, 27, 2, 1},     {4, 40, 9, 36, 2, 0},
      {6, 5, 300, 110, 1, 0},    {8, 5, 20, 130, 1, 0, 70}, {3, 9, 5, 150, 2, 1, 66},
      {10, 60, 2, 33, 2, 1, 20},
  };
  for (int64_t isa : suite.isas()) {
    for (const Shape& shape : shapes) {
      Case c;
      c.T = shape.T;
      c.B = shape.B;
      c.I = shape.I;
      c.H = shape.H;
      c.D = shape.D;
      c.packed = shape.packed;
      c.P = shape.P;
      c.isa = isa;
      const Data data(c);
      const auto want = reference::forward(data.problem);
      const auto back = reference::backward(data.problem, data.incoming);
      for (int64_t threads : {2, 3, 5}) {
        for (int64_t kind = 0; kind < kParallelKinds; ++kind) {
          c.par = kind;
          c.threads = kind == kSerial ? 1 : threads;
          c.back_par = (kind + threads) % kParallelKinds;
          c.back_threads = c.back_par == kSerial ? 1 : 7 - threads;
          check(suite, c, data, want, back);
        }
      }
    }
    Case a, b;
    a.T = 5;
    a.B = 16;
    a.I = 3;
    a.H = 62;
    a.isa = isa;
    a.threads = a.back_threads = 2;
    a.par = a.back_par = kPool;
    b = a;
    b.B = 1;
    b.H = 230;
    check_two_callers(suite, a, b);
  }
  return suite.finish();
}
