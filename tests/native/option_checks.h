// Checks of what nn.LSTM lacks that hold for every device's kernels: where an option changes
// nothing, marks that no caller should pass but that must not leave memory, and what is refused.
// And how a case draws its options.
#pragma once

#include <string>
#include <vector>

#include "run.h"
#include "suite.h"

inline void make_plain(Case& c) { c.marks = c.cells = c.zoneout = c.h_factors = c.recompute = 0; }

// Marks that are all 0 change no bit of any result; nor do units none of which keeps anything,
// unless what zoneout finds of the cell again comes from gates that were rounded.
inline void check_unmarked(Suite& suite, Case c) {
  make_plain(c);
  c.needs = 2047;
  suite.begin(c);
  Data data(c);
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
  suite.expect(marked.complaint.empty() && marked_back.complaint.empty(),
               marked.complaint + marked_back.complaint);
  const std::string other = difference(plain_back, marked_back);
  suite.expect(other.empty(), "empty marks change " + other);
  suite.end();
}

// Bytes at random: what comes out means nothing, but no memory is touched that is not the call's.
inline void check_random_marks(Suite& suite, Case c) {
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

// Packed input is refused, a projection has no kernel; recompute alone goes with either.
inline void check_refusals(Suite& suite) {
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
      const fused_lstm::Status want =
          packed != 0 ? fused_lstm::Status::kBadArgument : fused_lstm::Status::kUnsupported;
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
  suite.expect(run_forward(asks, data, true, 0xff).status == fused_lstm::Status::kBadArgument,
               "forward");
  suite.end();
}

inline void draw_options(Random& random, Case& c) {
  c.recompute = random.below(3) == 0;
  if (c.recompute != 0 && random.below(2) == 0) return;  // alone it goes with packed input and P
  c.packed = c.P = 0;
  c.marks = random.below(4);
  c.zoneout = random.below(6) < 3 ? 0 : 1 + random.below(2);
  c.h_factors = random.below(4) == 0;
  c.cells = random.below(2) == 0;
  if (c.marks + c.zoneout + c.h_factors + c.recompute == 0) c.cells = 1;
}
