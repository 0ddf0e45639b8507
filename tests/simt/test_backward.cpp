// Backward of the stepwise CUDA kernels on the stand-in against the reference: every gradient, any
// subset of them, any incoming gradient null, whichever family ran forward; a second backward over
// the same reserve gives the same bits.
#include <cuda_runtime.h>

#include "kernels_cuda.h"
#include "run.h"
#include "suite.h"

namespace {

void check(Suite& suite, const Case& c, const Data& data, const reference::Backward& want) {
  suite.begin(c);
  const ForwardRun forward = run_forward(c, data, true, 0xff);
  suite.expect(forward.status == fused_lstm::Status::kOk, "forward returns an error status");
  const BackwardRun run = run_backward(c, data, forward, 0xff);
  suite.expect(run.status == fused_lstm::Status::kOk, "backward returns an error status");
  suite.expect(run.complaint.empty(), run.complaint);
  Case other = c;
  ++other.schedule;
  const BackwardRun again = run_backward(other, data, forward, 0x3c);
  for (int k = 0; k < kGradients; ++k) {
    if (!run.gradients[k]) continue;
    const std::string name = kGradientNames[k];
    const int64_t count = gradient_size(data.problem, data.rows, k);
    suite.expect_close(name, want[k],
                       reference::read_all(data.problem.dtype, run.gradients[k]->data(), count),
                       gradient_tolerance(c));
    suite.expect(same_bytes(run.gradients[k], again.gradients[k]),
                 name + " of a second backward, under another schedule, differs bitwise");
  }
  suite.end();
}

// Enough launches to meet every kind of kernel of backward.
void check_refusals(Suite& suite) {
  const Case c = parse_case("T=3 B=2 I=3 H=5 P=2 dtype=bfloat16 x_layout=2 family=1 back_family=1");
  const Data data(c);
  const ForwardRun forward = run_forward(c, data, true, 0xff);
  for (int64_t launch = 0; launch < 8; ++launch) {
    suite.begin("launch " + std::to_string(launch) + " is refused");
    simt::options.refuse_launch = launch;
    const BackwardRun run = run_backward(c, data, forward, 0xff);
    simt::options.refuse_launch = -1;
    suite.expect(run.status == fused_lstm::Status::kLaunchFailed, "the status says nothing");
    suite.expect(run.complaint.find("CUDA refused a launch") == 0, "last_error: " + run.complaint);
    suite.end();
  }
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_backward", nullptr);
  if (suite.single()) {
    const Case c = suite.single_case();
    const Data data(c);
    check(suite, c, data, reference::backward(data.problem, data.incoming));
    return suite.finish();
  }
  Random random(static_cast<uint64_t>(suite.seed()) + 1000);
  for (int64_t dtype = 0; dtype < 4; ++dtype) {
    std::vector<Case> cases = shape_grid(dtype, static_cast<uint64_t>(suite.seed()) + 1000);
    const int64_t extra = suite.random_cases(24);
    for (int64_t k = 0; k < extra; ++k) cases.push_back(random_case(random, dtype));
    for (size_t k = 0; k < cases.size(); ++k) {
      if (!suite.takes(static_cast<int64_t>(k) + dtype)) continue;
      Case& c = cases[k];
      draw_run(random, c);
      c.schedule = 1 + random.below(1000);
      c.family = random.below(2);  // stepwise, or the plan's choice
      c.back_family = 1;
      const Data data(c);
      check(suite, c, data, reference::backward(data.problem, data.incoming));
    }
  }
  check_refusals(suite);
  return suite.finish();
}
