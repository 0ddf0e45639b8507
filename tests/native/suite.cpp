// The runner behind every test program of this folder; see suite.h.
#include "suite.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "parallel.h"

namespace {

constexpr size_t kPrinted = 20;  // failures printed in full

char current_case[1024];

// Only async-signal-safe calls here.
void say_and_exit(const char* what) {
  (void)!write(1, what, std::strlen(what));
  (void)!write(1, current_case, std::strlen(current_case));
  (void)!write(1, "\n", 1);
}

void on_signal(int number) {
  say_and_exit(number == SIGALRM ? "FAIL hangs: " : "FAIL crashes (memory outside a buffer): ");
  _exit(3);
}

}  // namespace

// Called by AddressSanitizer and ThreadSanitizer, where they are built in, before they report.
extern "C" void __asan_on_error() { say_and_exit("FAIL sanitizer: "); }
extern "C" void __tsan_on_report(void*) { say_and_exit("FAIL sanitizer: "); }

Suite::Suite(int argc, char** argv, const char* name, bool (*isa_runs_here)(fused_lstm::Isa))
    : name_(name) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  std::string isa;
  long long share = 0, every = 1;
  for (int k = 1; k + 1 < argc; k += 2) {
    const std::string flag = argv[k], value = argv[k + 1];
    if (flag == "--case") {
      case_text_ = value;
    } else if (flag == "--random") {
      random_ = std::atoll(value.c_str());
    } else if (flag == "--seed") {
      seed_ = std::atoll(value.c_str());
    } else if (flag == "--isa") {
      isa = value;
    } else if (flag == "--share" && std::sscanf(argv[k + 1], "%lld/%lld", &share, &every) == 2 &&
               share >= 0 && share < every) {
      share_ = share, every_ = every;
    } else if (flag == "--seconds") {
      seconds_ = std::atoll(value.c_str());
    } else if (flag == "--first") {
      first_ = std::atoll(value.c_str());
    } else {
      std::fprintf(
          stderr,
          "%s: expected --case, --random, --seed, --isa, --share K/N, --seconds or --first, got "
          "%s\n",
          name, argv[k]);
      std::exit(2);
    }
  }
  for (int64_t k = 0; k < 4 && isa_runs_here != nullptr; ++k) {
    const bool wanted = isa.empty() || isa == kIsaNames[k];
    const bool runs = isa_runs_here(static_cast<fused_lstm::Isa>(k));
    if (wanted && runs) isas_.push_back(k);
    if (wanted && !runs) note(std::string("skipped: ") + kIsaNames[k] + " does not run here");
  }
  signal(SIGALRM, on_signal);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  signal(SIGSEGV, on_signal);
  signal(SIGBUS, on_signal);
#endif
}

double Suite::smallest(int64_t dtype) {
  return dtype == 3 ? 0x1p-24 : 1e-30;  // float16's subnormals; elsewhere far below any sum's error
}

void Suite::begin(const std::string& what) {
  current_ = what;
  zero_ = smallest(0);
  complaints_.clear();
  is_unsupported_ = false;
  std::snprintf(current_case, sizeof current_case, "%s --case \"%s\"", name_, what.c_str());
  alarm(static_cast<unsigned>(seconds_));
}

void Suite::expect(bool good, const std::string& complaint) {
  if (!good) complaints_ += " " + complaint + ";";
}

void Suite::expect_close(const std::string& name, const reference::Values& want,
                         const reference::Values& got, double tolerance, double size) {
  double largest = size, error = 0.0;
  size_t worst = 0, misplaced = want.size();
  for (size_t k = 0; k < want.size(); ++k) {
    if (std::isfinite(want[k]) && std::isfinite(got[k])) {
      largest = std::max(largest, std::fabs(want[k]));
      if (std::fabs(want[k] - got[k]) > error) {
        error = std::fabs(want[k] - got[k]);
        worst = k;
      }
    } else if (misplaced == want.size() && !(std::isnan(want[k]) && std::isnan(got[k])) &&
               !(want[k] == got[k])) {
      misplaced = k;
    }
  }
  char text[256];
  if (misplaced < want.size()) {
    std::snprintf(text, sizeof text, "%s[%zu of %zu] is %g, expected %g", name.c_str(), misplaced,
                  want.size(), got[misplaced], want[misplaced]);
    expect(false, text);
  } else if (error > std::max(tolerance * largest, zero_)) {
    std::snprintf(text, sizeof text, "%s[%zu of %zu] is %.9g, expected %.9g, error %.2e of %.2e",
                  name.c_str(), worst, want.size(), got[worst], want[worst],
                  largest > 0 ? error / largest : error, tolerance);
    expect(false, text);
  } else if (error > zero_) {
    worst_ = std::max(worst_, error / largest / tolerance);
  }
}

