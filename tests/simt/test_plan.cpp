// The plan of the CUDA kernels: what each family takes, how the sliced ones cut a layer up, and
// what the cost table chooses. Here are the plan's own sources once more, with the constants that
// ship: the objects that the other tests link have smaller ones, so that small cases meet every
// limit.
#undef FUSED_LSTM_HELD_FRAGMENTS
#undef FUSED_LSTM_SLICED_STEPS
#undef FUSED_LSTM_CHUNK_BYTES
#define cuda cuda_as_shipped
#include "cuda/plan.cpp"
#include "cuda/single_block.cpp"
#include "cuda/sliced.cpp"
#include "cuda/stepwise.cpp"
#undef cuda

#include <cmath>
#include <cstring>

#include "suite.h"

namespace {

namespace cuda = fused_lstm::cuda_as_shipped;
namespace sliced = fused_lstm::cuda_as_shipped::sliced;
using fused_lstm::Problem;

// An H100 or H200 with that many multiprocessors and that architecture.
cuda::Launch launch_of(const Case& c) {
  cuda::Launch launch;
  launch.device.arch = static_cast<int32_t>(c.arch);
  launch.device.sms = static_cast<int32_t>(c.sms);
  launch.device.shared_per_block = c.arch >= 90 ? 232448 : 166912;
  launch.math = static_cast<cuda::Math>(c.math);
  for (int i = 0; i < 4 && c.arch >= 90; ++i) {
    launch.device.clusters[i] = launch.device.sms / (2 << i);
  }
  return launch;
}

struct PlanCase {
  const char* what;
  const char* text;
  cuda::Family family;
  bool fits;
};
constexpr PlanCase kPlans[] = {
    {"grid: bfloat16 to H = 1800", "T=9 B=8 I=8 H=1800 dtype=bfloat16", cuda::Family::kGrid, true},
    {"grid: not 2200", "T=9 B=8 I=8 H=2200 dtype=bfloat16", cuda::Family::kGrid, false},
    {"grid: TF32 to 1280", "T=9 B=8 I=8 H=1280 dtype=float32 math=1", cuda::Family::kGrid, true},
    {"grid: strict to 1280", "T=9 B=8 I=8 H=1280 dtype=float32", cuda::Family::kGrid, true},
    {"grid: both directions", "T=9 B=8 I=8 H=1024 D=2 dtype=float16", cuda::Family::kGrid, true},
    {"grid: no float64", "T=9 B=8 I=8 H=64 dtype=float64", cuda::Family::kGrid, false},
    {"grid: no projection", "T=9 B=8 I=8 H=64 P=8 dtype=float32", cuda::Family::kGrid, false},
    {"grid: sm_80", "T=9 B=8 I=8 H=1024 dtype=float16 arch=80", cuda::Family::kGrid, true},
    {"grid: not sm_75", "T=9 B=8 I=8 H=64 dtype=float16 arch=75", cuda::Family::kGrid, false},
    {"grid: too few multiprocessors", "T=9 B=8 I=8 H=520 dtype=float16 sms=8", cuda::Family::kGrid,
     false},
    {"cluster: float16 to H = 512", "T=9 B=8 I=8 H=512 dtype=float16", cuda::Family::kCluster,
     true},
    {"cluster: not 1100", "T=9 B=8 I=8 H=1100 dtype=float16", cuda::Family::kCluster, false},
    {"cluster: TF32 to 400", "T=9 B=8 I=8 H=400 dtype=float32 math=1", cuda::Family::kCluster,
     true},
    {"cluster: strict to 400", "T=9 B=8 I=8 H=400 dtype=float32", cuda::Family::kCluster, true},
    {"grid: every option at once",
     "T=9 B=8 I=8 H=1800 marks=3 cells=1 zoneout=2 h_factors=1 recompute=1 dtype=bfloat16",
     cuda::Family::kGrid, true},
    {"grid: strict with options", "T=9 B=8 I=8 H=1280 marks=3 dtype=float32", cuda::Family::kGrid,
     true},
    {"cluster: every option at once",
     "T=9 B=8 I=8 H=512 marks=3 cells=1 zoneout=2 h_factors=1 recompute=1 dtype=float16",
     cuda::Family::kCluster, true},
    {"cluster: TF32 with options", "T=9 B=8 I=8 H=400 marks=3 dtype=float32 math=1",
     cuda::Family::kCluster, true},
    {"one block: every option at once",
     "T=9 B=8 I=8 H=128 marks=3 cells=1 zoneout=2 h_factors=1 recompute=1 dtype=float16",
     cuda::Family::kSingleBlock, true},
    {"one block: TF32 with options", "T=9 B=8 I=8 H=128 marks=3 dtype=float32 math=1",
     cuda::Family::kSingleBlock, true},
    {"one block: strict with options", "T=9 B=8 I=8 H=128 marks=3 dtype=float32",
     cuda::Family::kSingleBlock, true},
    {"one block: 16 bits to 192 with options, x read directly",
     "T=9 B=8 I=28 H=192 marks=3 dtype=bfloat16", cuda::Family::kSingleBlock, true},
    {"one block: and projected ahead", "T=9 B=8 I=70 H=192 marks=3 dtype=float16",
     cuda::Family::kSingleBlock, true},
    {"one block: TF32 no further with options", "T=9 B=8 I=8 H=129 marks=3 dtype=float32 math=1",
     cuda::Family::kSingleBlock, false},
    {"cluster: not sm_89", "T=9 B=8 I=8 H=256 dtype=float16 arch=89", cuda::Family::kCluster,
     false},
};

// No case is computed here, so its arrays are not made: Data of H = 1800 would take a while.
Problem problem_of(const Case& c) {
  Problem p;
  p.dtype = static_cast<fused_lstm::DType>(c.dtype);
  p.T = c.T, p.B = c.B, p.I = c.I, p.H = c.H, p.P = c.P == 0 ? c.H : c.P;
  p.D = static_cast<int32_t>(c.D);
  p.x_b = p.I, p.x_t = p.B * p.I;
  if (c.P != 0) p.weights[0].w_hr = &p;
  static const uint8_t byte = 0;
  if (c.marks != 0) p.marks = &byte;
  if (c.h_factors != 0) p.h_factors = &byte;
  if (c.zoneout != 0) p.zoneout.h = 0.5;
  p.cells = c.cells != 0;
  p.recompute = c.recompute != 0;
  return p;
}

void check_plans(Suite& suite) {
  for (const PlanCase& plan : kPlans) {
    suite.begin(plan.what);
    const Case c = parse_case(plan.text);
    const Problem p = problem_of(c);
    const cuda::Launch launch = launch_of(c);
    suite.expect(cuda::computes(plan.family, p, true, launch) == plan.fits, "the plan says other");
    for (const bool backward : {false, true}) {
      const sliced::Plan found = cuda::sliced_plan(plan.family, p, backward, launch);
      if (found.refusal != nullptr) continue;
      suite.expect(found.shared_bytes <= launch.device.shared_per_block, "too much shared memory");
      suite.expect(found.groups * found.slices.group_rows() >= p.B, "rows are missing");
      suite.expect(found.slices.padded() >= p.H, "units are missing");
      suite.expect(found.cluster || found.groups * found.slices.blocks * found.directions <= c.sms,
                   "more blocks than multiprocessors");
      suite.expect(std::isfinite(found.us) && found.us > 0, "no prediction");
    }
    suite.end();
  }
}

// What the cost table makes of some shapes, and that it is asked only where it is wanted.
void check_choice(Suite& suite) {
  const auto expect = [&](const std::string& text, cuda::Family want) {
    suite.begin("the choice for " + text);
    Case c = parse_case(text);
    const Problem p = problem_of(c);
    cuda::Launch launch = launch_of(c);
    suite.expect(cuda::choose_family(p, true, launch) != cuda::Family::kGrid &&
                     cuda::choose_family(p, true, launch) != cuda::Family::kCluster,
                 "chosen although it is off");
    char line[1024];
    cuda::explain(p, true, launch, line, sizeof line);
    const bool says = std::strstr(line, "off by default") != nullptr;
    launch.across_blocks = true;
    const cuda::Family found = cuda::choose_family(p, true, launch);
    suite.expect(found == want, "another family: " + std::to_string(static_cast<int>(found)));
    suite.expect(says == cuda::is_sliced(want), std::string("explain says: ") + line);
    cuda::explain(p, true, launch, line, sizeof line);
    suite.expect(std::strstr(line, "us per step") != nullptr, line);
    suite.end();
  };
  expect("T=784 B=128 I=1 H=64 dtype=bfloat16", cuda::Family::kSingleBlock);
  expect("T=1024 B=16 I=768 H=768 dtype=bfloat16", cuda::Family::kGrid);
  expect("T=1024 B=64 I=512 H=512 dtype=bfloat16", cuda::Family::kCluster);
  expect("T=25 B=8 I=1024 H=1024 D=2 dtype=float32 math=1", cuda::Family::kGrid);
  expect("T=25 B=4096 I=1024 H=1024 dtype=bfloat16", cuda::Family::kStepwise);
  expect("T=25 B=16 I=512 H=3000 dtype=bfloat16", cuda::Family::kStepwise);
  expect("T=25 B=16 I=64 H=512 dtype=bfloat16 arch=75", cuda::Family::kStepwise);
  expect("T=784 B=128 I=1 H=64 dtype=bfloat16 marks=3", cuda::Family::kSingleBlock);
  expect("T=784 B=128 I=1 H=160 dtype=bfloat16 marks=3", cuda::Family::kSingleBlock);
  expect("T=1024 B=16 I=768 H=768 dtype=bfloat16 marks=3", cuda::Family::kGrid);
  expect("T=1024 B=16 I=768 H=768 dtype=bfloat16 recompute=1", cuda::Family::kGrid);
}

// A family that was measured to be the quickest is taken where it may be, and nowhere else.
void check_measured(Suite& suite) {
  using cuda::Family;
  const auto expect = [&](const char* what, const std::string& text, Family measured, bool across,
                          Family want) {
    suite.begin(what);
    const Case c = parse_case(text);
    const Problem p = problem_of(c);
    cuda::Launch launch = launch_of(c);
    launch.across_blocks = across;
    launch.measured = true;
    launch.family = measured;
    const Family found = cuda::choose_family(p, true, launch);
    suite.expect(found == want, "another family: " + std::to_string(static_cast<int>(found)));
    char line[1024];
    cuda::explain(p, true, launch, line, sizeof line);
    const bool says = std::strstr(line, "it was measured to be the quickest") != nullptr;
    suite.expect(says == (found == measured), std::string("explain says: ") + line);
    launch.forced = true;
    launch.family = Family::kStepwise;
    suite.expect(cuda::choose_family(p, true, launch) == Family::kStepwise, "forced is stronger");
    suite.end();
  };
  const std::string small = "T=784 B=128 I=1 H=64 dtype=bfloat16";
  const std::string large = "T=1024 B=16 I=768 H=768 dtype=bfloat16";
  expect("measured: stepwise, where the plan would not", small, Family::kStepwise, false,
         Family::kStepwise);
  expect("measured: stepwise, past the cost table", large, Family::kStepwise, true,
         Family::kStepwise);
  expect("measured: grid", small, Family::kGrid, true, Family::kGrid);
  expect("measured: grid, which is off", small, Family::kGrid, false, Family::kSingleBlock);
  expect("measured: cluster, which does not fit", large, Family::kCluster, true, Family::kGrid);
}

// What stays on the device while a call is computed, and the room there is for it.
void check_footprint(Suite& suite) {
  using cuda::Family;
  const auto expect = [&](Family family, const std::string& text) {
    suite.begin("the footprint of " + text);
    const Case c = parse_case(text);
    const Problem p = problem_of(c);
    const cuda::Launch launch = launch_of(c);
    const cuda::Footprint forward = cuda::footprint(family, p, false, launch);
    const cuda::Footprint both = cuda::footprint(family, p, true, launch);
    if (family == Family::kStepwise) {
      suite.expect(both.blocks == 0 && both.room == 0, "something stays between steps");
    } else {
      suite.expect(forward.blocks > 0 && forward.room > 0, "nothing stays");
      suite.expect(forward.room <= c.sms, "room for more blocks than multiprocessors");
      // Of 8 rows on 132 multiprocessors, so that all are resident at once.
      suite.expect(forward.blocks <= forward.room, "more blocks than there is room for");
      suite.expect(both.blocks * forward.room >= forward.blocks * both.room,
                   "training needs no less than its forward pass");
      suite.expect(forward.blocks % p.D == 0, "a direction is missing");
    }
    suite.end();
  };
  expect(Family::kStepwise, "T=9 B=8 I=8 H=64 dtype=bfloat16");
  expect(Family::kSingleBlock, "T=9 B=8 I=8 H=64 dtype=bfloat16");
  expect(Family::kSingleBlock, "T=9 B=8 I=8 H=64 D=2 dtype=bfloat16");
  expect(Family::kCluster, "T=9 B=8 I=8 H=256 dtype=bfloat16");
  expect(Family::kGrid, "T=9 B=8 I=8 H=512 dtype=bfloat16");
  expect(Family::kGrid, "T=9 B=8 I=8 H=512 D=2 dtype=bfloat16");
  suite.begin("both directions in one launch");
  const Problem one = problem_of(parse_case("T=9 B=8 I=8 H=64 dtype=bfloat16"));
  const Case c = parse_case("T=9 B=8 I=8 H=64 D=2 dtype=bfloat16");
  const cuda::Launch launch = launch_of(c);
  suite.expect(cuda::footprint(Family::kSingleBlock, problem_of(c), false, launch).blocks ==
                   2 * cuda::footprint(Family::kSingleBlock, one, false, launch).blocks,
               "not twice the blocks of one direction");
  suite.end();
  suite.begin("the larger pass");
  suite.expect(cuda::footprint(Family::kGrid, one, true, launch).blocks >
                   cuda::footprint(Family::kGrid, one, false, launch).blocks,
               "backward of this shape is cut into more blocks than forward");
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_plan", nullptr);
  check_plans(suite);
  check_choice(suite);
  check_measured(suite);
  check_footprint(suite);
  return suite.finish();
}
