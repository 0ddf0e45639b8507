// What nn.LSTM lacks (resets, rows that end, cell states of every step, zoneout, factors of h,
// gates computed again) on the CUDA kernels: forward and backward against the reference, under
// several schedules, against the plain kernels where an option changes nothing, what one family
// saved read by another, and marks that no caller should pass but that must not leave memory.
#include "checks.h"

using fused_lstm::Problem;

namespace {

void make_plain(Case& c) { c.marks = c.cells = c.zoneout = c.h_factors = c.recompute = 0; }

// Marks that are all 0 change no bit; nor do units none of which keeps anything, unless what
// zoneout finds of the cell again comes from gates that were rounded.
void check_unmarked(Suite& suite, Case c, int64_t family) {
  make_plain(c);
  c.needs = 2047;
  c.family = c.back_family = family;
  suite.begin(c);
  Data data(c);
  const ForwardRun plain = run_forward(c, data, true, 0xff);
  const BackwardRun plain_back = run_backward(c, data, plain, 0xff);
  const std::vector<uint8_t> none(static_cast<size_t>(c.T * c.B), 0);
  data.problem.marks = none.data();
  const std::vector<uint8_t> no_unit(static_cast<size_t>(c.T * c.B * c.D * c.H), 0);
  if (c.dtype < 2) data.problem.zoneout.keep = no_unit.data();
  const ForwardRun marked = run_forward(c, data, true, 0xff);
  const BackwardRun back = run_backward(c, data, marked, 0xff);
  suite.expect(marked.complaint.empty() && back.complaint.empty(),
               marked.complaint + back.complaint);
  suite.expect(same_bytes(plain.y, marked.y) && same_bytes(plain.h_n, marked.h_n) &&
                   same_bytes(plain.c_n, marked.c_n),
               "empty marks change what forward computes");
  const std::string other = difference(plain_back, back);
  suite.expect(other.empty(), "empty marks change " + other);
  suite.end();
}

// Bytes at random: what comes out means nothing, but no memory is touched that is not the call's.
void check_random_marks(Suite& suite, Case c, int64_t family) {
  c.marks = 4;
  c.family = c.back_family = family;
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

// Packed input is refused, a projection has no kernel; recompute alone goes with either.
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
  suite.begin("cells that the problem does not tell of");
  Case asks = c;
  asks.cells = 1;
  Data data(asks);
  data.problem.cells = false;
  suite.expect(run_forward(asks, data, true, 0xff).status == Status::kBadArgument, "forward");
  suite.end();
}

void draw_options(Random& random, Case& c) {
  c.recompute = random.below(3) == 0;
  if (c.recompute != 0 && random.below(2) == 0) return;  // alone it goes with packed input and P
  c.packed = c.P = 0;
  c.marks = random.below(4);
  c.zoneout = random.below(6) < 3 ? 0 : 1 + random.below(2);
  c.h_factors = random.below(4) == 0;
  c.cells = random.below(2) == 0;
  if (c.marks + c.zoneout + c.h_factors + c.recompute == 0) c.cells = 1;
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_marks", nullptr);
  if (suite.single()) {
    const Case c = suite.single_case();
    (c.marks & 4) != 0 ? check_random_marks(suite, c, c.family) : check(suite, c, c.family, 1);
    return suite.finish();
  }
  check_refusals(suite);
  Random random(static_cast<uint64_t>(suite.seed()) + 9000);
  for (int64_t dtype = 0; dtype < 4; ++dtype) {
    std::vector<Case> cases = shape_grid(dtype, static_cast<uint64_t>(suite.seed()) + 9100);
    const int64_t extra = suite.random_cases(24);
    for (int64_t k = 0; k < extra; ++k) cases.push_back(random_case(random, dtype));
    for (size_t k = 0; k < cases.size(); ++k) {
      Case c = cases[k];
      if ((static_cast<int64_t>(k) + dtype) % 4 != 0) continue;  // each shape with one dtype
      if (c.T > 100) continue;  // a launch at a time takes a while here, and chunks are short
      draw_options(random, c);
      if (dtype > 1 && c.H == 1) c.H = 3;  // one saved gate, rounded, is all of a gradient's size
      draw_run(random, c);
      c.schedule = 1 + random.below(1000);
      check(suite, c, kStepwise, 1);
      if (c.packed + c.P > 0) continue;
      k % 4 < 2 ? check_unmarked(suite, c, kStepwise) : check_random_marks(suite, c, kStepwise);
    }
  }
  const Shape shapes[] = {{9, 5, 3, 7}, {4, 11, 70, 33}, {6, 3, 2, 64}, {3, 18, 5, 100}};
  for (const Shape& shape : shapes) {
    for (const Kind& kind : kKinds) {
      Case c = case_of(random, shape, kind);
      draw_options(random, c);
      c.P = 0;
      check(suite, c, kSingleBlock, 1);
      if (c.packed != 0) continue;
      check_unmarked(suite, c, kSingleBlock);
      check_random_marks(suite, c, kSingleBlock);
      check_reserve(suite, c, kStepwise, kSingleBlock);
      check_reserve(suite, c, kSingleBlock, kStepwise);
    }
  }
  return suite.finish();
}
