// The contract of inference from frozen weights: packed once, kept by the caller, and read by every
// call until they are thawed. With one row a step does nothing but read its weights, so what they
// weigh decides how long it takes: besides float32 they may be bfloat16 (half) or 8-bit integers
// (a quarter). That is weight-only: x, h, c, sums and activations are float32, but
// products with 8-bit weights take x and h in 16 bits where integers are quicker (cpu/bytes.h).
//
// A Problem of float32 says sizes, strides, x, h0, c0 and batch_sizes; its weights are not read.
// No projection, no marks, no zoneout, no factors. Letters as in lstm.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lstm.h"

namespace fused_lstm {

enum class Stored : int32_t { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2 };

// Units of a panel. The same on every processor, so that packed weights may travel: vectors of 4, 8
// or 16 lanes each divide it.
constexpr int64_t kFrozenUnits = 16;

// Rows of a panel that a matrix of n columns takes: W_ih of I, W_hh of H.
inline int64_t frozen_rows(Stored stored, int64_t n) {
  return stored == Stored::kInt8 ? (n + 3) / 4 * 4 : n;
}

// The weights of one direction, contiguous. Units beyond H are zero.
struct FrozenWeights {
  // [ceil(H/16), I + H, 4, 16]: rows of W_ih^T, then of W_hh^T. bfloat16 has gates in pairs,
  // [ceil(H/16), I + H, 2, 16, 2]: i and f of a unit in one 32-bit lane, then g and o, and a shift
  // or a mask makes either a float. 8 bits have four k of a unit side by side, zeros behind the
  // last of either matrix, and 128 added: rows of [4, 16, 4] unsigned bytes for four k, so that it
  // is [ceil(H/16), 4 ceil(I/4) + 4 ceil(H/4), 4, 16] in all.
  const void* panels = nullptr;
  const float* scales = nullptr;  // [2, ceil(H/16), 4, 16] for 8 bits: of W_ih and W_hh. Else null
  const float* bias = nullptr;    // [ceil(H/16), 4, 16]: b_ih + b_hh
};

struct Frozen {
  Stored stored = Stored::kFloat32;
  FrozenWeights weights[2];
};

namespace cpu {

// Bytes of scratch that one call needs, for at most `threads` tasks.
size_t frozen_workspace_bytes(const Problem& problem, int32_t threads);
// y, h_n and c_n of outputs are written; there is no reserve. workspace: as for forward.
Status frozen_forward(const Problem& problem, const Frozen& frozen, const Outputs& outputs,
                      void* workspace, size_t workspace_bytes, const Parallel& parallel);
// One human-readable line saying how this would be computed, written into text.
void explain_frozen(const Problem& problem, Stored stored, int32_t threads, char* text,
                    size_t text_bytes);

}  // namespace cpu
}  // namespace fused_lstm
