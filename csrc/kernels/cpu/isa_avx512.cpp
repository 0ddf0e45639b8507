// Kernels for x86-64 with AVX-512 F, VL, BW and DQ (Skylake-X, Ice Lake, Zen 4 and newer): 64-byte
// vectors.
#include "baseline.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")
#endif

#define FUSED_LSTM_ISA_NAMESPACE avx512
#define FUSED_LSTM_SIMD 3
#define FUSED_LSTM_REGISTERS 32
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace fused_lstm {
namespace cpu {
const Kernels* avx512_kernels() {
#if defined(__x86_64__)
  return &avx512::kKernels;
#else
  return nullptr;
#endif
}
}  // namespace cpu
}  // namespace fused_lstm
