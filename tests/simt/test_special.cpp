// Values that are not finite must come out where the reference puts them, forward and backward, and
// nowhere else: no row, unit or step may leak into another through padding or a factor of zero.
#include "kernels_cuda.h"
#include "run.h"
#include "suite.h"

namespace {

void check(Suite& suite, const Case& c) {
  suite.begin(c);
  const Data data(c);
  const fused_lstm::Problem& p = data.problem;
  const reference::Forward want = reference::forward(p);
  const ForwardRun run = run_forward(c, data, true, 0xff);
  const Strides& s = run.y_strides;
  suite.expect(run.status == fused_lstm::Status::kOk, "forward returns an error status");
  suite.expect(run.complaint.empty(), run.complaint);
  suite.expect_close("y", want.y, reference::read_rows(p, run.y->data(), s.t, s.b, p.D * p.P),
                     forward_tolerance(c));
  suite.expect_close("h_n", want.h_n,
                     reference::read_all(p.dtype, run.h_n->data(), p.D * p.B * p.P),
                     forward_tolerance(c));
  suite.expect_close("c_n", want.c_n,
                     reference::read_all(p.dtype, run.c_n->data(), p.D * p.B * p.H),
                     forward_tolerance(c));
  const reference::Backward back = reference::backward(p, data.incoming);
  const BackwardRun backward = run_backward(c, data, run, 0xff);
  suite.expect(backward.status == fused_lstm::Status::kOk, "backward returns an error status");
  suite.expect(backward.complaint.empty(), backward.complaint);
  for (int k = 0; k < kGradients; ++k) {
    if (!backward.gradients[k]) continue;
    const int64_t count = gradient_size(p, data.rows, k);
    suite.expect_close(kGradientNames[k], back[k],
                       reference::read_all(p.dtype, backward.gradients[k]->data(), count),
                       gradient_tolerance(c));
  }
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_special", nullptr);
  if (suite.single()) {
    check(suite, suite.single_case());
    return suite.finish();
  }
  Random random(static_cast<uint64_t>(suite.seed()) + 2000);
  for (int64_t dtype = 0; dtype < 4; ++dtype) {
    for (int64_t special = 1; special < kSpecials; ++special) {
      for (const int64_t hidden : {3, 33}) {
        Case c;
        c.T = 4;
        c.B = 5;
        c.I = 3;
        c.H = hidden;
        c.D = 1 + random.below(2);
        c.dtype = dtype;
        c.packed = random.below(2);
        c.special = special;
        c.seed = 1 + random.below(1000000);
        c.schedule = 1 + random.below(1000);
        c.family = c.back_family = 1;
        check(suite, c);
      }
    }
  }
  return suite.finish();
}
