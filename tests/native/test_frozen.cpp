// Forward from frozen weights against the double-precision reference, which is given the values
// that the packed weights stand for: what is measured is the kernel, not the rounding of weights.
// Every way to store them, every instruction set, threads handed over in every way.
#include <cmath>
#include <cstring>

#include "cpu/bytes.h"
#include "frozen.h"
#include "parallel.h"
#include "run.h"
#include "suite.h"

namespace cpu = fused_lstm::cpu;
using fused_lstm::Frozen;
using fused_lstm::kFrozenUnits;
using fused_lstm::Problem;
using fused_lstm::Status;
using fused_lstm::Stored;

namespace {

constexpr const char* kStoredNames[] = {"float32", "bfloat16", "int8"};

std::unique_ptr<Guarded> guarded(const Case& c, size_t bytes, size_t align) {
  return std::make_unique<Guarded>(bytes, align, c.at_start != 0);
}

// The case's weights packed as frozen.h says, and the problem with the values they stand for.
class Packed {
 public:
  Packed(const Case& c, const Problem& problem, Stored stored) : problem(problem) {
    frozen.stored = stored;
    const int64_t H = problem.H, I = problem.I, panels = (H + kFrozenUnits - 1) / kFrozenUnits;
    const size_t size = stored == Stored::kFloat32 ? 4 : stored == Stored::kBFloat16 ? 2 : 1;
    for (int32_t d = 0; d < problem.D; ++d) {
      const int64_t input_rows = fused_lstm::frozen_rows(stored, I);
      const int64_t rows_in_all = input_rows + fused_lstm::frozen_rows(stored, H);
      arrays_.push_back(guarded(c, size * panels * rows_in_all * 4 * kFrozenUnits, size));
      void* const out = arrays_.back()->data();
      std::memset(out, 0, arrays_.back()->bytes());
      arrays_.push_back(guarded(c, sizeof(float) * panels * 4 * kFrozenUnits, 4));
      float* const bias = static_cast<float*>(arrays_.back()->data());
      std::memset(bias, 0, arrays_.back()->bytes());
      frozen.weights[d].panels = out;
      frozen.weights[d].bias = bias;
      float* scales = nullptr;
      if (stored == Stored::kInt8) {
        arrays_.push_back(guarded(c, sizeof(float) * 2 * panels * 4 * kFrozenUnits, 4));
        scales = static_cast<float*>(arrays_.back()->data());
        std::memset(scales, 0, arrays_.back()->bytes());
        frozen.weights[d].scales = scales;
      }
      const auto& w = problem.weights[d];
      for (int which = 0; which < 2; ++which) {
        const int64_t n = which == 0 ? I : H;
        const float* rows = static_cast<const float*>(which == 0 ? w.w_ih : w.w_hh);
        values_.emplace_back(static_cast<size_t>(4 * H * n));
        std::vector<float>& values = values_.back();
        for (int64_t source = 0; source < 4 * H; ++source) {
          const int64_t gate = source / H, p = source % H / kFrozenUnits;
          const int64_t lane = source % H % kFrozenUnits;
          float largest = 0;
          for (int64_t k = 0; k < n; ++k)
            largest = std::fmax(largest, std::fabs(rows[source * n + k]));
          const float scale = largest > 0 ? largest / 127 : 1.0f;
          if (scales) scales[((which * panels + p) * 4 + gate) * kFrozenUnits + lane] = scale;
          for (int64_t k = 0; k < n; ++k) {
            const bool quads = stored == Stored::kInt8;
            const int64_t row = which * input_rows + (quads ? k / 4 * 4 : k);
            const int64_t row_at = (p * rows_in_all + row) * 4 * kFrozenUnits;
            const int64_t at = stored == Stored::kBFloat16  // gates in pairs
                                   ? row_at + (gate / 2 * kFrozenUnits + lane) * 2 + gate % 2
                                   : quads ? row_at + (gate * kFrozenUnits + lane) * 4 + k % 4
                                           : row_at + gate * kFrozenUnits + lane;
            const float value = rows[source * n + k];
            float& stands_for = values[static_cast<size_t>(source * n + k)];
            if (stored == Stored::kInt8) {
              const float q = std::nearbyint(value / scale);
              static_cast<uint8_t*>(out)[at] = static_cast<uint8_t>(static_cast<int>(q) + 128);
              stands_for = q * scale;
            } else {
              const auto type = stored == Stored::kFloat32 ? fused_lstm::DType::kFloat32
                                                           : fused_lstm::DType::kBFloat16;
              reference::store(type, out, at, value);
              stands_for = static_cast<float>(reference::load(type, out, at));
            }
          }
          if (which == 0) continue;
          float sum = 0;
          for (const void* b : {w.b_ih, w.b_hh})
            sum += b ? static_cast<const float*>(b)[source] : 0;
          bias[(p * 4 + gate) * kFrozenUnits + lane] = sum;
        }
        (which == 0 ? this->problem.weights[d].w_ih : this->problem.weights[d].w_hh) =
            values.data();
      }
    }
  }
  bool intact() const {
    for (const auto& array : arrays_) {
      if (!array->intact()) return false;
    }
    return true;
  }
  Problem problem;
  Frozen frozen;

