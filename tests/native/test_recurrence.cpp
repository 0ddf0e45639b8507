// The recurrence of the cell's variants on the CPU against plain loops (variant_checks.h), and
// the loops' own backward against finite differences of their forward.
#include "parallel.h"
#include "variant_checks.h"

namespace cpu = fused_lstm::cpu;

namespace recurrence {
namespace kernels {

const size_t kAlignment = 64;

size_t reserve_bytes(const Recurrence& q) { return cpu::recurrence_reserve_bytes(q); }
size_t forward_workspace_bytes(const Case& c, const Recurrence& q, bool training) {
  return cpu::recurrence_forward_workspace_bytes(q, training,
                                                 make_parallel(c.par, c.threads).threads);
}
size_t backward_workspace_bytes(const Case& c, const Recurrence& q, const RecurrenceGradients&) {
  return cpu::recurrence_backward_workspace_bytes(
      q, make_parallel(c.back_par, c.back_threads).threads);
}
Status forward(const Case& c, const Recurrence& q, const RecurrenceOutputs& outputs,
               void* workspace, size_t bytes) {
  return cpu::recurrence_forward(q, outputs, workspace, bytes, make_parallel(c.par, c.threads));
}
Status backward(const Case& c, const Recurrence& q, const RecurrenceGradients& gradients,
                void* workspace, size_t bytes) {
  return cpu::recurrence_backward(q, gradients, workspace, bytes,
                                  make_parallel(c.back_par, c.back_threads));
}
std::string complaint() { return ""; }

}  // namespace kernels

namespace {

// The loops' gradients of one weighted sum of all outputs.
void check_loops(Suite& suite, const Case& c) {
  suite.begin(to_text(c) + " (the loops themselves)");
  Data data(c);
  Loops& loops = data.loops;
  const auto value = [&] {
    loops.forward();
    double total = 0;
    for (int k = 0; k < kOutputs; ++k) {
      for (size_t j = 0; j < data.dout[k].size(); ++j) total += data.dout[k][j] * loops.out[k][j];
    }
    return total;
  };
  data.compute();
  const std::vector<Gradient> d = loops.backward(data.dout);
  const char* const names[kInputs] = {"zx", "h0", "c0", "", "peepholes", "ln_hh", "ln_c", "bias"};
  for (int k = 0; k < kInputs; ++k) {
    if (k == kWhh || !loops.has(static_cast<Input>(k))) continue;
    Values found(loops.in[k].size());
    for (size_t j = 0; j < found.size(); ++j) {
      const double before = loops.in[k][j], step = 1e-5;
      loops.in[k][j] = before + step;
      const double up = value();
      loops.in[k][j] = before - step;
      found[j] = (up - value()) / (2 * step);
      loops.in[k][j] = before;
    }
    suite.expect_close(names[k], d[k], found, 1e-7);
  }
  suite.end();
}

void check_on_isa(Suite& suite, const Case& c) {
  cpu::set_isa(static_cast<fused_lstm::Isa>(c.isa));
  check(suite, c, 1);
}

}  // namespace
}  // namespace recurrence

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_recurrence");
  if (suite.single()) {
    recurrence::check_on_isa(suite, suite.single_case());
    return suite.finish();
  }
  recurrence::check_refusals(suite);
  Random random(static_cast<uint64_t>(suite.seed()) + 9000);
  for (int64_t k = 0; k < 24; ++k) {
    Case c = random_case(random, static_cast<int64_t>(fused_lstm::DType::kFloat64));
    c.T = 3, c.B = 2, c.H = 3, c.P = c.packed = 0;
    c.x_layout = c.dy_layout = kDense;
    recurrence::check_loops(suite, c);
  }
  for (const fused_lstm::DType dtype : {fused_lstm::DType::kFloat32, fused_lstm::DType::kFloat64}) {
    const int64_t d = static_cast<int64_t>(dtype);
    std::vector<Case> cases = shape_grid(d, static_cast<uint64_t>(suite.seed()) + 9100);
    for (int64_t k = suite.random_cases(60); k > 0; --k) cases.push_back(random_case(random, d));
    for (size_t k = 0; k < cases.size(); ++k) {
      if (!suite.takes(static_cast<int64_t>(k) + d)) continue;
      Case c = recurrence::recurrent(cases[k]);
      for (const int64_t isa : suite.isas()) {
        c.isa = isa;
        if (runs_of(isa, k) == 0) continue;
        draw_run(random, c);
        recurrence::check_on_isa(suite, c);
      }
    }
  }
  return suite.finish();
}
