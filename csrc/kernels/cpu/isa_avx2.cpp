// Kernels for x86-64 with AVX2, FMA and F16C (Haswell, Zen and newer): 32-byte vectors.
#include "baseline.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define FUSED_LSTM_ISA_NAMESPACE avx2
#define FUSED_LSTM_SIMD 2
#define FUSED_LSTM_REGISTERS 16
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace fused_lstm {
namespace cpu {
const Kernels* avx2_kernels() {
#if defined(__x86_64__)
  return &avx2::kKernels;
#else
  return nullptr;
#endif
}
}  // namespace cpu
}  // namespace fused_lstm
