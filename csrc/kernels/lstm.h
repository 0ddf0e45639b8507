// The contract between whoever owns tensors (csrc/binding, tests/native) and the kernels.
//
// One call computes one layer in one or two directions over a whole sequence. Nothing here knows
// torch: a problem is sizes, strides and pointers. Kernels never allocate, throw, print or start
// threads; memory and threads are handed in, and a Status comes back.
//
// Letters used everywhere in this project:
//   T steps, B rows (batch), I input features, H hidden units, P size of h (H, or proj_size),
//   D directions (1, or 2: forward then reverse). N = number of rows of x: T*B, or the sum of
//   batch_sizes when the input is packed.
// Gate order is torch's: i, f, g, o. Gradients carry the prefix d.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fused_lstm {

enum class DType : int32_t { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

enum class Status : int32_t {
  kOk = 0,
  kBadArgument = 1,        // a size below 1 (B = 0 must be handled by the caller), a null pointer
  kUnsupported = 2,        // this dtype or option has no kernel
  kWorkspaceTooSmall = 3,  // fewer bytes than *_workspace_bytes() asked for
  kLaunchFailed = 4,       // CUDA or its BLAS refused; cuda::last_error() says why
};

// Bits of Problem::marks: what a row's step is besides an ordinary one.
constexpr uint8_t kMarkReset = 1;  // h and c are cleared before the step, in each direction's order
constexpr uint8_t kMarkEnded = 2;  // the row has no such step: its state stays, y and cells are 0

// What units keep from the step before in place of what the cell computed (zoneout: Krueger et al.
// 2016, https://arxiv.org/abs/1606.01305). Off while keep is null and both shares are 0.
struct Zoneout {
  const uint8_t* keep = nullptr;  // [T, B, D*H]: a byte of kKeepH and kKeepC each, or null
  double h = 0, c = 0;            // without keep: the share of h and c that stays, its expectation

