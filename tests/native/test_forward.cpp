// Forward against the double-precision reference on every shape, dtype and instruction set that
// runs here, with and without reserve, threads handed over in every way parallel.h knows.
#include <cstdio>

#include "run.h"
#include "suite.h"

namespace {

int64_t compared = 0, equal = 0;  // inference's y against training's, bit for bit

void compare(Suite& suite, const Case& c, const Data& data, const reference::Forward& want,
             const ForwardRun& run, const std::string& when) {
  const fused_lstm::Problem& p = data.problem;
  const double tolerance = forward_tolerance(c);
  const Strides& s = run.y_strides;
  suite.expect(run.complaint.empty(), when + run.complaint);
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
  if (inference.status == fused_lstm::Status::kUnsupported) {
    suite.unsupported();
    suite.expect(training.status == inference.status, "training and inference differ in support");
    suite.end();
    return;
  }
  suite.expect(inference.status == fused_lstm::Status::kOk, "inference returns an error status");
  suite.expect(training.status == fused_lstm::Status::kOk, "training returns an error status");
  compare(suite, c, data, want, inference, "inference");
  compare(suite, c, data, want, training, "training");
  // What the scratch held before must not matter, nor which run it is.
  for (const bool with_reserve : {false, true}) {
    const ForwardRun& first = with_reserve ? training : inference;
    const ForwardRun again = run_forward(c, data, with_reserve, 0x3c);
    suite.expect(same_bytes(first.y, again.y) && same_bytes(first.h_n, again.h_n) &&
                     same_bytes(first.c_n, again.c_n),
                 "a second run with other scratch contents differs bitwise");
  }
  ++compared;
  equal += same_bytes(inference.y, training.y);
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_forward");
  if (suite.single()) {
    const Case c = suite.single_case();
    const Data data(c);
    check(suite, c, data, reference::forward(data.problem));
    return suite.finish();
  }
  Random random(static_cast<uint64_t>(suite.seed()));
  for (int64_t dtype = 0; dtype < 4; ++dtype) {
    std::vector<Case> cases = shape_grid(dtype, static_cast<uint64_t>(suite.seed()));
    const int64_t extra = suite.random_cases(dtype == 0 ? 80 : 40);
    for (int64_t k = 0; k < extra; ++k) cases.push_back(random_case(random, dtype));
    for (size_t k = 0; k < cases.size(); ++k) {
      if (!suite.takes(static_cast<int64_t>(k) + dtype)) continue;
      Case c = cases[k];
      const Data data(c);
      const reference::Forward want = reference::forward(data.problem);
      for (int64_t isa : suite.isas()) {
        c.isa = isa;
        for (int run = 0; run < runs_of(isa, k); ++run) {
          draw_run(random, c);
          check(suite, c, data, want);
        }
      }
    }
  }
  char line[128];
  std::snprintf(line, sizeof line, "inference y equals training y bitwise in %lld of %lld cases",
                static_cast<long long>(equal), static_cast<long long>(compared));
  suite.note(line);
  return suite.finish();
}
