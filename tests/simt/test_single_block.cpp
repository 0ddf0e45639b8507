// The single-block family on the stand-in against the double-precision reference: forward and
// backward, every dtype it takes, H from 1 to its limit, both row tiles, lengths, layouts, states
// given or not, x read directly and projected; and that its reserve and the stepwise family's are
// one and the same contract.
#include <cuda_runtime.h>

#include <cstring>
#include <vector>

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

// TF32 rounds both factors of each product to 11 bits, as float16 rounds what it stores; here the
// weights are rounded beside the state, by half a unit of 2^-11 each, and signs are random.
constexpr double kTf32Forward = 1.5e-3, kTf32Gradient = 3e-3;
double tolerance(const Case& c, bool gradient) {
  if (c.dtype == kFloat32 && c.math == kTf32) return gradient ? kTf32Gradient : kTf32Forward;
  return gradient ? gradient_tolerance(c) : forward_tolerance(c);
}

void compare_forward(Suite& suite, const Case& c, const Data& data, const reference::Forward& want,
                     const ForwardRun& run, const std::string& when) {
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
    {3, 4, 1, 1},    {1, 1, 2, 2},    {4, 9, 3, 7},     {3, 8, 28, 31},  {3, 17, 5, 32},
    {5, 5, 65, 33},  {2, 7, 64, 64},  {3, 9, 28, 65},   {2, 11, 70, 95}, {2, 4, 17, 100},
    {3, 9, 28, 128}, {2, 3, 1, 127},  {2, 2, 100, 128}, {2, 3, 28, 129}, {2, 9, 2, 160},
    {2, 2, 3, 161},  {2, 9, 28, 192}, {2, 3, 66, 191},
};

struct Kind {
  int64_t dtype, math;
};
constexpr Kind kKinds[] = {{kBFloat16, 0}, {kFloat16, 0}, {kFloat32, kTf32}, {kFloat32, 0}};

Case case_of(Random& random, const Shape& shape, const Kind& kind) {
  Case c = random_case(random, kind.dtype);
  c.math = kind.math;
  c.T = shape.T, c.B = shape.B, c.I = shape.I, c.H = shape.H, c.P = 0;
  draw_run(random, c);
  c.schedule = 1 + random.below(1000);
  return c;
}

// More lengths than one launch carries.
void check_long_batch(Suite& suite) {
  Case c = parse_case("T=2 B=2100 I=1 H=2 D=1 dtype=float32 packed=1 sms=1");
  c.needs = 1 << 1 | 1 << 2;  // dh0, dc0
  check(suite, c, 1);
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
void check_unaligned_states(Suite& suite, const Kind& kind) {
  Case c = parse_case("T=3 B=9 I=3 H=34 D=2 packed=1");
  c.dtype = kind.dtype, c.math = kind.math;
  c.family = c.back_family = kSingleBlock;
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

void check_plans(Suite& suite) {
  const auto expect = [&](const std::string& what, const char* text, bool fits) {
    suite.begin(what);
    const Case c = parse_case(text);
    const Data data(c);
    const cuda::Launch launch = make_launch(c, false);
    suite.expect(single_block::fits(data.problem, true, launch) == fits, "the plan says otherwise");
    suite.end();
  };
  expect("bfloat16 to H = 192", "T=1 B=1 I=1 H=192 dtype=bfloat16", true);
  expect("but no further", "T=1 B=1 I=1 H=193 dtype=bfloat16", false);
  expect("H = 128 on sm_80", "T=1 B=1 I=1 H=128 dtype=bfloat16 arch=80", true);
  expect("not below sm_80", "T=1 B=1 I=1 H=8 dtype=bfloat16 arch=75", false);
  expect("nor from sm_100 on", "T=1 B=1 I=1 H=8 dtype=bfloat16 arch=100", false);
  expect("float32 to H = 128", "T=1 B=1 I=1 H=128 dtype=float32", true);
  expect("but not 129", "T=1 B=1 I=1 H=129 dtype=float32", false);
  expect("TF32 to H = 128", "T=1 B=1 I=1 H=128 dtype=float32 math=1", true);
  expect("no float64", "T=1 B=1 I=1 H=8 dtype=float64", false);
  expect("no projection", "T=1 B=1 I=1 H=8 P=4 dtype=float32", false);

  // What an instance may use follows from the device's shared memory.
  suite.begin("less shared memory");
  const Data data(parse_case("T=1 B=1 I=28 H=192 dtype=bfloat16"));
  cuda::Launch launch = make_launch(Case(), false);
  launch.device.shared_per_block = 166912;  // sm_80
  suite.expect(!single_block::fits(data.problem, true, launch), "H = 192 needs more than that");
  const Data smaller(parse_case("T=1 B=1 I=64 H=128 dtype=float32 math=1"));
  launch.math = cuda::Math::kTf32;
  const single_block::Plan plan = single_block::plan(smaller.problem, false, launch);
  suite.expect(plan.refusal == nullptr && plan.input_depth == 0, "x must come projected");
  suite.expect(plan.shared_bytes <= launch.device.shared_per_block, "too much shared memory");
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_single_block", nullptr);
  if (suite.single()) {
    check(suite, suite.single_case(), 1);
    return suite.finish();
  }
  Random random(static_cast<uint64_t>(suite.seed()));
  for (const Kind& kind : kKinds) {
    for (const Shape& shape : kShapes) {
      if (kind.dtype == kFloat32 && shape.H > single_block::kMostUnitsStrict) continue;
      const Case c = case_of(random, shape, kind);
      check(suite, c, 1);
      if (shape.H % 32 != 1) continue;
      check_reserve(suite, c, kStepwise, kSingleBlock);
      check_reserve(suite, c, kSingleBlock, kStepwise);
    }
    // Few multiprocessors: more rows in a block.
    for (Shape shape : {Shape{3, 19, 6, 128}, {3, 23, 70, 128}, {3, 6, 3, 61}}) {
      Case c = case_of(random, shape, kind);
      c.sms = 1;
      check(suite, c, 2);
    }
    check_unaligned_states(suite, kind);
    // Not finite: no row, unit or step may leak into another through padding or a factor of zero.
    for (int64_t special = 1; special < kSpecials; ++special) {
      Case c = case_of(random, {4, 5, 3, special % 4 < 2 ? 3 : 33}, kind);
      c.h0 = c.c0 = c.b_ih = c.dy = c.dc_n = 1;
      c.dh_n = special == kNanDhn || special == kInfDhn;  // else the last step begins with nothing
      c.special = special;
      check(suite, c, 1);
    }
  }
  check_long_batch(suite);
  check_plans(suite);
  return suite.finish();
}
