// The CPU kernels as run.h calls them: instruction set and threads as the case says.
#include "parallel.h"
#include "run.h"

using fused_lstm::Gradients;
using fused_lstm::Outputs;
using fused_lstm::Problem;
using fused_lstm::Status;

namespace cpu = fused_lstm::cpu;

namespace kernels {

const size_t kAlignment = 64;

size_t reserve_bytes(const Case& c, const Problem& p) {
  cpu::set_isa(static_cast<fused_lstm::Isa>(c.isa));
  return cpu::reserve_bytes(p);
}

size_t forward_workspace_bytes(const Case& c, const Problem& p, bool training) {
  cpu::set_isa(static_cast<fused_lstm::Isa>(c.isa));
  return cpu::forward_workspace_bytes(p, training, make_parallel(c.par, c.threads).threads);
}

size_t backward_workspace_bytes(const Case& c, const Problem& p, const Gradients& gradients) {
  cpu::set_isa(static_cast<fused_lstm::Isa>(c.isa));
  const auto parallel = make_parallel(c.back_par, c.back_threads);
  return cpu::backward_workspace_bytes(p, gradients, parallel.threads);
}

Status forward(const Case& c, const Problem& p, const Outputs& outputs, void* workspace,
               size_t bytes) {
  cpu::set_isa(static_cast<fused_lstm::Isa>(c.isa));
  return cpu::forward(p, outputs, workspace, bytes, make_parallel(c.par, c.threads));
}

Status backward(const Case& c, const Problem& p, const Gradients& gradients, void* workspace,
                size_t bytes) {
  cpu::set_isa(static_cast<fused_lstm::Isa>(c.isa));
  return cpu::backward(p, gradients, workspace, bytes, make_parallel(c.back_par, c.back_threads));
}

std::string complaint() { return ""; }
bool shared() { return shared_runs() > 0; }

}  // namespace kernels
