// The table of entry points that one instruction set provides (isa_*.cpp fill it, dispatch.cpp
// chooses).
#pragma once

#include "../frozen.h"
#include "../lstm.h"
#include "../recurrence.h"
#include "plan.h"

namespace fused_lstm {
namespace cpu {

struct RecurrenceKernels {
  size_t (*forward_workspace)(const Recurrence&, const RecurrenceOutputs&, const RecurrencePlan&);
  void (*forward)(const Recurrence&, const RecurrenceOutputs&, const RecurrencePlan&,
                  void* workspace, const Parallel&);
  size_t (*backward_workspace)(const Recurrence&, const RecurrenceGradients&,
                               const RecurrencePlan&);
  void (*backward)(const Recurrence&, const RecurrenceGradients&, const RecurrencePlan&,
                   void* workspace, const Parallel&);
};

struct Kernels {
  Facts (*facts)(DType dtype);  // caches are left to the dispatcher
  size_t (*reserve_bytes)(const Problem&);
  size_t (*forward_workspace)(const Problem&, const Outputs&, const Plan&);
  void (*forward)(const Problem&, const Outputs&, const Plan&, void* workspace, const Parallel&);
  size_t (*backward_workspace)(const Problem&, const Gradients&, const Plan&);
  void (*backward)(const Problem&, const Gradients&, const Plan&, void* workspace, const Parallel&);
  // From frozen weights; null where the set is for bfloat16 alone.
  size_t (*frozen_workspace)(const Problem&, const Plan&);
  void (*frozen)(const Problem&, const Frozen&, const Outputs&, const Plan&, void* workspace,
                 const Parallel&);
  RecurrenceKernels recurrence;
  // Zoneout's bits of row b at step t; null where bits are drawn unit by unit.
  void (*keep_row)(const KeepBits&, uint32_t t, uint32_t b, uint8_t* keep);
};

// Those in use now for a dtype.
const Kernels& active_kernels(DType dtype);

const Kernels* portable_kernels();
const Kernels* avx2_kernels();             // null where this build or architecture has none
const Kernels* avx512_kernels();           // likewise
const Kernels* avx512_bfloat16_kernels();  // likewise; beside the former, for bfloat16 alone
const Kernels* amx_bfloat16_kernels();     // likewise
const Kernels* emulated512_kernels();  // AVX-512's and AMX's code on emulated vectors, for tests

}  // namespace cpu
}  // namespace fused_lstm
