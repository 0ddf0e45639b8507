// The single-block family on the stand-in against the double-precision reference: forward and
// backward, every dtype it takes, H from 1 to its limit, both row tiles, lengths, layouts, states
// given or not, x read directly and projected; and that its reserve and the stepwise family's are
// one and the same contract.
#include <cuda_runtime.h>

#include "checks.h"
#include "single_block.h"

namespace {

namespace cuda = fused_lstm::cuda;
namespace single_block = fused_lstm::cuda::single_block;

// H: around every instance's edges; B: row tails; I: read directly (up to 64) and projected.
constexpr Shape kShapes[] = {
    {3, 4, 1, 1},    {1, 1, 2, 2},    {4, 9, 3, 7},     {3, 8, 28, 31},  {3, 17, 5, 32},
    {5, 5, 65, 33},  {2, 7, 64, 64},  {3, 9, 28, 65},   {2, 11, 70, 95}, {2, 4, 17, 100},
    {3, 9, 28, 128}, {2, 3, 1, 127},  {2, 2, 100, 128}, {2, 3, 28, 129}, {2, 9, 2, 160},
    {2, 2, 3, 161},  {2, 9, 28, 192}, {2, 3, 66, 191},
};

// More lengths than one launch carries.
void check_long_batch(Suite& suite) {
  Case c = parse_case("T=2 B=2100 I=1 H=2 D=1 dtype=float32 packed=1 sms=1");
  c.needs = 1 << 1 | 1 << 2;  // dh0, dc0
  check(suite, c, kSingleBlock, 1);
}

void check_plans(Suite& suite) {
  const auto expect = [&](const std::string& what, const char* text, bool fits) {
    suite.begin(what);
    const Case c = parse_case(text);
    const Data data(c);
    const cuda::Launch launch = make_launch(c, false);
    suite.expect(single_block::fits(data.problem, true, launch) == fits, "the plan says otherwise");
    suite.end();
  };
  expect("bfloat16 to H = 192", "T=1 B=1 I=1 H=192 dtype=bfloat16", true);
  expect("but no further", "T=1 B=1 I=1 H=193 dtype=bfloat16", false);
  expect("H = 128 on sm_80", "T=1 B=1 I=1 H=128 dtype=bfloat16 arch=80", true);
  expect("not below sm_80", "T=1 B=1 I=1 H=8 dtype=bfloat16 arch=75", false);
  expect("nor from sm_100 on", "T=1 B=1 I=1 H=8 dtype=bfloat16 arch=100", false);
  expect("float32 to H = 128", "T=1 B=1 I=1 H=128 dtype=float32", true);
  expect("but not 129", "T=1 B=1 I=1 H=129 dtype=float32", false);
  expect("TF32 to H = 128", "T=1 B=1 I=1 H=128 dtype=float32 math=1", true);
  expect("no float64", "T=1 B=1 I=1 H=8 dtype=float64", false);
  expect("no projection", "T=1 B=1 I=1 H=8 P=4 dtype=float32", false);

  // What an instance may use follows from the device's shared memory.
  suite.begin("less shared memory");
  const Data data(parse_case("T=1 B=1 I=28 H=192 dtype=bfloat16"));
  cuda::Launch launch = make_launch(Case(), false);
  launch.device.shared_per_block = 166912;  // sm_80
  suite.expect(!single_block::fits(data.problem, true, launch), "H = 192 needs more than that");
  const Data smaller(parse_case("T=1 B=1 I=64 H=128 dtype=float32 math=1"));
  launch.math = cuda::Math::kTf32;
  const single_block::Plan plan = single_block::plan(smaller.problem, false, launch);
  suite.expect(plan.refusal == nullptr && plan.input_depth == 0, "x must come projected");
  suite.expect(plan.shared_bytes <= launch.device.shared_per_block, "too much shared memory");
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_single_block", nullptr);
  if (suite.single()) {
    check(suite, suite.single_case(), kSingleBlock, 1);
    return suite.finish();
  }
  Random random(static_cast<uint64_t>(suite.seed()));
  for (const Kind& kind : kKinds) {
    for (const Shape& shape : kShapes) {
      if (kind.dtype == kFloat32 && shape.H > single_block::kMostUnitsStrict) continue;
      const Case c = case_of(random, shape, kind);
      check(suite, c, kSingleBlock, 1);
      if (shape.H % 32 != 1) continue;
      check_reserve(suite, c, kStepwise, kSingleBlock);
      check_reserve(suite, c, kSingleBlock, kStepwise);
    }
    // Few multiprocessors: more rows in a block.
    for (Shape shape : {Shape{3, 19, 6, 128}, {3, 23, 70, 128}, {3, 6, 3, 61}}) {
      Case c = case_of(random, shape, kind);
      c.sms = 1;
      check(suite, c, kSingleBlock, 2);
    }
    check_unaligned_states(suite, kind, kSingleBlock);
    // Not finite: no row, unit or step may leak into another through padding or a factor of zero.
    for (int64_t special = 1; special < kSpecials; ++special) {
      Case c = case_of(random, {4, 5, 3, special % 4 < 2 ? 3 : 33}, kind);
      c.h0 = c.c0 = c.b_ih = c.dy = c.dc_n = 1;
      c.dh_n = special == kNanDhn || special == kInfDhn;  // else the last step begins with nothing
      c.special = special;
      check(suite, c, kSingleBlock, 1);
    }
  }
  check_long_batch(suite);
  check_plans(suite);
  return suite.finish();
}
