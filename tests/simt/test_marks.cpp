// What nn.LSTM lacks (resets, rows that end, cell states of every step, zoneout, factors of h,
// gates computed again) on the CUDA kernels: forward and backward against the reference, under
// several schedules, against the plain kernels where an option changes nothing, what one family
// saved read by another, and marks that no caller should pass but that must not leave memory.
#include "checks.h"
#include "option_checks.h"
#include "single_block_tiles.h"

using fused_lstm::cuda::single_block::kMostUnitsStrict;

namespace {

Case on(int64_t family, Case c) {
  c.family = c.back_family = family;
  return c;
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_marks", nullptr);
  if (suite.single()) {
    const Case c = suite.single_case();
    (c.marks & 4) != 0 ? check_random_marks(suite, on(c.family, c)) : check(suite, c, c.family, 1);
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
      if (!suite.takes(static_cast<int64_t>(k) / 4)) continue;
      if (c.T > 100) continue;  // a launch at a time takes a while here, and chunks are short
      draw_options(random, c);
      if (dtype > 1 && c.H == 1) c.H = 3;  // one saved gate, rounded, is all of a gradient's size
      draw_run(random, c);
      c.schedule = 1 + random.below(1000);
      check(suite, c, kStepwise, 1);
      if (c.packed + c.P > 0) continue;
      k % 4 < 2 ? check_unmarked(suite, on(kStepwise, c))
                : check_random_marks(suite, on(kStepwise, c));
    }
  }
  // Rows that have ended where their reset is asked for: in reverse they begin late, with h0.
  const Case late = parse_case("T=4 B=13 I=3 H=20 D=2 dtype=bfloat16 marks=3 h0=1 c0=1");
  for (const int64_t family : {kStepwise, kSingleBlock}) check(suite, late, family, 0);
  const Shape shapes[] = {{9, 5, 3, 7},    {4, 11, 70, 33}, {6, 3, 2, 64},
                          {3, 18, 5, 100}, {3, 3, 28, 161}, {2, 9, 66, 190}};
  for (const Shape& shape : shapes) {
    for (const Kind& kind : kKinds) {
      if (kind.dtype == kFloat32 && shape.H > kMostUnitsStrict) continue;
      Case c = case_of(random, shape, kind);
      draw_options(random, c);
      c.P = 0;
      check(suite, c, kSingleBlock, 1);
      if (c.packed != 0 || shape.H > kMostUnitsStrict) continue;  // the largest take a while
      check_unmarked(suite, on(kSingleBlock, c));
      check_random_marks(suite, on(kSingleBlock, c));
      check_reserve(suite, c, kStepwise, kSingleBlock);
      check_reserve(suite, c, kSingleBlock, kStepwise);
    }
  }
  return suite.finish();
}
