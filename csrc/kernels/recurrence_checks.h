// What every processor's kernels refuse of a call described by recurrence.h, before they look at
// its memory.
#pragma once

#include "recurrence.h"

namespace fused_lstm {

inline Status check(const Recurrence& q) {
  if (q.dtype != DType::kFloat32 && q.dtype != DType::kFloat64) return Status::kUnsupported;
  if (q.T < 1 || q.B < 1 || q.H < 1 || (q.gates != 3 && q.gates != 4)) return Status::kBadArgument;
  if (q.zx == nullptr || q.w_hh == nullptr) return Status::kBadArgument;
  if ((q.ln_hh == nullptr) != (q.ln_c == nullptr)) return Status::kBadArgument;
  if (q.ln_c == nullptr && q.ln_c_bias != nullptr) return Status::kBadArgument;
  if (!(q.cell_clip > 0) || !(q.hidden_clip > 0)) return Status::kBadArgument;
  return Status::kOk;
}

inline Status check(const Recurrence& q, const RecurrenceOutputs& outputs, const void* workspace) {
  const Status status = check(q);
  if (status != Status::kOk) return status;
  const bool given = outputs.y != nullptr && outputs.h_n != nullptr && outputs.c_n != nullptr &&
                     workspace != nullptr;
  return given ? Status::kOk : Status::kBadArgument;
}

inline Status check(const Recurrence& q, const RecurrenceGradients& gradients,
                    const void* workspace) {
  const Status status = check(q);
  if (status != Status::kOk) return status;
  const bool has_dzh = q.ln_hh == nullptr || gradients.dzh != nullptr;
  const bool given =
      gradients.reserve != nullptr && gradients.dzx != nullptr && has_dzh && workspace != nullptr;
  return given ? Status::kOk : Status::kBadArgument;
}

}  // namespace fused_lstm
