// Everything an instruction set's file compiles, in an order and a namespace of its own. The
// including isa_*.cpp has already included the baseline headers, defined FUSED_LSTM_ISA_NAMESPACE
// and FUSED_LSTM_SIMD, and set the target; nothing here may define a function that other files
// share, or the linker could pick a copy that this processor cannot run.

#include "../gate_math.h"

namespace fused_lstm {
namespace cpu {
namespace FUSED_LSTM_ISA_NAMESPACE {

template <class E>
struct Tag {};

#ifndef FUSED_LSTM_MATRIX
#define FUSED_LSTM_MATRIX 0
#endif

// Each builds on those before it.
// clang-format off
#include "simd.h"
#include "activation.h"
#include "transpose.h"
#include "tile.h"
#include "pack.h"
#include "sequence.h"
#include "projection.h"
#include "marks.h"
#include "matrix.h"
#include "matrix_forward.h"
#include "matrix_backward.h"
#include "forward.h"
#include "recompute.h"
#include "backward.h"
#if !defined(FUSED_LSTM_ONLY_BFLOAT16)
#include "recurrence_rows.h"
#include "recurrence_forward.h"
#include "recurrence_backward.h"
#include "frozen_forward.h"
#include "keep_rows.h"
#endif
// clang-format on

// Calls f(s, e) with a value of the stored and of the computed type of dtype.
template <class F>
auto with_types(DType dtype, const F& f) {
#if defined(FUSED_LSTM_ONLY_BFLOAT16)
  (void)dtype;
  return f(BFloat16{}, float{});
#else
  switch (dtype) {
    case DType::kFloat64:
      return f(double{}, double{});
    case DType::kBFloat16:
      return f(BFloat16{}, float{});
    case DType::kFloat16:
      return f(Float16{}, float{});
    default:
      return f(float{}, float{});
  }
#endif
}

inline Facts facts(DType dtype) {
  return with_types(dtype, [](auto s, auto e) {
    Facts facts;
    facts.width = Vec<decltype(e)>::kWidth;
    facts.compute_bytes = sizeof(e);
    facts.storage_bytes = sizeof(s);
    facts.operand_bytes = sizeof(typename Operand<decltype(s), decltype(e)>::type);
    facts.matrix = has_matrix<decltype(s)>();
    facts.small_tiles = kSmallTiles;
    return facts;
  });
}

// Units are counted in whole lines, not in this set's vectors, so that the size is the same on
// every processor: a compiled graph keeps it (fused_lstm/ops.py), and caches of such graphs travel.
// Whole lines also leave nothing to round up between the arrays of Reserve::at.
inline size_t reserve_size(const Problem& problem) {
  return with_types(problem.dtype, [&](auto s, auto e) {
    constexpr int64_t kLine = 64 / sizeof(e);
    static_assert(kLine % Vec<decltype(e)>::kWidth == 0, "a vector would reach beyond the line");
    const int64_t units = ceil_div(problem.H, kLine) * kLine;
    const int64_t elements = problem.D * total_rows(problem) * units;
    return static_cast<size_t>(elements) * ((problem.recompute ? 0 : 4 * sizeof(s)) + sizeof(e));
  });
}

inline size_t forward_workspace(const Problem& problem, const Outputs& outputs, const Plan& plan) {
  return with_types(problem.dtype, [&](auto s, auto e) {
    return Forward<decltype(s), decltype(e)>(problem, outputs, plan, nullptr).workspace_bytes();
  });
}

inline void run_forward(const Problem& problem, const Outputs& outputs, const Plan& plan,
                        void* workspace, const Parallel& parallel) {
  with_types(problem.dtype, [&](auto s, auto e) {
    Forward<decltype(s), decltype(e)>(problem, outputs, plan, workspace).run(parallel);
  });
}

inline size_t backward_workspace(const Problem& problem, const Gradients& gradients,
                                 const Plan& plan) {
  return with_types(problem.dtype, [&](auto s, auto e) {
    return Backward<decltype(s), decltype(e)>(problem, gradients, plan, nullptr).workspace_bytes();
  });
}

inline void run_backward(const Problem& problem, const Gradients& gradients, const Plan& plan,
                         void* workspace, const Parallel& parallel) {
  with_types(problem.dtype, [&](auto s, auto e) {
    Backward<decltype(s), decltype(e)>(problem, gradients, plan, workspace).run(parallel);
  });
}

#if defined(FUSED_LSTM_ONLY_BFLOAT16)
constexpr auto frozen_workspace = nullptr, run_frozen = nullptr, kKeepRow = nullptr;
#endif

#if !defined(FUSED_LSTM_ONLY_BFLOAT16)
inline size_t recurrence_forward_workspace(const Recurrence& q, const RecurrenceOutputs& outputs,
                                           const RecurrencePlan& plan) {
  return with_recurrence(q, [&](auto e, auto gates, auto normalises) {
    return RecurrenceForward<decltype(e), gates, normalises>(q, outputs, plan, nullptr)
        .workspace_bytes();
  });
}

inline void run_recurrence_forward(const Recurrence& q, const RecurrenceOutputs& outputs,
                                   const RecurrencePlan& plan, void* workspace,
                                   const Parallel& parallel) {
  with_recurrence(q, [&](auto e, auto gates, auto normalises) {
    RecurrenceForward<decltype(e), gates, normalises>(q, outputs, plan, workspace).run(parallel);
  });
}

inline size_t recurrence_backward_workspace(const Recurrence& q,
                                            const RecurrenceGradients& gradients,
                                            const RecurrencePlan& plan) {
  return with_recurrence(q, [&](auto e, auto gates, auto normalises) {
    return RecurrenceBackward<decltype(e), gates, normalises>(q, gradients, plan, nullptr)
        .workspace_bytes();
  });
}

inline void run_recurrence_backward(const Recurrence& q, const RecurrenceGradients& gradients,
                                    const RecurrencePlan& plan, void* workspace,
                                    const Parallel& parallel) {
  with_recurrence(q, [&](auto e, auto gates, auto normalises) {
    RecurrenceBackward<decltype(e), gates, normalises>(q, gradients, plan, workspace).run(parallel);
  });
}

constexpr RecurrenceKernels kRecurrence = {recurrence_forward_workspace, run_recurrence_forward,
                                           recurrence_backward_workspace, run_recurrence_backward};
#else
constexpr RecurrenceKernels kRecurrence = {};  // never asked for: it knows no bfloat16
#endif

constexpr Kernels kKernels = {
    facts,        reserve_size,     forward_workspace, run_forward, backward_workspace,
    run_backward, frozen_workspace, run_frozen,        kRecurrence, kKeepRow};

}  // namespace FUSED_LSTM_ISA_NAMESPACE
}  // namespace cpu
}  // namespace fused_lstm
