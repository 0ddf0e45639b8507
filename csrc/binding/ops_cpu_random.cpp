// The operator that draws zoneout's and dropout's masks, on the CPU.
#include "call.h"
#include "keep_bits.h"
#include "place_cpu.h"
#include "runtime.h"

namespace fused_lstm {
namespace {

Tensor keep_bits(const Tensor& like, const Tensor& seed, int64_t stream, int64_t T, int64_t B,
                 int64_t U, double h, double c) {
  const CpuPlace place;
  view("like", like, place.device());
  KeepBits bits = checked_bits(seed, stream, T, B, U, h, c);
  Tensor keep = place.empty({T, B, U}, torch_uint8());
  bits.keep = static_cast<uint8_t*>(write_data(keep));
  if (B == 0) return keep;
  const Status status = cpu::keep_bits(bits, runtime::parallel());
  runtime::check_parallel();
  check_status(status, "keep_bits", "");
  return keep;
}

}  // namespace
}  // namespace fused_lstm

STABLE_TORCH_LIBRARY_IMPL(fused_lstm, CPU, library) {
  library.impl("keep_bits", TORCH_BOX(&fused_lstm::keep_bits));
}
