// The kernels for bfloat16 on processors with AVX-512 and AVX512_BF16 (Zen 4, Cooper Lake, Sapphire
// Rapids and newer): products of bfloat16 pairs, at twice the rate of float32. Everything else is
// as in isa_avx512.cpp, the reserve too, so that one set may read what the other wrote.
#include "baseline.h"

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#define FUSED_LSTM_HAS_PAIRS 1
#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")
#endif

#define FUSED_LSTM_ISA_NAMESPACE avx512bf16
#define FUSED_LSTM_SIMD 3
#define FUSED_LSTM_REGISTERS 32
#define FUSED_LSTM_PAIRS 1
#define FUSED_LSTM_ONLY_BFLOAT16
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace fused_lstm {
namespace cpu {
const Kernels* avx512_bfloat16_kernels() {
#if defined(FUSED_LSTM_HAS_PAIRS)
  return &avx512bf16::kKernels;
#else
  return nullptr;
#endif
}
}  // namespace cpu
}  // namespace fused_lstm
