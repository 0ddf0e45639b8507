// Forward of the stepwise CUDA kernels on the stand-in against the double-precision reference, in
// inference and training, every dtype, awkward sizes, layouts and lengths; and what a call does
// when it is refused.
#include <cuda_runtime.h>

#include "kernels_cuda.h"
#include "run.h"
#include "suite.h"

namespace {

void compare(Suite& suite, const Case& c, const Data& data, const reference::Forward& want,
             const ForwardRun& run, const std::string& when) {
  const fused_lstm::Problem& p = data.problem;
  // A projection takes o * tanh(c) as stored: in 16 bits one rounding more, and its sum may cancel.
  const double tolerance = forward_tolerance(c) * (c.P > 0 && c.dtype >= 2 ? 2 : 1);
  const Strides& s = run.y_strides;
  suite.expect(run.status == fused_lstm::Status::kOk, when + " returns an error status");
  suite.expect(run.complaint.empty(), when + ": " + run.complaint);
  suite.expect_close(when + " y", want.y,
                     reference::read_rows(p, run.y->data(), s.t, s.b, p.D * p.P), tolerance);
  suite.expect_close(when + " h_n", want.h_n,
                     reference::read_all(p.dtype, run.h_n->data(), p.D * p.B * p.P), tolerance);
  suite.expect_close(when + " c_n", want.c_n,
                     reference::read_all(p.dtype, run.c_n->data(), p.D * p.B * p.H), tolerance);
}

void check(Suite& suite, const Case& c, const Data& data, const reference::Forward& want) {
  suite.begin(c);
  const ForwardRun inference = run_forward(c, data, false, 0xff);
  const ForwardRun training = run_forward(c, data, true, 0xff);
  compare(suite, c, data, want, inference, "inference");
  compare(suite, c, data, want, training, "training");
  suite.expect(same_bytes(inference.y, training.y) && same_bytes(inference.c_n, training.c_n),
               "training differs from inference bitwise");
  // Neither what the scratch held before nor the schedule may matter.
  Case other = c;
  ++other.schedule;
  const ForwardRun again = run_forward(other, data, true, 0x3c);
  suite.expect(same_bytes(training.y, again.y) && same_bytes(training.h_n, again.h_n) &&
                   same_bytes(training.c_n, again.c_n),
               "another schedule and other scratch contents give other bits");
  suite.end();
}

void check_refusals(Suite& suite) {
  Case c = parse_case("T=3 B=2 I=3 H=5 dtype=float16 family=1");
  const Data data(c);
  for (int64_t launch = 0; launch < 3; ++launch) {  // one fused kernel a step
    suite.begin("launch " + std::to_string(launch) + " is refused");
    simt::options.refuse_launch = launch;
    const ForwardRun run = run_forward(c, data, false, 0xff);
    simt::options.refuse_launch = -1;
    suite.expect(run.status == fused_lstm::Status::kLaunchFailed, "the status says nothing");
    suite.expect(run.complaint.find("CUDA refused a launch") == 0, "last_error: " + run.complaint);
    suite.end();
  }
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_forward", nullptr);
  if (suite.single()) {
    const Case c = suite.single_case();
    const Data data(c);
    check(suite, c, data, reference::forward(data.problem));
    return suite.finish();
  }
  Random random(static_cast<uint64_t>(suite.seed()));
  for (int64_t dtype = 0; dtype < 4; ++dtype) {
    std::vector<Case> cases = shape_grid(dtype, static_cast<uint64_t>(suite.seed()));
    const int64_t extra = suite.random_cases(24);
    for (int64_t k = 0; k < extra; ++k) cases.push_back(random_case(random, dtype));
    for (size_t k = 0; k < cases.size(); ++k) {
      if (!suite.takes(static_cast<int64_t>(k) + dtype)) continue;
      Case& c = cases[k];
      draw_run(random, c);
      c.schedule = 1 + random.below(1000);
      c.family = 1;
      const Data data(c);
      check(suite, c, data, reference::forward(data.problem));
    }
  }
  check_refusals(suite);
  return suite.finish();
}