 private:
  std::vector<std::unique_ptr<Guarded>> arrays_;
  std::vector<std::vector<float>> values_;
};

struct Results {
  std::unique_ptr<Guarded> y, h_n, c_n;
};

Results call(Suite& suite, const Case& c, const Data& data, const Packed& packed,
             const fused_lstm::Parallel& parallel, unsigned char poison) {
  const Problem& p = packed.problem;
  const Strides s = strides_of(c, c.y_layout, p.D * p.H, data.rows);
  Results r{guarded(c, 4 * s.elements, 4), guarded(c, 4 * p.D * p.B * p.H, 4),
            guarded(c, 4 * p.D * p.B * p.H, 4)};
  fused_lstm::Outputs out;
  out.y = r.y->data();
  out.y_t = s.t;
  out.y_b = s.b;
  out.h_n = r.h_n->data();
  out.c_n = r.c_n->data();
  const size_t bytes = cpu::frozen_workspace_bytes(p, parallel.threads);
  const auto workspace = guarded(c, bytes, 64);
  workspace->fill(poison);
  const Status status =
      cpu::frozen_forward(p, packed.frozen, out, workspace->data(), bytes, parallel);
  suite.expect(status == Status::kOk, "an error status");
  suite.expect(workspace->intact(), "wrote outside the workspace");
  suite.expect(r.y->intact() && r.h_n->intact() && r.c_n->intact(), "wrote outside a result");
  suite.expect(packed.intact() && data.inputs_unchanged(), "changed an input");
  return r;
}

void check(Suite& suite, const Case& c, const Data& data, const Packed& packed,
           const reference::Forward& want) {
  const Problem& p = packed.problem;
  const std::string stored = kStoredNames[static_cast<int32_t>(packed.frozen.stored)];
  suite.begin(c);
  cpu::set_isa(static_cast<fused_lstm::Isa>(c.isa));
  const Results r = call(suite, c, data, packed, make_parallel(c.par, c.threads), 0xff);
  const Strides s = strides_of(c, c.y_layout, p.D * p.H, data.rows);
  const int64_t states = p.D * p.B * p.H;
  // Where 8-bit weights are multiplied as integers, x and h have 16 bits, off by up to half a unit,
  // and such errors of many features add up like a random walk.
  const bool bytes =
      packed.frozen.stored == Stored::kInt8 && cpu::active_byte_product().run != nullptr;
  const double tolerance = bytes ? (4 + std::sqrt(static_cast<double>(p.I))) / double{cpu::kByteOne}
                                 : forward_tolerance(c);
  suite.expect_close(stored + " y", want.y,
                     reference::read_rows(p, r.y->data(), s.t, s.b, p.D * p.H), tolerance);
  suite.expect_close(stored + " h_n", want.h_n, reference::read_all(p.dtype, r.h_n->data(), states),
                     tolerance);
  suite.expect_close(stored + " c_n", want.c_n, reference::read_all(p.dtype, r.c_n->data(), states),
                     tolerance);
  // What the scratch held before must not matter, nor how many threads share the units.
  const Results again = call(suite, c, data, packed, make_parallel(kSerial, 1), 0x3c);
  suite.expect(
      same_bytes(r.y, again.y) && same_bytes(r.h_n, again.h_n) && same_bytes(r.c_n, again.c_n),
      stored + ": one thread and other scratch contents differ bitwise");
  suite.end();
}

// What the kernel does not do it says, and what could leave memory it refuses.
void check_contract(Suite& suite) {
  Case c;
  c.T = 3;
  c.B = 2;
  c.I = 5;
  c.H = 17;
  const Data data(c);
  const Packed packed(c, data.problem, Stored::kInt8);
  alignas(64) static char scratch[1 << 16];
  float y[3 * 2 * 17], h_n[2 * 17], c_n[2 * 17];
  fused_lstm::Outputs out;
  out.y = y;
  out.y_t = 2 * 17;
  out.y_b = 17;
  out.h_n = h_n;
  out.c_n = c_n;
  const auto status = [&](const Problem& p, const Frozen& f, const fused_lstm::Outputs& o,
                          size_t bytes) {
    return cpu::frozen_forward(p, f, o, scratch, bytes, make_parallel(kSerial, 1));
  };
  const Problem& good = packed.problem;
  const size_t bytes = cpu::frozen_workspace_bytes(good, 1);
  const auto expect = [&](const std::string& what, Status want, Status got) {
    suite.begin(what);
    suite.expect(want == got, "status " + std::to_string(static_cast<int>(got)));
    suite.end();
  };
  expect("good", Status::kOk, status(good, packed.frozen, out, bytes));
  expect("workspace", Status::kWorkspaceTooSmall, status(good, packed.frozen, out, bytes - 1));
  Problem p = good;
  p.dtype = fused_lstm::DType::kBFloat16;
  expect("dtype", Status::kUnsupported, status(p, packed.frozen, out, bytes));
  p = good;
  p.P = 4;
  expect("projection", Status::kUnsupported, status(p, packed.frozen, out, bytes));
  p = good;
  p.zoneout.h = 0.5;
  expect("zoneout", Status::kUnsupported, status(p, packed.frozen, out, bytes));
  p = good;
  const int64_t growing[] = {1, 2, 2};
  p.batch_sizes = growing;
  expect("batch_sizes", Status::kBadArgument, status(p, packed.frozen, out, bytes));
  Frozen f = packed.frozen;
  f.weights[0].scales = nullptr;
  expect("int8 without scales", Status::kBadArgument, status(good, f, out, bytes));
  f.weights[0].panels = nullptr;
  f.stored = Stored::kFloat32;
  expect("no panels", Status::kBadArgument, status(good, f, out, bytes));
  fused_lstm::Outputs o = out;
  o.h_n = nullptr;
  expect("no h_n", Status::kBadArgument, status(good, packed.frozen, o, bytes));
  o = out;
  o.reserve = scratch;
  expect("a reserve", Status::kUnsupported, status(good, packed.frozen, o, bytes));
}

// What the kernel has no path for.
Case plain(Case c) {
  c.P = c.marks = c.cells = c.zoneout = c.h_factors = c.recompute = 0;
  return c;
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_frozen");
  std::vector<Case> cases;
  if (suite.single()) {
    cases.push_back(suite.single_case());
  } else {
    check_contract(suite);
    cases = shape_grid(0, static_cast<uint64_t>(suite.seed()));
    Random random(static_cast<uint64_t>(suite.seed()) + 4000);
    for (int64_t k = 0; k < suite.random_cases(60); ++k) cases.push_back(random_case(random, 0));
    // Threads are shared out from a million products on, chunks of the input from 256 rows.
    cases.push_back(parse_case("T=3 B=1 I=300 H=280 D=1 seed=7"));
    cases.push_back(parse_case("T=3 B=7 I=40 H=260 D=2 seed=8"));
    cases.push_back(parse_case("T=261 B=2 I=20 H=40 D=2 seed=9"));
  }
  Random random(static_cast<uint64_t>(suite.seed()) + 4001);
  for (size_t k = 0; k < cases.size(); ++k) {
    Case c = suite.single() ? cases[k] : plain(cases[k]);
    const Data data(c);
    for (const Stored stored : {Stored::kFloat32, Stored::kBFloat16, Stored::kInt8}) {
      const Packed packed(c, data.problem, stored);
      const reference::Forward want = reference::forward(packed.problem);
      if (suite.single()) {
        check(suite, c, data, packed, want);
        continue;
      }
      for (int64_t isa : suite.isas()) {
        c.isa = isa;
        if (runs_of(isa, k) == 0) continue;
        draw_run(random, c);
        check(suite, c, data, packed, want);
      }
    }
  }
  return suite.finish();
}
