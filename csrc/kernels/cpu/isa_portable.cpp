// Kernels on 16-byte vectors of the compiler: SSE2 on x86-64, NEON on aarch64, plain code
// elsewhere.
#include "baseline.h"

#define FUSED_LSTM_ISA_NAMESPACE portable
#define FUSED_LSTM_SIMD 0
#if defined(__aarch64__)
#define FUSED_LSTM_REGISTERS 32
#if !defined(__clang__)
// The scheduler that runs before registers are allotted (on by default here, off on x86) loads so
// far ahead that full tiles no longer fit: ten accesses to the stack in every other step.
#pragma GCC optimize("no-schedule-insns")
#endif
#else
#define FUSED_LSTM_REGISTERS 16
#endif
#define FUSED_LSTM_VECTOR_BYTES 16
#include "isa.h"

namespace fused_lstm {
namespace cpu {
const Kernels* portable_kernels() { return &portable::kKernels; }
}  // namespace cpu
}  // namespace fused_lstm
