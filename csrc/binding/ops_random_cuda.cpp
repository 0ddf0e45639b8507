// The operator that draws zoneout's and dropout's masks, on a GPU: the bits that ops_cpu_random.cpp
// draws.
#include "keep_bits.h"
#include "launch_cuda.h"
#include "place_cuda.h"

namespace fused_lstm {
namespace {

Tensor keep_bits(const Tensor& like, const Tensor& seed, int64_t stream, int64_t T, int64_t B,
                 int64_t U, double h, double c) {
  const CudaPlace place(like);
  view("like", like, place.device());
  KeepBits bits = checked_bits(seed, stream, T, B, U, h, c);
  Tensor keep = place.empty({T, B, U}, torch_uint8());
  bits.keep = static_cast<uint8_t*>(write_data(keep));
  if (B == 0) return keep;
  const LaunchContext context(place.device().index);
  context.check(cuda::keep_bits(bits, context.launch()), "keep_bits");
  return keep;
}

}  // namespace
}  // namespace fused_lstm

STABLE_TORCH_LIBRARY_IMPL(fused_lstm, CUDA, library) {
  library.impl("keep_bits", TORCH_BOX(&fused_lstm::keep_bits));
}
