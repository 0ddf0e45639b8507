// The plan without a kernel: for any shape, threads and processor it must stay within what was
// asked, be the same every time, and not share what is too small to share. The processor's cache is
// an argument, so that plans of other machines than this one are looked at.
#include <algorithm>
#include <cstdio>

#include "cpu/plan.h"
#include "suite.h"

using namespace fused_lstm;

namespace {

struct Draw {
  Problem problem;
  cpu::Facts facts;
  int32_t threads;
  bool training;
  std::vector<int64_t> batch_sizes;
  std::string text;
};

void draw(Random& random, Draw& d) {
  Problem& p = d.problem;
  p = Problem();
  p.T = random.pick({1, 2, 7, 28, 100, 784, 5000});
  p.B = random.pick({1, 2, 5, 8, 16, 33, 50, 128, 1025});
  p.I = random.pick({1, 28, 64, 65, 256, 1024});
  p.H = p.P = random.pick({1, 7, 100, 128, 512, 1024, 3000});
  if (random.below(4) == 0) p.P = (p.H + 1) / 2;
  p.D = static_cast<int32_t>(1 + random.below(2));
  if (random.below(3) == 0) {
    d.batch_sizes.assign(static_cast<size_t>(p.T), p.B);
    for (int64_t t = 1; t < p.T; ++t) {
      d.batch_sizes[t] = std::max<int64_t>(1, d.batch_sizes[t - 1] - random.below(2));
    }
    p.batch_sizes = d.batch_sizes.data();
  }
  const int64_t dtype = random.below(4);
  p.dtype = static_cast<DType>(dtype);
  d.facts.compute_bytes = dtype == 1 ? 8 : 4;
  d.facts.storage_bytes = static_cast<int32_t>(reference::element_size(p.dtype));
  d.facts.width = static_cast<int32_t>(random.pick({16, 32, 64})) / d.facts.compute_bytes;
  d.facts.l2_bytes = random.pick({256 << 10, 512 << 10, 2 << 20});
  d.facts.near_bytes = random.pick({256 << 10, 3 << 20, 16 << 20});
  d.facts.fused_bytes = random.pick({192 << 10, 2 << 20, 8 << 20});
  d.facts.stream_bytes = random.pick({0, 256 << 10, 2 << 20});
  d.facts.small_tiles = random.below(2);
  d.facts.distant = d.facts.small_tiles || random.below(2);
  d.threads = static_cast<int32_t>(random.pick({1, 2, 3, 8, 200}));
  d.training = random.below(2);
  char text[200];
  std::snprintf(text, sizeof text,
                "T=%d B=%d I=%d H=%d P=%d D=%d packed=%d %s threads=%d l2=%d width=%d small=%d",
                static_cast<int>(p.T), static_cast<int>(p.B), static_cast<int>(p.I),
                static_cast<int>(p.H), static_cast<int>(p.P), p.D, p.batch_sizes != nullptr,
                kDTypeNames[dtype], d.threads, static_cast<int>(d.facts.l2_bytes), d.facts.width,
                d.facts.small_tiles);
  d.text = text;
}

bool same(const cpu::Plan& a, const cpu::Plan& b) {
  return a.dot == b.dot && a.fused == b.fused && a.split == b.split && a.threads == b.threads &&
         a.chunk_steps == b.chunk_steps && a.k_block == b.k_block && a.near_bytes == b.near_bytes &&
         a.distant == b.distant && a.stream_gates == b.stream_gates;
}

void expect_sound(Suite& suite, const Draw& d, const cpu::Plan& plan, const std::string& which) {
  const Problem& p = d.problem;
  suite.expect(plan.threads >= 1 && plan.threads <= d.threads,
               which + " has " + std::to_string(plan.threads) + " threads");
  suite.expect(plan.chunk_steps >= 1 && plan.chunk_steps <= p.T,
               which + " has chunks of " + std::to_string(plan.chunk_steps) + " steps");
  suite.expect(plan.k_block >= 1, which + " has no k-block");
  // Work for one call below ten microseconds is never shared.
  const int64_t work = cpu::total_rows(p) * 4 * p.H * (p.I + p.P) * p.D;
  suite.expect(plan.threads == 1 || work >= 500000, which + " shares " + std::to_string(work));
}

// Where weights are multiplied as they lie: every bound, on both sides of it. I = H, L2 of 1 MB.
struct Bound {
  int64_t T, B, H;
  bool small_tiles, matrix;
  DType dtype;
  bool dot;
};
constexpr DType kF32 = DType::kFloat32, kBf16 = DType::kBFloat16;
constexpr Bound kBounds[] = {
    {1, 4, 16, false, false, kF32, true},   {1, 5, 64, false, false, kF32, false},
    {1, 8, 128, false, false, kF32, true},  {1, 9, 128, false, false, kF32, false},
    {1, 32, 512, false, false, kF32, true}, {1, 33, 512, false, false, kF32, false},
    {1, 8, 512, true, false, kF32, true},   {1, 9, 512, true, false, kF32, false},
    {1, 5, 128, true, false, kF32, false},  {2, 4, 128, false, false, kF32, true},
    {3, 3, 128, false, false, kF32, false}, {2, 4, 64, false, false, kF32, false},
    {11, 4, 512, false, false, kF32, true}, {12, 4, 512, false, false, kF32, false},
    {2, 5, 512, false, false, kF32, false}, {1, 8, 512, false, false, kBf16, false},
    {1, 4, 512, false, false, kBf16, true}, {1, 8, 512, false, true, kBf16, false},
    {11, 1, 64, false, false, kF32, true},  {12, 1, 64, false, false, kF32, false},
    {12, 1, 64, true, false, kF32, true},   {2, 4, 512, false, true, kBf16, false},
};
void expect_bounds(Suite& suite) {
  for (const Bound& b : kBounds) {
    Problem p;
    p.dtype = b.dtype;
    p.T = b.T, p.B = b.B, p.I = p.H = p.P = b.H;
    cpu::Facts facts;
    facts.l2_bytes = 1 << 20;
    facts.small_tiles = b.small_tiles;
    facts.matrix = b.matrix;
    facts.storage_bytes = static_cast<int32_t>(reference::element_size(b.dtype));
    facts.operand_bytes = facts.storage_bytes;
    const cpu::Plan plan = cpu::plan_forward(p, false, 1, facts);
    suite.begin("as they lie: T=" + std::to_string(b.T) + " B=" + std::to_string(b.B) +
                " H=" + std::to_string(b.H) + (b.small_tiles ? " small tiles" : ""));
    suite.expect(plan.dot == b.dot, b.dot ? "packed" : "not packed");
    suite.expect(!plan.dot || b.T > 1 || plan.fused, "the input of one step is projected ahead");
    suite.end();
  }
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_plan");
  Random random(static_cast<uint64_t>(suite.seed()) + 5000);
  int64_t by_rows = 0, by_units = 0, dots = 0, apart = 0, streams = 0;
  for (int64_t k = 0; k < suite.random_cases(3000); ++k) {
    Draw d;
    draw(random, d);
    suite.begin(d.text);
    const cpu::Plan forward = cpu::plan_forward(d.problem, d.training, d.threads, d.facts);
    const cpu::Plan backward = cpu::plan_backward(d.problem, d.threads, d.facts);
    expect_sound(suite, d, forward, "forward");
    expect_sound(suite, d, backward, "backward");
    suite.expect(same(forward, cpu::plan_forward(d.problem, d.training, d.threads, d.facts)) &&
                     same(backward, cpu::plan_backward(d.problem, d.threads, d.facts)),
                 "the plan differs when asked again");
    // One row has no use for a panel where tiles are small.
    suite.expect(!d.facts.small_tiles || d.problem.B > 1 || forward.dot, "one row is packed");
    // What nothing keeps, or backward reads at once, is not stored past the caches.
    suite.expect(!forward.stream_gates || (d.training && d.facts.stream_bytes > 0 &&
                                           cpu::total_rows(d.problem) * 4 * d.problem.H *
                                                   d.problem.D * d.facts.storage_bytes >
                                               d.facts.stream_bytes),
                 "gates are streamed");
    streams += forward.stream_gates;
    by_rows += forward.threads > 1 && forward.split == cpu::Split::kRows;
    by_units += forward.threads > 1 && forward.split == cpu::Split::kUnits;
    dots += forward.dot;
    apart += !forward.fused;
    suite.end();
  }
  expect_bounds(suite);
  suite.begin("variety");
  suite.expect(by_rows > 0 && by_units > 0 && dots > 0 && apart > 0 && streams > 0,
               "some kind of plan never comes up: rows " + std::to_string(by_rows) + ", units " +
                   std::to_string(by_units) + ", dot " + std::to_string(dots) + ", input apart " +
                   std::to_string(apart) + ", gates streamed " + std::to_string(streams));
  suite.end();
  return suite.finish();
}
