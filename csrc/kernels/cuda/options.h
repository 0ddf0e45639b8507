// Which of the options that nn.LSTM lacks a call has, by what they ask of a kernel. recompute is
// not among them: it changes what lies around a recurrence, not the recurrence.
#pragma once

#include "cuda.h"

namespace fused_lstm {
namespace cuda {

// Whether the h that a step's gates read is not always what the step before left.
inline bool changes_h(const Problem& p) { return p.marks != nullptr || p.h_factors != nullptr; }

// Whether a step is more than a cell.
inline bool has_options(const Problem& p) { return changes_h(p) || p.cells || p.zoneout.on(); }

}  // namespace cuda
}  // namespace fused_lstm
