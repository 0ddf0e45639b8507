// Zoneout's random bits on a GPU: a thread draws those of four units of a row, which one block of
// random words gives.
#include "../random.h"
#include "queue.cuh"

namespace fused_lstm {
namespace cuda {
namespace {

struct DrawBits {
  KeepBits bits;
  int64_t quads;  // of a row
  bool wide;      // those of every row are aligned
};

__global__ void keep_bits_kernel(DrawBits p) {
  const KeepBits& bits = p.bits;
  for_each_element(bits.T * bits.B, p.quads, [&](int64_t row, int64_t quad) {
    uint8_t drawn[4];
    keep_quad(bits, static_cast<uint32_t>(row / bits.B), static_cast<uint32_t>(row % bits.B),
              static_cast<uint32_t>(quad), drawn);
    uint8_t* const to = bits.keep + row * bits.U + 4 * quad;
    if (p.wide) {
      uint32_t word;
      memcpy(&word, drawn, 4);
      *reinterpret_cast<uint32_t*>(to) = word;
      return;
    }
    for (int k = 0; k < 4 && 4 * quad + k < bits.U; ++k) to[k] = drawn[k];
  });
}

}  // namespace

Status keep_bits(const KeepBits& bits, const Launch& launch) {
  if (bits.T < 1 || bits.B < 1 || bits.U < 1 || bits.keep == nullptr) return Status::kBadArgument;
  const bool wide = bits.U % 4 == 0 && reinterpret_cast<uintptr_t>(bits.keep) % 4 == 0;
  const DrawBits draw = {bits, (bits.U + 3) / 4, wide};
  Queue queue(launch, DType::kFloat32);
  queue.run(keep_bits_kernel, cover(bits.T * bits.B, draw.quads), draw);
  return queue.status();
}

}  // namespace cuda
}  // namespace fused_lstm
