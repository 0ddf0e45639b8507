// The kernels for bfloat16 on processors with AMX (Sapphire Rapids and newer): products on its
// tiles, see matrix.h. Everything else is as in isa_avx512bf16.cpp, the reserve too, so that one
// set may read what the other wrote.
//
// An assembler that knows the instructions (binutils 2.36) comes with GCC 12 at the latest.
#include "baseline.h"

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 12)
#define FUSED_LSTM_HAS_AMX 1
#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((                                                                                \
        target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")
#endif

#define FUSED_LSTM_ISA_NAMESPACE amx
#define FUSED_LSTM_SIMD 3
#define FUSED_LSTM_REGISTERS 32
#define FUSED_LSTM_PAIRS 1
#define FUSED_LSTM_MATRIX 1
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
const Kernels* amx_bfloat16_kernels() {
#if defined(FUSED_LSTM_HAS_AMX)
  return &amx::kKernels;
#else
  return nullptr;
#endif
}
}  // namespace cpu
}  // namespace fused_lstm