  bool on() const { return keep != nullptr || h != 0 || c != 0; }
};
constexpr uint8_t kKeepH = 1;
constexpr uint8_t kKeepC = 2;

// Zoneout::keep drawn at random: what unit u of row b at step t gets follows from key, stream, t, b
// and u alone (random.h).
struct KeepBits {
  uint64_t key = 0;
  uint32_t stream = 0;          // draws that must not be the same: layers, kinds of mask
  int64_t T = 0, B = 0, U = 0;  // U: D*H; each below 2^31
  uint32_t h = 0, c = 0;        // probability of kKeepH and of kKeepC, times 2^16
  uint8_t* keep = nullptr;      // [T, B, U]
};

// The weights of one direction, each contiguous, in the problem's dtype.
struct Weights {
  const void* w_ih = nullptr;  // [4H, I]
  const void* w_hh = nullptr;  // [4H, P]
  const void* b_ih = nullptr;  // [4H] or null
  const void* b_hh = nullptr;  // [4H] or null
  const void* w_hr = nullptr;  // [P, H] or null when P == H and nothing is projected
};

struct Problem {
  DType dtype = DType::kFloat32;
  int64_t T = 0, B = 0, I = 0, H = 0, P = 0;
  int32_t D = 1;
  // Packed input: number of active rows at each step, non-increasing, batch_sizes[0] == B; x, y and
  // their gradients are then [N, features] with rows of step t after those of step t-1 and *_t
  // strides ignored. Null: padded input, B rows at every step.
  const int64_t* batch_sizes = nullptr;  // [T] or null
  // [T, B] or null: a byte of the bits above for each row of each step. With bit kMarkEnded a row
  // ends: all its later steps have it too. Not with batch_sizes, nor (kUnsupported) with w_hr.
  const uint8_t* marks = nullptr;
  bool cells = false;  // Outputs::cells will be asked for, or Gradients::dcells given
  // Not with batch_sizes, nor (kUnsupported) with w_hr, either of them.
  Zoneout zoneout;
  // [D, B, P] contiguous, or null: the gates of every step read h times these (variational dropout:
  // Gal & Ghahramani 2016, https://arxiv.org/abs/1512.05287). They have no gradient.
  const void* h_factors = nullptr;
  bool recompute = false;    // the reserve holds no gates; backward computes them again
  const void* x = nullptr;   // [T, B, I], unit stride over I
  int64_t x_t = 0, x_b = 0;  // strides of x in elements
  const void* h0 = nullptr;  // [D, B, P] contiguous, or null for zeros
  const void* c0 = nullptr;  // [D, B, H] contiguous, or null for zeros
  Weights weights[2];
};

// What forward writes. y may not alias any input.
struct Outputs {
  void* y = nullptr;  // [T, B, D*P], unit stride over features; read back as h_{t-1}
  int64_t y_t = 0, y_b = 0;
  void* h_n = nullptr;      // [D, B, P] contiguous
  void* c_n = nullptr;      // [D, B, H] contiguous
  void* reserve = nullptr;  // reserve_bytes() bytes, 64-byte aligned, for backward; null: inference
  void* cells = nullptr;    // [T, B, D*H] contiguous: c after every step; or null. Not with w_hr
};

// What backward reads besides the problem, and what it writes. A null gradient coming in is zero;
// a null gradient going out is not computed.
struct Gradients {
  const void* y = nullptr;  // forward's y, [T, B, D*P]
  int64_t y_t = 0, y_b = 0;
  const void* reserve = nullptr;
  const void* dy = nullptr;  // [T, B, D*P], unit stride over features, or null
  int64_t dy_t = 0, dy_b = 0;
  const void* dh_n = nullptr;    // [D, B, P] contiguous, or null
  const void* dc_n = nullptr;    // [D, B, H] contiguous, or null
  const void* dcells = nullptr;  // [T, B, D*H], unit stride over features, or null
  int64_t dcells_t = 0, dcells_b = 0;
  void* dx = nullptr;   // [T, B, I] (packed: [N, I]) contiguous, or null
  void* dh0 = nullptr;  // [D, B, P] contiguous, or null
  void* dc0 = nullptr;  // [D, B, H] contiguous, or null
  struct {
    void* dw_ih = nullptr;  // [4H, I] or null
    void* dw_hh = nullptr;  // [4H, P] or null
    void* db = nullptr;     // [4H] or null: the gradient of b_ih and of b_hh alike
    void* dw_hr = nullptr;  // [P, H] or null
  } weights[2];
};

// How the caller lets a kernel use its threads.
struct Parallel {
  // Most tasks that may usefully run beside each other (at::get_num_threads()); 1 means serial.
  int32_t threads = 1;
  // True when the chunks of one run() are held by distinct OS threads at the same time (OpenMP), so
  // that one may wait for another. False: a task must never wait for another task.
  bool concurrent = false;
  // Calls task(context, begin, end) over disjoint ranges that cover [0, n), grain 1, and returns
  // when all are done. May call it once with the whole range (nested region, OMP_THREAD_LIMIT).
  void (*run)(int64_t n, void (*task)(void* context, int64_t begin, int64_t end),
              void* context) = nullptr;
};

// Instruction sets the CPU kernels are compiled for. kEmulated512 is the AVX-512 code path run on
// an emulated 16-wide vector, so that its logic can be tested on any machine.
enum class Isa : int32_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kEmulated512 = 3 };

namespace cpu {

// The widest Isa this processor runs and this build holds; FUSED_LSTM_ISA (read once) may lower it.
Isa active_isa();
// Selects an Isa for the whole process. False, and nothing changes, if it cannot run here. A
// reserve written under one Isa cannot be read under another: for tests and benchmarks only.
bool set_isa(Isa isa);
bool isa_runs_here(Isa isa);
const char* isa_name(Isa isa);

// Bytes of the reserve that forward fills for backward (a multiple of 64).
size_t reserve_bytes(const Problem& problem);
// Bytes of scratch that one call needs, for at most `threads` tasks.
size_t forward_workspace_bytes(const Problem& problem, bool training, int32_t threads);
size_t backward_workspace_bytes(const Problem& problem, const Gradients& gradients,
                                int32_t threads);
// workspace: 64-byte aligned, contents undefined before and after.
Status forward(const Problem& problem, const Outputs& outputs, void* workspace,
               size_t workspace_bytes, const Parallel& parallel);
Status backward(const Problem& problem, const Gradients& gradients, void* workspace,
                size_t workspace_bytes, const Parallel& parallel);
// Fills bits.keep. Needs no workspace.
Status keep_bits(const KeepBits& bits, const Parallel& parallel);
// One human-readable line saying how this problem would be computed, written into text.
void explain(const Problem& problem, bool training, int32_t threads, char* text, size_t text_bytes);

}  // namespace cpu
}  // namespace fused_lstm
