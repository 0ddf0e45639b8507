// What nn.LSTM lacks on the sliced families, grid and cluster: as test_marks.cpp has it for the
// others.
#include "option_checks.h"
#include "sliced_cases.h"

namespace {

// Several blocks; one and several batch groups, passes and launches; units past the end.
constexpr Sliced kGridShapes[] = {
    {6, 9, 3, 23, 2, 16}, {4, 17, 5, 33, 3, 16}, {5, 3, 6, 40, 2, 32}};
constexpr Sliced kClusterShapes[] = {{6, 10, 3, 35, 2, 16}, {4, 3, 2, 40, 8, 32}};

void check_shape(Suite& suite, Random& random, const Sliced& shape, const Kind& kind,
                 int64_t family) {
  Case c = case_of(random, shape, kind, family);
  draw_options(random, c);
  c.P = 0;
  fit_device(c, shape.sms, family);
  check(suite, c, family, 1);
  c.family = c.back_family = family;
  if (c.packed == 0) check_random_marks(suite, c);
  if (family == kCluster) return;  // one kernel but for the exchange
  if (c.packed == 0) check_unmarked(suite, c);
  check_reserve(suite, c, kStepwise, family);
  check_reserve(suite, c, family, kStepwise);
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_sliced_options", nullptr);
  if (suite.single()) {
    const Case c = suite.single_case();
    (c.marks & 4) != 0 ? check_random_marks(suite, c) : check(suite, c, c.family, 1);
    return suite.finish();
  }
  Random random(static_cast<uint64_t>(suite.seed()));
  for (const Kind& kind : kKinds) {
    // Both 16-bit types are one kernel but for a conversion: float16 gets a part of the shapes.
    const int each = kind.dtype == kFloat16 ? 2 : 1;
    int turn = 0;
    for (const Sliced& shape : kGridShapes) {
      if (turn++ % each == 0) check_shape(suite, random, shape, kind, kGrid);
    }
    for (const Sliced& shape : kClusterShapes) {
      if (turn++ % each == 0) check_shape(suite, random, shape, kind, kCluster);
    }
  }
  return suite.finish();
}
