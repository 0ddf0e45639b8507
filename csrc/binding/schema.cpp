// Every operator schema. T steps, B rows, I features, H hidden units, P size of h (H, or
// proj_size), D directions, N rows of a packed sequence; gate order i, f, g, o.
//
// All operators are functional: they write only what they return, and no result shares memory with
// an argument or with another result. Packed input is x [N, I] with batch_sizes [T]; then y and the
// gradients of x and y are [N, ...] too.
#include "stable.h"

namespace {

constexpr const char* kForward =
    "forward("
    "Tensor x, "                    // [T, B, I], any strides
    "Tensor? batch_sizes, "         // [T] int64, non-increasing, all >= 1: x is packed
    "Tensor? h0, Tensor? c0, "      // [D, B, P], [D, B, H]; None: zeros
    "Tensor w_ih, Tensor w_hh, "    // [4H, I], [4H, P]
    "Tensor? b_ih, Tensor? b_hh, "  // [4H]
    "Tensor? w_hr, "                // [P, H]
    "Tensor? w_ih_reverse, Tensor? w_hh_reverse, "  // D = 2 exactly when given
    "Tensor? b_ih_reverse, Tensor? b_hh_reverse, Tensor? w_hr_reverse, "
    "bool save_for_backward, "
    "bool tf32=False) -> ("     // CUDA: float32 products may be formed in TF32
    "Tensor y, "                // [T, B, D*P]
    "Tensor h_n, Tensor c_n, "  // [D, B, P], [D, B, H]
    "Tensor reserve)";          // uint8, opaque; [0] unless save_for_backward

constexpr const char* kBackward =
    "backward("
    "Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, "  // None: zeros
    "Tensor x, Tensor? batch_sizes, Tensor? h0, Tensor? c0, "
    "Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
    "Tensor? w_ih_reverse, Tensor? w_hh_reverse, "
    "Tensor? b_ih_reverse, Tensor? b_hh_reverse, Tensor? w_hr_reverse, "
    "Tensor y, Tensor reserve, "  // as forward returned them, read only
    "int needs, "                 // bit k: result k is wanted; one that is not has shape [0]
    "bool tf32=False) -> ("       // as forward had it
    "Tensor dx, "                 // [T, B, I]
    "Tensor dh0, Tensor dc0, "    // [D, B, P], [D, B, H]
    "Tensor dw_ih, Tensor dw_hh, Tensor db, Tensor dw_hr, "  // db is that of b_ih and of b_hh
    "Tensor dw_ih_reverse, Tensor dw_hh_reverse, Tensor db_reverse, Tensor dw_hr_reverse)";

// The same with options that nn.LSTM lacks. Packed input is refused, and w_hr with all of them but
// recompute.
constexpr const char* kMarkedForward =
    "marked_forward("
    "Tensor x, "       // [T, B, I]
    "Tensor? marks, "  // [T, B] uint8: 1: the state is cleared before the step; 2: the row has
                       // ended
    "Tensor? h0, Tensor? c0, "
    "Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
    "Tensor? w_ih_reverse, Tensor? w_hh_reverse, "
    "Tensor? b_ih_reverse, Tensor? b_hh_reverse, Tensor? w_hr_reverse, "
    "Tensor? keep, "       // [T, B, D*H] uint8, zoneout: 1: h of the unit stays; 2: c stays
    "Tensor? h_factors, "  // [D, B, P]: the gates read h times these; no gradient
    "float zoneout_h, float zoneout_c, "  // without keep: shares of h and c that stay
    "bool recompute, "                    // the reserve holds no gates
    "bool cells, bool save_for_backward, bool tf32=False) -> ("
    "Tensor y, Tensor h_n, Tensor c_n, "
    "Tensor cells, "    // [T, B, D*H]: c after every step; [0] unless wanted
    "Tensor reserve)";  // as above

constexpr const char* kMarkedBackward =
    "marked_backward("
    "Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_cells, "
    "Tensor x, Tensor? marks, Tensor? h0, Tensor? c0, "
    "Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
    "Tensor? w_ih_reverse, Tensor? w_hh_reverse, "
    "Tensor? b_ih_reverse, Tensor? b_hh_reverse, Tensor? w_hr_reverse, "
    "Tensor? keep, Tensor? h_factors, float zoneout_h, float zoneout_c, bool recompute, "
    "Tensor y, Tensor reserve, int needs, bool tf32=False) -> ("
    "Tensor dx, Tensor dh0, Tensor dc0, "
    "Tensor dw_ih, Tensor dw_hh, Tensor db, Tensor dw_hr, "
    "Tensor dw_ih_reverse, Tensor dw_hh_reverse, Tensor db_reverse, Tensor dw_hr_reverse)";

// Inference from frozen weights (kernels/frozen.h), on the CPU. x, states and results are float32.
constexpr const char* kFrozenForward =
    "frozen_forward("
    "Tensor x, Tensor? batch_sizes, Tensor? h0, Tensor? c0, "
    "int hidden_size, "
    "Tensor panels, "   // [ceil(H/16), I + H, 4, 16] float32, bfloat16 or int8
    "Tensor? scales, "  // [2, ceil(H/16), 4, 16] float32 with int8 panels, else None
    "Tensor bias, "     // [ceil(H/16), 4, 16] float32: b_ih + b_hh
    "Tensor? panels_reverse, Tensor? scales_reverse, Tensor? bias_reverse) -> ("
    "Tensor y, Tensor h_n, Tensor c_n)";

// Zoneout's random bits, see keep above. What a unit gets follows from seed, stream and its place.
constexpr const char* kKeepBits =
    "keep_bits("
    "Tensor like, "  // says on which device
    "Tensor seed, "  // [] int64 on the CPU
    "int stream, "   // draws that must differ under one seed: layers, kinds of mask
    "SymInt T, SymInt B, SymInt U, "
    "float h, float c) -> "  // the probability of either bit
    "Tensor keep";           // [T, B, U] uint8

// The recurrence alone, one direction, for the variants of the cell: csrc/kernels/recurrence.h. G
// gates: i, f, g, o, or i, g, o where f = 1 - i.
constexpr const char* kRecurrenceForward =
    "recurrence_forward("
    "Tensor zx, "                        // [T, B, G*H]: x W_ih^T, normalised or not, plus biases
    "Tensor? h0, Tensor? c0, "           // [B, H]; None: zeros
    "Tensor w_hh, "                      // [G*H, H]
    "Tensor? peepholes, "                // [G-1, H]: of i, f, o, or of i, o
    "Tensor? ln_hh, "                    // [G*H]: gain of LayerNorm on h W_hh^T; None: without
    "Tensor? ln_c, Tensor? ln_c_bias, "  // [H]: on c, exactly with ln_hh
    "bool reverse, "
    "float cell_clip, float hidden_clip, "  // bounds of |c| and |h|; inf: none
    "bool save_for_backward) -> ("
    "Tensor y, "                // [T, B, H]
    "Tensor h_n, Tensor c_n, "  // [B, H]
    "Tensor reserve)";          // as above

// A result is [0] where its argument is None; dzh, the gradient of h W_hh^T, where it is dzx.
constexpr const char* kRecurrenceBackward =
    "recurrence_backward("
    "Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, "
    "Tensor zx, Tensor? h0, Tensor? c0, Tensor w_hh, Tensor? peepholes, "
    "Tensor? ln_hh, Tensor? ln_c, Tensor? ln_c_bias, "
    "bool reverse, float cell_clip, float hidden_clip, Tensor reserve) -> ("
    "Tensor dzx, Tensor dzh, "  // [T, B, G*H]
    "Tensor dh0, Tensor dc0, "
    "Tensor dpeepholes, Tensor dln_hh, Tensor dln_c, Tensor dln_c_bias)";

}  // namespace

STABLE_TORCH_LIBRARY(fused_lstm, library) {
  library.def(kForward);
  library.def(kBackward);
  library.def(kMarkedForward);
  library.def(kMarkedBackward);
  library.def(kFrozenForward);
  library.def(kKeepBits);
  library.def(kRecurrenceForward);
  library.def(kRecurrenceBackward);
}
