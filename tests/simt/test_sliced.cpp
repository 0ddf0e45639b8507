// The sliced families, grid and cluster, on the stand-in against the double-precision reference:
// forward and backward, every dtype they take, one and several blocks, batch groups, passes and
// launches, weights in registers and in shared memory, lengths, layouts, states given or not; that
// whoever waits in vain says so and leaves; and that a device without room falls back.
#include <cuda_runtime.h>

#include "sliced_cases.h"

namespace {

namespace cuda = fused_lstm::cuda;

constexpr Sliced kSliced[] = {
    {3, 4, 1, 1, 132, 16},  {7, 9, 3, 7, 2, 16},   {4, 3, 28, 15, 1, 64},
    {6, 17, 5, 33, 3, 16},  {11, 2, 3, 31, 9, 16}, {2, 35, 3, 65, 5, 32},
    {3, 5, 7, 48, 132, 16}, {2, 3, 5, 130, 3, 64}, {2, 9, 70, 100, 132, 32},
};
// Deep enough that a part of the weights does not fit into the registers that tests leave it.
constexpr Sliced kDeep = {2, 9, 2, 200, 8, 64};

// A cluster has at least two blocks, and they have at least 16 units each.
void check_family(Suite& suite, Random& random, const Kind& kind, int64_t family) {
  // Both are one kernel but for their exchange, and both 16-bit types but for a conversion: a
  // cluster and float16 get a part of the shapes.
  const int each = (family == kCluster ? 2 : 1) * (kind.dtype == kFloat16 ? 2 : 1);
  int turn = 0;
  for (const Sliced& shape : kSliced) {
    if (++turn % each != 0 || (family == kCluster && shape.H <= shape.units)) continue;
    check(suite, case_of(random, shape, kind, family), family, shape.H < 40 ? 1 : 0);
  }
  Sliced deep = kDeep;
  if (family == kCluster && kind.dtype == kFloat32) deep.units = 32;  // or it does not fit
  check(suite, case_of(random, deep, kind, family), family, 0);
  const Case c = case_of(random, Sliced{3, 5, 4, 40, 132, 16}, kind, family);
  check_reserve(suite, c, kStepwise, family);
  check_reserve(suite, c, family, kStepwise);
  check_unaligned_states(suite, kind, family);
}

// Not finite: no row, unit or step may leak into another through padding or a factor of zero.
void check_specials(Suite& suite, Random& random, const Kind& kind, int64_t family) {
  const int64_t stride = family == kCluster ? 5 : 3;
  for (int64_t special = 1 + random.below(stride); special < kSpecials; special += stride) {
    Case c = case_of(random, Sliced{4, 5, 3, special % 4 < 2 ? 17 : 33, 132, 16}, kind, family);
    c.h0 = c.c0 = c.b_ih = c.dy = c.dc_n = 1;
    c.dh_n = special == kNanDhn || special == kInfDhn;  // else the last step begins with nothing
    c.special = special;
    check(suite, c, family, 0);
  }
}

// Blocks that are not all there at once: they leave instead of waiting for ever, and say so.
void check_giving_up(Suite& suite) {
  Case c = parse_case("T=4 B=3 I=2 H=40 dtype=bfloat16 family=4 back_family=4 units=16");
  const Data data(c);
  const ForwardRun good = run_forward(c, data, true, 0xff);
  kernels::patience = 300 * 1000;
  for (int64_t block = 0; block < 3; ++block) {
    suite.begin("block " + std::to_string(block) + " is late");
    simt::options.late_block = block;
    const ForwardRun late = run_forward(c, data, true, 0xff);
    suite.expect(late.complaint == "a block gave up", "forward: '" + late.complaint + "'");
    const BackwardRun back = run_backward(c, data, good, 0xff);
    suite.expect(back.complaint == "a block gave up", "backward: '" + back.complaint + "'");
    simt::options.late_block = -1;
    const ForwardRun again = run_forward(c, data, true, 0xff);
    suite.expect(again.complaint.empty() && same_bytes(again.y, good.y), "the next call suffers");
    suite.end();
  }
  kernels::patience = uint64_t{10} * 1000 * 1000 * 1000;
}

// A launch that the device refuses: stepwise computes, unless the family was forced.
void check_no_room(Suite& suite) {
  Case c = parse_case("T=3 B=3 I=2 H=300 D=1 dtype=bfloat16 family=5 back_family=5");
  c.arch = 80;
  suite.begin("no room for a cooperative launch");
  const Data data(c);
  const cuda::Launch launch = make_launch(c, false);
  suite.expect(cuda::choose_family(data.problem, true, launch) == cuda::Family::kGrid,
               "the plan chooses another family");
  simt::options.coresident = 2;
  const ForwardRun run = run_forward(c, data, true, 0xff);
  compare_forward(suite, c, data, reference::forward(data.problem), run, "stepwise instead");
  compare_backward(suite, c, data, reference::backward(data.problem, data.incoming),
                   run_backward(c, data, run, 0xff), "stepwise instead");
  Case forced = c;
  forced.family = forced.back_family = kGrid;
  const ForwardRun refused = run_forward(forced, data, true, 0xff);
  suite.expect(refused.status == Status::kLaunchFailed, "forced: another status");
  suite.expect(refused.complaint.find("no room") != std::string::npos,
               "last_error: " + refused.complaint);
  simt::options.coresident = 132;
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_sliced", nullptr);
  if (suite.single()) {
    const Case c = suite.single_case();
    check(suite, c, c.family, 1);
    return suite.finish();
  }
  Random random(static_cast<uint64_t>(suite.seed()));
  for (const Kind& kind : kKinds) {
    for (const int64_t family : {kGrid, kCluster}) {
      check_family(suite, random, kind, family);
      check_specials(suite, random, kind, family);
    }
  }
  check_giving_up(suite);
  check_no_room(suite);
  return suite.finish();
}