void Suite::end() {
  alarm(0);
  if (!complaints_.empty()) {
    if (++failed_ <= static_cast<int64_t>(kPrinted)) {
      std::printf("FAIL %s --case \"%s\":%s\n", name_, current_.c_str(), complaints_.c_str());
    }
    if (first_ != 0) std::exit(finish());
  } else if (is_unsupported_) {
    ++unsupported_;
  } else {
    ++passed_;
  }
}

int Suite::finish() {
  for (const std::string& line : notes_) std::printf("%s: %s\n", name_, line.c_str());
  if (failed_ > static_cast<int64_t>(kPrinted)) {
    std::printf("%s: %lld more failures not shown\n", name_,
                static_cast<long long>(failed_ - static_cast<int64_t>(kPrinted)));
  }
  if (worst_ > 0) std::printf("%s: largest error is %.2f of its tolerance\n", name_, worst_);
  if (unsupported_ > 0) {
    std::printf("%s: %lld cases skipped, the kernel says kUnsupported\n", name_,
                static_cast<long long>(unsupported_));
  }
  std::printf("%s: %lld passed, %lld failed\n", name_, static_cast<long long>(passed_),
              static_cast<long long>(failed_));
  return failed_ == 0 && passed_ > 0 ? 0 : 1;
}

namespace {

struct Tolerance {
  double forward, gradient;
};

// Sums run over up to about 1000 products of size below 1 and states over up to 200 steps, so a few
// hundred half-units in the last place may gather, fewer where the sums are blocked.
constexpr Tolerance kTolerances[4] = {
    {4e-6, 1e-5},    // float32: unit 1.2e-7; activations within 4 units
    {1e-14, 3e-14},  // float64: unit 2.2e-16; the reference itself carries about 10 units
    {6e-3, 1.6e-2},  // bfloat16: unit 7.8e-3; output rounded once (half a unit), saved state once
    {8e-4, 2e-3},    // float16: unit 9.8e-4; as bfloat16
};

}  // namespace

double forward_tolerance(const Case& c) { return kTolerances[c.dtype].forward; }
double gradient_tolerance(const Case& c) { return kTolerances[c.dtype].gradient; }

int runs_of(int64_t isa, size_t k) {
  const bool emulated = isa == static_cast<int64_t>(fused_lstm::Isa::kEmulated512);
  return !emulated ? 2 : k % 2 == 0 ? 1 : 0;
}

void draw_run(Random& random, Case& c) {
  c.threads = random.pick({1, 2, 3, 5});
  c.par = c.threads == 1 ? kSerial : 1 + random.below(kParallelKinds - 1);
  c.back_threads = random.pick({1, 2, 3, 5});
  c.back_par = c.back_threads == 1 ? kSerial : 1 + random.below(kParallelKinds - 1);
  c.y_layout = random.below(4);
  c.needs = random.below(2) ? 2047 : 1 + random.below(2047);
}

