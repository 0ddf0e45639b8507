// What nn.LSTM lacks (resets, rows that end, cell states of every step, zoneout, factors of h,
// gates computed again): forward and backward against the reference over the shapes of the other
// tests, against the plain kernel where an option changes nothing, and for marks that no caller
// should pass but that must not leave memory.
#include "run.h"
#include "suite.h"

using fused_lstm::Problem;
using fused_lstm::Status;
using reference::Values;

namespace {

void compare_forward(Suite& suite, const Case& c, const Data& data, const reference::Forward& want,
                     const ForwardRun& run, const std::string& when) {
  const Problem& p = data.problem;
  const double tolerance = forward_tolerance(c);
  const auto read = [&](const std::unique_ptr<Guarded>& array, int64_t count) {
    return reference::read_all(p.dtype, array->data(), count);
  };
  suite.expect(run.status == Status::kOk, when + " returns an error status");
  suite.expect(run.complaint.empty(), when + run.complaint);
  const Values y =
      reference::read_rows(p, run.y->data(), run.y_strides.t, run.y_strides.b, p.D * p.P);
  suite.expect_close(when + " y", want.y, y, tolerance);
  suite.expect_close(when + " h_n", want.h_n, read(run.h_n, p.D * p.B * p.P), tolerance);
  suite.expect_close(when + " c_n", want.c_n, read(run.c_n, p.D * p.B * p.H), tolerance);
  if (!run.cells) return;
  const Values cells = read(run.cells, data.rows * p.D * p.H);
  suite.expect_close(when + " cells", want.cells, cells, tolerance);
  bool zeros = true;  // and not only close to
  for (int64_t n = 0; n < data.rows; ++n) {
    if (!reference::ended(p, n / p.B, n % p.B)) continue;
    for (int64_t k = 0; k < p.D * p.P; ++k) zeros = zeros && y[n * p.D * p.P + k] == 0.0;
    for (int64_t k = 0; k < p.D * p.H; ++k) zeros = zeros && cells[n * p.D * p.H + k] == 0.0;
  }
  suite.expect(zeros, when + " leaves something in rows that have ended");
}

void check(Suite& suite, const Case& c, const Data& data, const reference::Forward& want,
           const reference::Backward& back) {
  suite.begin(c);
  const ForwardRun inference = run_forward(c, data, false, 0xff);
  const ForwardRun training = run_forward(c, data, true, 0xff);
  compare_forward(suite, c, data, want, inference, "inference");
  compare_forward(suite, c, data, want, training, "training");
  const BackwardRun run = run_backward(c, data, training, 0xff);
  const BackwardRun again = run_backward(c, data, training, 0x3c);
  suite.expect(run.status == Status::kOk, "backward returns an error status");
  suite.expect(run.complaint.empty(), run.complaint);
  for (int k = 0; k < kGradients; ++k) {
    if (!run.gradients[k]) continue;
    const std::string name = kGradientNames[k];
    const Values got = reference::read_all(data.problem.dtype, run.gradients[k]->data(),
                                           gradient_size(data.problem, data.rows, k));
    suite.expect_close(name, back[k], got, gradient_tolerance(c));
    suite.expect(same_bytes(run.gradients[k], again.gradients[k]),
                 name + " of a second backward differs bitwise");
  }
  suite.end();
}

void check(Suite& suite, const Case& c) {
  const Data data(c);
  check(suite, c, data, reference::forward(data.problem),
        reference::backward(data.problem, data.incoming));
}

void make_plain(Case& c) { c.marks = c.cells = c.zoneout = c.h_factors = c.recompute = 0; }

// Marks that are all 0 change no bit of any result; nor do units none of which keeps anything,
// unless what zoneout finds of the cell again comes from gates that were rounded.
void check_unmarked(Suite& suite, Case c) {
  make_plain(c);
  c.needs = 2047;
  suite.begin(c);
  Data data(c);
  data.problem.cells = true;  // as marks do, keeps products off a matrix unit
  const ForwardRun plain = run_forward(c, data, true, 0xff);
  const BackwardRun plain_back = run_backward(c, data, plain, 0xff);
  const std::vector<uint8_t> none(static_cast<size_t>(c.T * c.B), 0);
  data.problem.marks = none.data();
  const std::vector<uint8_t> no_unit(static_cast<size_t>(c.T * c.B * c.D * c.H), 0);
  if (c.dtype < 2) data.problem.zoneout.keep = no_unit.data();
  const ForwardRun marked = run_forward(c, data, true, 0xff);
  const BackwardRun marked_back = run_backward(c, data, marked, 0xff);
  suite.expect(same_bytes(plain.y, marked.y) && same_bytes(plain.h_n, marked.h_n) &&
                   same_bytes(plain.c_n, marked.c_n),
               "empty marks change what forward computes");
  for (int k = 0; k < kGradients; ++k) {
    suite.expect(
        !plain_back.gradients[k] || same_bytes(plain_back.gradients[k], marked_back.gradients[k]),
        std::string("empty marks change ") + kGradientNames[k]);
  }
  suite.end();
}

// Bytes at random: what comes out means nothing, but no memory is touched that is not the call's.
void check_random_marks(Suite& suite, Case c) {
  c.marks = 4;
  suite.begin(c);
  const Data data(c);
  const ForwardRun inference = run_forward(c, data, false, 0xff);
  const ForwardRun training = run_forward(c, data, true, 0xff);
  const BackwardRun back = run_backward(c, data, training, 0xff);
  suite.expect(inference.complaint.empty(), inference.complaint);
  suite.expect(training.complaint.empty(), training.complaint);
  suite.expect(back.complaint.empty(), back.complaint);
  suite.end();
}

void check_refusals(Suite& suite) {
  Case c;
  c.T = 3, c.B = 2, c.I = 2, c.H = 4;
  for (int packed = 0; packed < 2; ++packed) {
    for (int only = 0; only < 5; ++only) {
      Case refused = c;
      refused.packed = packed;
      refused.P = packed == 0 ? 2 : 0;
      refused.marks = only == 0 ? 3 : 0;
      refused.cells = only == 1;
      refused.zoneout = only == 2 ? 1 : only == 3 ? 2 : 0;
      refused.h_factors = only == 4;
      suite.begin(refused);
      const Status want = packed != 0 ? Status::kBadArgument : Status::kUnsupported;
      const Data data(refused);
      suite.expect(run_forward(refused, data, true, 0xff).status == want, "forward's status");
      Case plain = refused;
      make_plain(plain);
      const Data allowed(plain);
      const ForwardRun forward = run_forward(plain, allowed, true, 0xff);
      suite.expect(run_backward(refused, data, forward, 0xff).status == want, "backward's status");
      suite.end();
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_marks");
  if (suite.single()) {
    const Case c = suite.single_case();
    (c.marks & 4) != 0 ? check_random_marks(suite, c) : check(suite, c);
    return suite.finish();
  }
  check_refusals(suite);
  Random random(static_cast<uint64_t>(suite.seed()) + 7000);
  for (int64_t dtype = 0; dtype < 4; ++dtype) {
    std::vector<Case> cases = shape_grid(dtype, static_cast<uint64_t>(suite.seed()) + 7100);
    const int64_t extra = suite.random_cases(dtype == 0 ? 30 : 15);
    for (int64_t k = 0; k < extra; ++k) cases.push_back(random_case(random, dtype));
    for (size_t k = 0; k < cases.size(); ++k) {
      Case c = cases[k];
      if ((static_cast<int64_t>(k) + dtype) % 2 == 0) continue;  // each shape with two dtypes
      c.recompute = random.below(3) == 0;
      const bool others = c.recompute == 0 || random.below(2) == 0;
      if (others) {  // recompute alone goes with packed input and projections
        c.packed = c.P = 0;
        c.marks = random.below(4);
        c.zoneout = random.below(6) < 3 ? 0 : 1 + random.below(2);
        c.h_factors = random.below(4) == 0;
        c.cells = random.below(2) == 0;
        if (c.marks + c.zoneout + c.h_factors + c.recompute == 0) c.cells = 1;
      }
      if (dtype > 1 && c.H == 1) c.H = 3;  // one saved gate, rounded, is all of a gradient's size
      const Data data(c);
      const reference::Forward want = reference::forward(data.problem);
      const reference::Backward back = reference::backward(data.problem, data.incoming);
      for (int64_t isa : suite.isas()) {
        c.isa = isa;
        if (runs_of(isa, k) == 0) continue;
        draw_run(random, c);
        check(suite, c, data, want, back);
      }
      c.isa = random.pick(suite.isas());
      if (!others) continue;
      k % 4 < 2 ? check_unmarked(suite, c) : check_random_marks(suite, c);
    }
  }
  return suite.finish();
}
