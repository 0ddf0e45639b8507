// The operator that computes from frozen weights (../kernels/frozen.h), on the CPU.
#include <tuple>

#include "call.h"
#include "run_cpu.h"

namespace fused_lstm {
namespace {

std::tuple<Tensor, Tensor, Tensor> frozen_forward(
    const Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
    const OptionalTensor& c0, int64_t hidden_size, const Tensor& panels,
    const OptionalTensor& scales, const Tensor& bias, const OptionalTensor& panels_reverse,
    const OptionalTensor& scales_reverse, const OptionalTensor& bias_reverse) {
  const CpuPlace place;
  Frozen frozen;
  const Call call(place, x, batch_sizes, h0, c0, hidden_size,
                  {"panels", "scales", "bias", &panels, scales, &bias},
                  {"panels_reverse", "scales_reverse", "bias_reverse",
                   panels_reverse ? &*panels_reverse : nullptr, scales_reverse,
                   bias_reverse ? &*bias_reverse : nullptr},
                  &frozen);
  Outputs out;
  auto [y, h_n, c_n, none] = call.new_outputs(place.empty({0}, torch_uint8()), &out);
  run_frozen(call.problem(), frozen, out, "frozen_forward");
  return {std::move(y), std::move(h_n), std::move(c_n)};
}

}  // namespace
}  // namespace fused_lstm

STABLE_TORCH_LIBRARY_IMPL(fused_lstm, CPU, library) {
  library.impl("frozen_forward", TORCH_BOX(&fused_lstm::frozen_forward));
}
