// The arguments of the operator keep_bits, checked: what it does alike on every device.
#pragma once

#include <utility>

#include "stable.h"

namespace fused_lstm {

// Everything but where the bits go. The seed lies on the CPU, whatever draws.
inline KeepBits checked_bits(const Tensor& seed, int64_t stream, int64_t T, int64_t B, int64_t U,
                             double h, double c) {
  const View v = view("seed", seed, cpu_device());
  expect_dtype(v, torch_int64());
  if (v.dim != 0) reject("seed", "a single number", describe_sizes(v));
  constexpr int64_t kMost = int64_t{1} << 31;  // each is a word of a counter
  const struct {
    const char* name;
    int64_t value, least;
  } sizes[] = {{"stream", stream, 0}, {"T", T, 1}, {"B", B, 0}, {"U", U, 1}};
  for (const auto& size : sizes) {
    if (size.value < size.least || size.value >= kMost) {
      reject(size.name, "a number from " + std::to_string(size.least) + " to 2^31 - 1",
             std::to_string(size.value));
    }
  }
  for (const auto& [name, p] : {std::pair("h", h), std::pair("c", c)}) {
    if (!(p >= 0 && p <= 1)) reject(name, "a probability from 0 to 1", std::to_string(p));
  }
  KeepBits bits;
  bits.key = *static_cast<const uint64_t*>(read_data(seed));
  bits.stream = static_cast<uint32_t>(stream);
  bits.T = T;
  bits.B = B;
  bits.U = U;
  bits.h = static_cast<uint32_t>(h * 65536 + 0.5);
  bits.c = static_cast<uint32_t>(c * 65536 + 0.5);
  return bits;
}

}  // namespace fused_lstm
