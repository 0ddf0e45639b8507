// What nn.LSTM lacks (resets, rows that end, cell states of every step, zoneout, factors of h,
// gates computed again): forward and backward against the reference over the shapes of the other
// tests, against the plain kernel where an option changes nothing, and for marks that no caller
// should pass but that must not leave memory.
#include "cpu/kernels.h"
#include "option_checks.h"

using fused_lstm::Problem;
using fused_lstm::Status;
using reference::Values;

namespace {

// The reference for the kernels of c.isa, which may multiply h as it is stored.
reference::Forward forward_for(const Case& c, const Data& data) {
  const fused_lstm::DType dtype = data.problem.dtype;
  fused_lstm::cpu::set_isa(static_cast<fused_lstm::Isa>(c.isa));
  const fused_lstm::cpu::Facts facts = fused_lstm::cpu::active_kernels(dtype).facts(dtype);
  const bool stored = facts.operand_bytes < facts.compute_bytes;
  return reference::forward(data.problem,
                            stored ? reference::Scaled::kStored : reference::Scaled::kComputed);
}

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
  check(suite, c, data, forward_for(c, data), reference::backward(data.problem, data.incoming));
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
      if (!suite.takes(static_cast<int64_t>(k) / 2 + dtype)) continue;
      draw_options(random, c);
      const bool others = c.marks + c.zoneout + c.h_factors + c.cells > 0;
      if (dtype > 1 && c.H == 1) c.H = 3;  // one saved gate, rounded, is all of a gradient's size
      const Data data(c);
      const reference::Forward want = reference::forward(data.problem);
      const reference::Backward back = reference::backward(data.problem, data.incoming);
      for (int64_t isa : suite.isas()) {
        c.isa = isa;
        if (runs_of(isa, k / 2) == 0) continue;
        draw_run(random, c);
        const bool scales = dtype == 2 && data.problem.h_factors != nullptr;
        check(suite, c, data, scales ? forward_for(c, data) : want, back);
      }
      c.isa = random.pick(suite.isas());
      if (!others) continue;
      k % 4 < 2 ? check_unmarked(suite, c) : check_random_marks(suite, c);
    }
  }
  return suite.finish();
}
