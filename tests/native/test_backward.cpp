// Backward against the reference: every gradient, any subset of them, any incoming gradient null;
// forward and backward may run with different threads; a second backward gives the same bits.
#include "run.h"
#include "suite.h"

namespace {

void check(Suite& suite, const Case& c, const Data& data, const reference::Backward& want) {
  suite.begin(c);
  const ForwardRun forward = run_forward(c, data, true, 0xff);
  if (forward.status == fused_lstm::Status::kUnsupported) {
    suite.unsupported();
    suite.end();
    return;
  }
  suite.expect(forward.status == fused_lstm::Status::kOk, "forward returns an error status");
  const BackwardRun run = run_backward(c, data, forward, 0xff);
  suite.expect(run.status == fused_lstm::Status::kOk, "backward returns an error status");
  suite.expect(run.complaint.empty(), run.complaint);
  const BackwardRun again = run_backward(c, data, forward, 0x3c);
  for (int k = 0; k < kGradients; ++k) {
    if (!run.gradients[k]) continue;
    const std::string name = kGradientNames[k];
    const int64_t count = gradient_size(data.problem, data.rows, k);
    suite.expect_close(name, want[k],
                       reference::read_all(data.problem.dtype, run.gradients[k]->data(), count),
                       gradient_tolerance(c));
    suite.expect(same_bytes(run.gradients[k], again.gradients[k]),
                 name + " of a second backward differs bitwise");
  }
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_backward");
  if (suite.single()) {
    const Case c = suite.single_case();
    const Data data(c);
    check(suite, c, data, reference::backward(data.problem, data.incoming));
    return suite.finish();
  }
  Random random(static_cast<uint64_t>(suite.seed()) + 1000);
  for (int64_t dtype = 0; dtype < 4; ++dtype) {
    std::vector<Case> cases = shape_grid(dtype, static_cast<uint64_t>(suite.seed()) + 1000);
    const int64_t extra = suite.random_cases(dtype == 0 ? 80 : 40);
    for (int64_t k = 0; k < extra; ++k) cases.push_back(random_case(random, dtype));
    for (size_t k = 0; k < cases.size(); ++k) {
      if (!suite.takes(static_cast<int64_t>(k) + dtype)) continue;
      Case c = cases[k];
      const Data data(c);
      const reference::Backward want = reference::backward(data.problem, data.incoming);
      for (int64_t isa : suite.isas()) {
        c.isa = isa;
        for (int run = 0; run < runs_of(isa, k); ++run) {
          draw_run(random, c);
          check(suite, c, data, want);
        }
      }
    }
  }
  return suite.finish();
}
