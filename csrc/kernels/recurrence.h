// The contract of the recurrence alone, for the variants of the LSTM cell: LayerNorm, peepholes, a
// coupled input and forget gate, clipping. Beside lstm.h, whose letters and rules hold here too.
//
// One call is one direction over a padded sequence. What the cells take from the input is computed
// before, for all steps at once: zx = x W_ih^T, normalised where that is wanted, plus biases. Here
// the recurrence follows, whose formula is in gate_math.h:
//
//   z_t = zx_t + h_{t-1} W_hh^T                             without LayerNorm
//   z_t = zx_t + gain * normalised(h_{t-1} W_hh^T)          with it, over all gates of a row
//   c_t, o_t = the cell of z_t and c_{t-1}
//   h_t = o_t * tanh(c_t), or o_t * tanh(gain * normalised(c_t) + bias)
//
// G gates: 4, in torch's order i, f, g, o; 3 where the forget gate is 1 - i: i, g, o.
#pragma once

#include <limits>

#include "lstm.h"

namespace fused_lstm {

// As torch.nn.LayerNorm has it.
constexpr double kLayerNormEpsilon = 1e-5;
constexpr double kNoClip = std::numeric_limits<double>::infinity();

struct Recurrence {
  DType dtype = DType::kFloat32;  // kFloat32 or kFloat64; kUnsupported for others
  int64_t T = 0, B = 0, H = 0;
  int32_t gates = 4;     // G
  bool reverse = false;  // from the last step to the first
  const void* zx = nullptr;
  int64_t zx_t = 0, zx_b = 0;       // [T, B, G*H], unit stride over G*H; strides in elements
  const void* h0 = nullptr;         // [B, H] contiguous, or null for zeros
  const void* c0 = nullptr;         // [B, H] contiguous, or null for zeros
  const void* w_hh = nullptr;       // [G*H, H] contiguous
  const void* peepholes = nullptr;  // [G-1, H] contiguous: of i, f, o, or of i, o; or null
  const void* ln_hh = nullptr;      // [G*H]: the gain of LayerNorm; null: there is none
  const void* ln_c = nullptr;       // [H]: gain of the cell's, exactly where ln_hh is given
  const void* ln_c_bias = nullptr;  // [H], or null for zeros
  double cell_clip = kNoClip;       // |c| is at most this, before h is made of it
  double hidden_clip = kNoClip;     // |h| likewise
};

struct RecurrenceOutputs {
  void* y = nullptr;        // [T, B, H] contiguous; read back as h_{t-1}
  void* h_n = nullptr;      // [B, H]
  void* c_n = nullptr;      // [B, H]
  void* reserve = nullptr;  // recurrence_reserve_bytes(), 64-byte aligned; null: inference
};

// A null gradient coming in is zero; a null gradient going out is not computed, but dzx and dzh
// always are. dW_hh is not among them: it is the product dzh^T h_{t-1} over all rows at once.
struct RecurrenceGradients {
  const void* reserve = nullptr;
  const void* dy = nullptr;  // [T, B, H], unit stride over H, or null
  int64_t dy_t = 0, dy_b = 0;
  const void* dh_n = nullptr;  // [B, H] contiguous, or null
  const void* dc_n = nullptr;  // [B, H] contiguous, or null
  void* dzx = nullptr;         // [T, B, G*H] contiguous
  void* dzh = nullptr;         // [T, B, G*H] contiguous, of h W_hh^T; without LayerNorm it is dzx
  void* dh0 = nullptr;         // [B, H] or null
  void* dc0 = nullptr;         // [B, H] or null
  void* dpeepholes = nullptr;  // [G-1, H] or null
  void* dln_hh = nullptr;      // [G*H] or null
  void* dln_c = nullptr;       // [H] or null
  void* dln_c_bias = nullptr;  // [H] or null
};

namespace cpu {

size_t recurrence_reserve_bytes(const Recurrence& recurrence);
size_t recurrence_forward_workspace_bytes(const Recurrence& recurrence, bool training,
                                          int32_t threads);
size_t recurrence_backward_workspace_bytes(const Recurrence& recurrence, int32_t threads);
// workspace: 64-byte aligned, contents undefined before and after.
Status recurrence_forward(const Recurrence& recurrence, const RecurrenceOutputs& outputs,
                          void* workspace, size_t workspace_bytes, const Parallel& parallel);
Status recurrence_backward(const Recurrence& recurrence, const RecurrenceGradients& gradients,
                           void* workspace, size_t workspace_bytes, const Parallel& parallel);

}  // namespace cpu
}  // namespace fused_lstm
