// Zoneout's random bits on the CPU: every task draws rows of its own.
#include <cstring>

#include "../random.h"
#include "kernels.h"
#include "team.h"

namespace fused_lstm {
namespace cpu {

Status keep_bits(const KeepBits& bits, const Parallel& parallel) {
  if (bits.T < 1 || bits.B < 1 || bits.U < 1 || bits.keep == nullptr) return Status::kBadArgument;
  const auto keep_row = active_kernels(DType::kFloat32).keep_row;
  const int64_t rows = bits.T * bits.B, tasks = min64(max64(1, parallel.threads), rows);
  run_tasks(parallel, tasks, [&](int64_t i) {
    for (int64_t row = split(rows, i, tasks); row < split(rows, i + 1, tasks); ++row) {
      const uint32_t t = static_cast<uint32_t>(row / bits.B);
      const uint32_t b = static_cast<uint32_t>(row % bits.B);
      uint8_t* keep = bits.keep + row * bits.U;
      if (keep_row != nullptr) {
        keep_row(bits, t, b, keep);
        continue;
      }
      int64_t u = 0;
      for (; u + 4 <= bits.U; u += 4) keep_quad(bits, t, b, static_cast<uint32_t>(u / 4), keep + u);
      if (u == bits.U) continue;
      uint8_t last[4];
      keep_quad(bits, t, b, static_cast<uint32_t>(u / 4), last);
      std::memcpy(keep + u, last, static_cast<size_t>(bits.U - u));
    }
  });
  return Status::kOk;
}

}  // namespace cpu
}  // namespace fused_lstm