namespace {

void draw_options(Random& random, Case& c) {
  c.D = 1 + random.below(2);
  c.packed = random.below(3) == 0;
  c.h0 = random.below(3) != 0;
  c.c0 = random.below(3) != 0;
  c.b_ih = random.below(4) != 0;
  c.b_hh = random.below(4) != 0;
  c.x_layout = random.below(kLayouts);
  c.dy_layout = random.below(kLayouts);
  c.dy = random.below(4) != 0;
  c.dh_n = random.below(2);
  c.dc_n = random.below(2);
  if (c.dy + c.dh_n + c.dc_n == 0) c.dy = 1;
  c.at_start = random.below(4) == 0;
  c.seed = 1 + random.below(1000000);
}

// T, B, I, H; a projection comes from the seed.
struct Shape {
  int64_t T, B, I, H;
};
constexpr Shape kShapes[] = {
    {1, 1, 1, 1},    {2, 1, 1, 1},    {1, 2, 3, 1},     {3, 5, 2, 3},     {7, 3, 3, 7},
    {2, 4, 28, 8},   {3, 1, 28, 8},   {1, 6, 1, 9},     {7, 7, 2, 15},    {2, 8, 37, 16},
    {3, 9, 3, 17},   {1, 13, 28, 24}, {2, 16, 1, 31},   {3, 17, 2, 32},   {7, 1, 37, 33},
    {2, 31, 3, 48},  {1, 33, 28, 63}, {3, 2, 1, 65},    {2, 3, 28, 100},  {3, 1, 3, 130},
    {1, 4, 37, 160}, {5, 6, 28, 130}, {2, 2, 2, 200},   {2, 5, 3, 264},   {2, 1, 3, 520},
    {2, 3, 700, 9},  {1, 2, 530, 24}, {2, 7, 600, 33},  {1, 1, 1025, 17}, {129, 17, 2, 5},
    {67, 31, 1, 16}, {300, 7, 3, 9},  {150, 1, 1, 33},  {40, 2, 3, 40},   {11, 64, 5, 24},
    {3, 701, 2, 3},  {2, 1100, 1, 8}, {30, 3, 2, 96},   {90, 12, 70, 9},  {270, 4, 16, 11},
    {3, 9, 260, 70}, {5, 40, 9, 66},  {13, 6, 12, 130}, {4, 2, 9, 290},
};
// Enough work for threads, weights beyond half an L2 cache, input projected apart in chunks. The
// reference takes a tenth of a second for one of these.
constexpr Shape kLargeShapes[] = {
    {4, 12, 200, 288}, {3, 33, 70, 200}, {6, 1, 40, 330}, {3, 7, 600, 140}, {30, 70, 68, 33},
};

// T, B, I, H, P: several blocks of P's columns, k-blocks over H, chunks of backward, dot products.
struct ProjectedShape {
  int64_t T, B, I, H, P;
};
constexpr ProjectedShape kProjectedShapes[] = {
    {2, 1, 3, 17, 9},   {40, 3, 5, 130, 70},  {9, 24, 30, 100, 96},
    {90, 12, 9, 33, 8}, {3, 33, 9, 150, 130}, {6, 1, 40, 250, 33},
};

}  // namespace

Case random_case(Random& random, int64_t dtype) {
  Case c;
  c.dtype = dtype;
  do {
    c.T = random.pick({1, 2, 3, 7});
    c.B = random.pick({1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 31, 33});
    c.I = random.pick({1, 2, 3, 28, 37});
    c.H = random.pick({1, 3, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 65, 100, 130, 160});
  } while (c.T * c.B * 4 * c.H * (c.I + c.H) > 1500000);  // the reference takes milliseconds
  if (c.H > 1 && random.below(5) == 0) c.P = 1 + random.below(c.H - 1);
  draw_options(random, c);
  return c;
}

std::vector<Case> shape_grid(int64_t dtype, uint64_t seed) {
  Random random(seed + 17 * static_cast<uint64_t>(dtype));
  std::vector<Case> cases;
  std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
  if (dtype != 3) shapes.insert(shapes.end(), std::begin(kLargeShapes), std::end(kLargeShapes));
  for (const Shape& shape : shapes) {
    Case c;
    c.dtype = dtype;
    c.T = shape.T;
    c.B = shape.B;
    c.I = shape.I;
    c.H = shape.H;
    draw_options(random, c);
    cases.push_back(c);
    if (shape.H > 2 && shape.H < 100 && random.below(3) == 0) {
      c.P = 1 + random.below(shape.H - 1);
      cases.push_back(c);
    }
  }
  for (const ProjectedShape& shape : kProjectedShapes) {
    Case c;
    c.dtype = dtype;
    c.T = shape.T;
    c.B = shape.B;
    c.I = shape.I;
    c.H = shape.H;
    c.P = shape.P;
    draw_options(random, c);
    cases.push_back(c);
  }
  return cases;
}
