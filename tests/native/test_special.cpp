// Values that are not finite, and activations far out: NaN and Inf must come out where the
// reference puts them, forward and backward; gates must saturate, not overflow; one NaN row stays
// one row.
#include <cmath>
#include <limits>

#include "run.h"
#include "suite.h"

namespace {

const char* const kSpecialNames[kSpecials] = {
    "ordinary",    "NaN in x",    "Inf in x",    "NaN in h0",   "Inf in h0",
    "NaN in c0",   "Inf in c0",   "NaN in w_ih", "Inf in w_ih", "NaN in w_hh",
    "Inf in w_hh", "NaN in bias", "Inf in bias", "NaN in dy",   "Inf in dy",
    "NaN in dh_n", "Inf in dh_n", "NaN in dc_n", "Inf in dc_n"};

void check(Suite& suite, const Case& c) {
  suite.begin(c);
  const Data data(c);
  const fused_lstm::Problem& p = data.problem;
  const reference::Forward want = reference::forward(p);
  const reference::Backward back = reference::backward(p, data.incoming);
  const std::string what = kSpecialNames[c.special];
  for (const bool training : {false, true}) {
    const ForwardRun run = run_forward(c, data, training, 0xff);
    if (run.status == fused_lstm::Status::kUnsupported) {
      suite.unsupported();
      suite.end();
      return;
    }
    const Strides& s = run.y_strides;
    const double tolerance = forward_tolerance(c);
    suite.expect(run.complaint.empty(), run.complaint);
    suite.expect_close(what + ": y", want.y,
                       reference::read_rows(p, run.y->data(), s.t, s.b, p.D * p.P), tolerance);
    suite.expect_close(what + ": h_n", want.h_n,
                       reference::read_all(p.dtype, run.h_n->data(), p.D * p.B * p.P), tolerance);
    suite.expect_close(what + ": c_n", want.c_n,
                       reference::read_all(p.dtype, run.c_n->data(), p.D * p.B * p.H), tolerance);
    if (!training) continue;
    const BackwardRun backward = run_backward(c, data, run, 0xff);
    for (int k = 0; k < kGradients; ++k) {
      if (!backward.gradients[k]) continue;
      const int64_t count = gradient_size(p, data.rows, k);
      reference::Values got = reference::read_all(p.dtype, backward.gradients[k]->data(), count);
      // The kernels' sigmoid(-Inf) is a number near 1e-26, not 0: where an infinite input meets it,
      // the product is Inf and not NaN. Not finite in the same places all the same.
      const bool infinite_input = c.special % 2 == 0;
      for (size_t j = 0; infinite_input && j < got.size(); ++j) {
        if (std::isnan(back[k].sum[j]) && std::isinf(got[j])) got[j] = back[k].sum[j];
      }
      suite.expect_close(what + ": " + kGradientNames[k], back[k], got, gradient_tolerance(c));
    }
  }
  suite.end();
}

// One step whose pre-activations are exactly the biases: every gate is swept over values up to the
// largest ones while the others stay open, and each h and c is checked by itself.
void check_sweep(Suite& suite, int64_t dtype, int64_t isa) {
  const auto type = static_cast<fused_lstm::DType>(dtype);
  std::vector<double> sweep;
  for (double z = -30.0; z <= 30.0; z += 0.125) sweep.push_back(z);
  for (double z : {1e-30, 1e-6, 1e-3, 80.0, 87.3, 88.7, 89.0, 103.9, 104.0, 300.0, 709.7, 710.0,
                   745.2, 1e3, 6e4}) {
    sweep.push_back(z);
    sweep.push_back(-z);
  }
  Case c;
  c.T = 1;
  c.B = 2;
  c.I = 1;
  c.H = static_cast<int64_t>(sweep.size());
  c.dtype = dtype;
  c.isa = isa;
  c.h0 = c.b_hh = 0;
  for (int64_t gate = 0; gate < 4; ++gate) {
    suite.begin(std::string("gate ") + "ifgo"[gate] + " swept, dtype=" + kDTypeNames[dtype] +
                " isa=" + kIsaNames[isa]);
    const Data data(c);
    auto* x = const_cast<void*>(data.problem.x);
    auto* bias = const_cast<void*>(data.problem.weights[0].b_ih);
    for (int64_t b = 0; b < c.B; ++b) reference::store(type, x, b, 0.0);
    for (int64_t r = 0; r < 4 * c.H; ++r) {
      reference::store(type, bias, r, r / c.H == gate ? sweep[r % c.H] : 1.5);
    }
    const reference::Forward want = reference::forward(data.problem);
    const ForwardRun run = run_forward(c, data, false, 0xff);
    if (run.status == fused_lstm::Status::kUnsupported) {
      suite.unsupported();
    } else {
      // Nothing is summed here: two units (of 2^-23 of the largest value) for c, which h hands on
      // beside one of its own. In 16 bits one rounding.
      const double units[] = {4 * 0x1p-24, 4 * 0x1p-53, 1.01 * 0x1p-8, 1.01 * 0x1p-11};
      suite.expect_close("h_n", want.h_n, reference::read_all(type, run.h_n->data(), c.B * c.H),
                         units[dtype]);
      suite.expect_close("c_n", want.c_n, reference::read_all(type, run.c_n->data(), c.B * c.H),
                         units[dtype]);
    }
    suite.end();
  }
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_special");
  if (suite.single()) {
    check(suite, suite.single_case());
    return suite.finish();
  }
  Random random(static_cast<uint64_t>(suite.seed()) + 3000);
  for (int64_t isa : suite.isas()) {
    for (int64_t dtype = 0; dtype < 4; ++dtype) {
      check_sweep(suite, dtype, isa);
      for (int64_t special = kNanX; special < kSpecials; ++special) {
        for (int64_t k = 0; k < suite.random_cases(4); ++k) {
          Case c = random_case(random, dtype);
          c.H = 1 + random.below(40);
          c.B = 1 + random.below(12);
          c.P = 0;
          c.h0 = c.c0 = c.b_ih = c.dy = c.dh_n = c.dc_n = 1;
          if (c.x_layout >= kSameForBatch) c.x_layout = kDense;
          if (c.dy_layout >= kSameForBatch) c.dy_layout = kDense;
          c.special = special;
          // Beyond one step the reference meets 0 * Inf, where a kernel's gate near 1e-26 gives
          // +-Inf and the next gate saturates: NaN there, a finite number here.
          if (special == kInfWhh) c.T = 1;
          c.isa = isa;
          draw_run(random, c);
          check(suite, c);
        }
      }
    }
  }
  return suite.finish();
}
