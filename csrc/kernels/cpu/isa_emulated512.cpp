// The 64-byte code path on vectors that the compiler splits for the baseline, and on tiles in plain
// C++: slow, and the same logic as AVX-512 with AVX512_BF16 and AMX on any machine. For tests.
//
// Slow to compile, too, and so only in builds that ask for it (-DFUSED_LSTM_EMULATED:
// tests/native).
#include "baseline.h"

#if defined(FUSED_LSTM_EMULATED)
#define FUSED_LSTM_ISA_NAMESPACE emulated512
#define FUSED_LSTM_SIMD 0
#define FUSED_LSTM_REGISTERS 32
#define FUSED_LSTM_PAIRS 1
#define FUSED_LSTM_MATRIX 2
#define FUSED_LSTM_VECTOR_BYTES 64
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // 64-byte vectors stay inside this file
#endif
#include "isa.h"
#endif

namespace fused_lstm {
namespace cpu {
const Kernels* emulated512_kernels() {
#if defined(FUSED_LSTM_EMULATED)
  return &emulated512::kKernels;
#else
  return nullptr;
#endif
}
}  // namespace cpu
}  // namespace fused_lstm
