// The recurrence of the cell's variants on the CUDA kernels, against plain loops and under several
// schedules: tests/native/variant_checks.h.
#include "kernels_cuda.h"
#include "variant_checks.h"

namespace cuda = fused_lstm::cuda;

namespace recurrence {
namespace kernels {

const size_t kAlignment = 256;

size_t reserve_bytes(const Recurrence& q) { return cuda::recurrence_reserve_bytes(q); }
size_t forward_workspace_bytes(const Case&, const Recurrence& q, bool) {
  return cuda::recurrence_forward_workspace_bytes(q);
}
size_t backward_workspace_bytes(const Case&, const Recurrence& q, const RecurrenceGradients& g) {
  return cuda::recurrence_backward_workspace_bytes(q, g);
}
Status forward(const Case& c, const Recurrence& q, const RecurrenceOutputs& outputs,
               void* workspace, size_t bytes) {
  return ::kernels::run(c, [&] {
    return cuda::recurrence_forward(q, outputs, workspace, bytes, make_launch(c, false));
  });
}
Status backward(const Case& c, const Recurrence& q, const RecurrenceGradients& gradients,
                void* workspace, size_t bytes) {
  return ::kernels::run(c, [&] {
    return cuda::recurrence_backward(q, gradients, workspace, bytes, make_launch(c, true));
  });
}
std::string complaint() { return ::kernels::complaint(); }

}  // namespace kernels
}  // namespace recurrence

namespace {

// With LayerNorm: more rows than one slice of a sum has, more units than a block has threads.
constexpr const char* kLarge[] = {"T=3 B=70 H=5", "T=2 B=2 H=530", "T=3 B=33 H=97"};

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_recurrence", nullptr);
  if (suite.single()) {
    recurrence::check(suite, suite.single_case(), 2);
    return suite.finish();
  }
  recurrence::check_refusals(suite);
  Random random(static_cast<uint64_t>(suite.seed()) + 9000);
  for (const fused_lstm::DType dtype : {fused_lstm::DType::kFloat32, fused_lstm::DType::kFloat64}) {
    const int64_t d = static_cast<int64_t>(dtype);
    std::vector<Case> cases = shape_grid(d, static_cast<uint64_t>(suite.seed()) + 9100);
    for (int64_t k = suite.random_cases(24); k > 0; --k) cases.push_back(random_case(random, d));
    for (size_t k = 0; k < cases.size(); ++k) {
      Case c = recurrence::recurrent(cases[k]);
      if ((static_cast<int64_t>(k) + d) % 2 != 0) continue;  // each shape with one dtype
      if (!suite.takes(static_cast<int64_t>(k) / 2)) continue;
      if (c.T * c.B * c.H > 20000) continue;  // a launch at a time takes a while here
      c.schedule = 1 + random.below(1000);
      recurrence::check(suite, c, 2);
    }
  }
  for (const char* large : kLarge) {
    for (int64_t dtype = 0; dtype < 2; ++dtype) {
      Case c = recurrence::recurrent(parse_case(large));
      c.dtype = dtype;
      c.seed = 10 * suite.seed() + dtype;
      while (!recurrence::Options(c).given[recurrence::kLnC]) ++c.seed;
      recurrence::check(suite, c, 1);
    }
  }
  return suite.finish();
}
