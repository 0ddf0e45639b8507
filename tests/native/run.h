// One kernel call with everything around it watched: exact buffers in guarded memory, poisoned
// workspace and reserve, padding between strides, inputs compared with a copy. Which kernels those
// are is the linker's choice: kernels_cpu.cpp here, kernels_cuda.cpp in tests/simt.
#pragma once

#include <memory>
#include <string>

#include "cases.h"
#include "guarded.h"
#include "lstm.h"
#include "reference.h"

// The kernels under test behind the contract of lstm.h; the case says how they run.
namespace kernels {
extern const size_t kAlignment;  // of workspace and reserve
size_t reserve_bytes(const Case& c, const fused_lstm::Problem& problem);
size_t forward_workspace_bytes(const Case& c, const fused_lstm::Problem& problem, bool training);
size_t backward_workspace_bytes(const Case& c, const fused_lstm::Problem& problem,
                                const fused_lstm::Gradients& gradients);
fused_lstm::Status forward(const Case& c, const fused_lstm::Problem& problem,
                           const fused_lstm::Outputs& outputs, void* workspace, size_t bytes);
fused_lstm::Status backward(const Case& c, const fused_lstm::Problem& problem,
                            const fused_lstm::Gradients& gradients, void* workspace, size_t bytes);
// About the call just made: what it complained about itself, and whether it shared its work out.
std::string complaint();
bool shared();
}  // namespace kernels

struct ForwardRun {
  fused_lstm::Status status = fused_lstm::Status::kOk;
  std::string complaint;                          // empty: nothing was touched that should not be
  std::unique_ptr<Guarded> y, h_n, c_n, reserve;  // reserve: training only
  std::unique_ptr<Guarded> cells;                 // where the case asks for them
  Strides y_strides;
  bool shared = false;  // the kernel handed out more than one task
};

// poison: the byte that fills workspace and reserve before the call.
ForwardRun run_forward(const Case& c, const Data& data, bool training, unsigned char poison);

struct BackwardRun {
  fused_lstm::Status status = fused_lstm::Status::kOk;
  std::string complaint;
  std::unique_ptr<Guarded> gradients[kGradients];  // null where not wanted
  bool shared = false;
};

BackwardRun run_backward(const Case& c, const Data& data, const ForwardRun& forward,
                         unsigned char poison);

// Number of elements of gradient k, and the pointer in Gradients that receives it.
int64_t gradient_size(const fused_lstm::Problem& problem, int64_t rows, int k);
void** gradient_slot(fused_lstm::Gradients& gradients, int k);

// False when either is null.
bool same_bytes(const std::unique_ptr<Guarded>& a, const std::unique_ptr<Guarded>& b);
// The first gradient whose bytes differ, or "".
std::string difference(const BackwardRun& a, const BackwardRun& b);
