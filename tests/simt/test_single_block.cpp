// The single-block family on the stand-in against the double-precision reference: forward and
// backward, every dtype it takes, H from 1 to its limit, both row tiles, lengths, layouts, states
// given or not, x read directly and projected; and that its reserve and the stepwise family's are
// one and the same contract.
#include <cuda_runtime.h>

#include "kernels_cuda.h"
#include "run.h"
#include "single_block.h"
#include "suite.h"

namespace {

using fused_lstm::Status;
namespace cuda = fused_lstm::cuda;
namespace single_block = fused_lstm::cuda::single_block;

constexpr int64_t kStepwise = 1, kSingleBlock = 2;  // Case::family
constexpr int64_t kFloat32 = 0, kBFloat16 = 2, kFloat16 = 3, kTf32 = 1;

// TF32 rounds both factors of each product to 11 bits, 16 times as coarse as float16 rounds sums;
// sums of such errors have random signs.
constexpr double kTf32Forward = 1.5e-3, kTf32Gradient = 3e-3;
double tolerance(const Case& c, bool gradient) {
  if (c.dtype == kFloat32 && c.math == kTf32) return gradient ? kTf32Gradient : kTf32Forward;
  return gradient ? gradient_tolerance(c) : forward_tolerance(c);
}

void compare_forward(Suite& suite, const Case& c, const Data& data,
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
}

void compare_backward(Suite& suite, const Case& c, const Data& data,
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

bool same(const BackwardRun& a, const BackwardRun& b) {
  for (int k = 0; k < kGradients; ++k) {
    if (a.gradients[k] && !same_bytes(a.gradients[k], b.gradients[k])) return false;
  }
  return true;
}

// schedules: how many more runs, each under another one and with other contents of the scratch.
void check(Suite& suite, Case c, int schedules) {
  c.family = c.back_family = kSingleBlock;
  suite.begin(c);
  const Data data(c);
  const reference::Forward want = reference::forward(data.problem);
  const ForwardRun inference = run_forward(c, data, false, 0xff);
  const ForwardRun training = run_forward(c, data, true, 0xff);
  compare_forward(suite, c, data, want, inference, "inference");
  compare_forward(suite, c, data, want, training, "training");
  suite.expect(same_bytes(inference.y, training.y) && same_bytes(inference.c_n, training.c_n),
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
    suite.expect(same(backward, run_backward(c, data, again, 0x3c)),
                 "a second backward gives other bits");
  }
  suite.end();
}

// What one family saved, the other's backward reads.
void check_reserve(Suite& suite, Case c, int64_t family, int64_t back_family) {
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
// H: around every instance's edges; B: row tails; I: read directly (up to 64) and projected.
constexpr Shape kShapes[] = {
    {3, 4, 1, 1},    {1, 1, 2, 2},   {4, 9, 3, 7},     {3, 8, 28, 31},   {3, 17, 5, 32},
    {5, 5, 65, 33},  {2, 7, 64, 64}, {3, 9, 28, 65},   {2, 11, 70, 95},  {2, 4, 17, 100},
    {3, 9, 28, 128}, {2, 3, 1, 127}, {2, 2, 100, 128}, {2, 3, 28, 129},  {2, 9, 2, 160},
    {2, 2, 3, 161},  {2, 9, 28, 192}, {2, 3, 66, 191},
};

Case case_of(Random& random, const Shape& shape, int64_t dtype) {
  Case c = random_case(random, dtype);
  c.T = shape.T, c.B = shape.B, c.I = shape.I, c.H = shape.H, c.P = 0;
  draw_run(random, c);
  c.schedule = 1 + random.below(1000);
  return c;
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_single_block", nullptr);
  if (suite.single()) {
    check(suite, suite.single_case(), 1);
    return suite.finish();
  }
  Random random(static_cast<uint64_t>(suite.seed()));
  struct Kind {
    int64_t dtype, math;
  };
  for (const Kind kind : {Kind{kBFloat16, 0}, {kFloat16, 0}, {kFloat32, kTf32}, {kFloat32, 0}}) {
    for (const Shape& shape : kShapes) {
      if (kind.dtype == kFloat32 && shape.H > 128) continue;
      Case c = case_of(random, shape, kind.dtype);
      c.math = kind.math;
      check(suite, c, 1);
      if (shape.H % 32 != 1) continue;
      check_reserve(suite, c, kStepwise, kSingleBlock);
      check_reserve(suite, c, kSingleBlock, kStepwise);
    }
  }
  return suite.finish();
}
