// Buffers for one call, the call, and the search for traces it should not have left.
#include "run.h"

#include <vector>

using fused_lstm::Problem;
using fused_lstm::Status;

namespace {

using Bytes = std::vector<unsigned char>;

Bytes bytes_of(const Guarded& array) {
  const auto* data = static_cast<const unsigned char*>(array.data());
  return Bytes(data, data + array.bytes());
}

std::unique_ptr<Guarded> make(const Case& c, int64_t elements) {
  const size_t size = reference::element_size(static_cast<fused_lstm::DType>(c.dtype));
  return std::make_unique<Guarded>(elements * size, size, c.at_start != 0);
}

std::unique_ptr<Guarded> make_scratch(const Case& c, size_t bytes, unsigned char poison) {
  auto scratch = std::make_unique<Guarded>(bytes, kernels::kAlignment, c.at_start != 0);
  scratch->fill(poison);
  return scratch;
}

// True while the room between the rows of y still holds the pattern.
bool gaps_intact(const Problem& p, const Guarded& y, const Strides& s) {
  const int64_t size = static_cast<int64_t>(reference::element_size(p.dtype));
  Bytes owned(y.bytes(), 0);
  int64_t n = 0;
  for (int64_t t = 0; t < p.T; ++t) {
    for (int64_t b = 0; b < reference::active_rows(p, t); ++b, ++n) {
      const int64_t start = p.batch_sizes ? n * s.b : t * s.t + b * s.b;
      std::memset(&owned[start * size], 1, p.D * p.P * size);
    }
  }
  const auto* data = static_cast<const unsigned char*>(y.data());
  for (size_t k = 0; k < owned.size(); ++k) {
    if (!owned[k] && data[k] != Guarded::kPattern) return false;
  }
  return true;
}

}  // namespace

ForwardRun run_forward(const Case& c, const Data& data, bool training, unsigned char poison) {
  const Problem& p = data.problem;
  ForwardRun run;
  run.y_strides = strides_of(c, c.y_layout, p.D * p.P, data.rows);
  run.y = make(c, run.y_strides.elements);
  run.h_n = make(c, p.D * p.B * p.P);
  run.c_n = make(c, p.D * p.B * p.H);
  if (c.cells != 0) run.cells = make(c, data.rows * p.D * p.H);
  if (training) run.reserve = make_scratch(c, kernels::reserve_bytes(c, p), poison);
  fused_lstm::Outputs outputs;
  outputs.y = run.y->data();
  outputs.y_t = run.y_strides.t;
  outputs.y_b = run.y_strides.b;
  outputs.h_n = run.h_n->data();
  outputs.c_n = run.c_n->data();
  outputs.cells = run.cells ? run.cells->data() : nullptr;
  outputs.reserve = training ? run.reserve->data() : nullptr;
  const size_t bytes = kernels::forward_workspace_bytes(c, p, training);
  const auto workspace = make_scratch(c, bytes, poison);
  run.status = kernels::forward(c, p, outputs, workspace->data(), bytes);
  run.shared = kernels::shared();
  run.complaint = kernels::complaint();
  if (!workspace->intact()) run.complaint += " wrote outside the workspace;";
  if (training && !run.reserve->intact()) run.complaint += " wrote outside the reserve;";
  if (!run.y->intact()) run.complaint += " wrote outside y;";
  if (!run.h_n->intact()) run.complaint += " wrote outside h_n;";
  if (!run.c_n->intact()) run.complaint += " wrote outside c_n;";
  if (run.cells && !run.cells->intact()) run.complaint += " wrote outside cells;";
  if (!gaps_intact(p, *run.y, run.y_strides)) run.complaint += " wrote between the rows of y;";
  if (!data.inputs_unchanged()) run.complaint += " changed an input;";
  return run;
}

BackwardRun run_backward(const Case& c, const Data& data, const ForwardRun& forward,
                         unsigned char poison) {
  const Problem& p = data.problem;
  BackwardRun run;
  fused_lstm::Gradients gradients = data.incoming;
  gradients.y = forward.y->data();
  gradients.y_t = forward.y_strides.t;
  gradients.y_b = forward.y_strides.b;
  gradients.reserve = forward.reserve->data();
  for (int k = 0; k < kGradients; ++k) {
    const bool projection = k == 6 || k == 10;
    const bool exists = (k < 7 || p.D == 2) && (!projection || c.P != 0);
    if (!exists || (c.needs >> k & 1) == 0) continue;
    run.gradients[k] = make(c, gradient_size(p, data.rows, k));
    *gradient_slot(gradients, k) = run.gradients[k]->data();
  }
  const Bytes y_before = bytes_of(*forward.y), reserve_before = bytes_of(*forward.reserve);
  const size_t bytes = kernels::backward_workspace_bytes(c, p, gradients);
  const auto workspace = make_scratch(c, bytes, poison);
  run.status = kernels::backward(c, p, gradients, workspace->data(), bytes);
  run.shared = kernels::shared();
  run.complaint = kernels::complaint();
  if (!workspace->intact()) run.complaint += " wrote outside the workspace;";
  for (int k = 0; k < kGradients; ++k) {
    if (run.gradients[k] && !run.gradients[k]->intact()) {
      run.complaint += std::string(" wrote outside ") + kGradientNames[k] + ";";
    }
  }
  if (bytes_of(*forward.y) != y_before) run.complaint += " changed y;";
  if (bytes_of(*forward.reserve) != reserve_before) run.complaint += " changed the reserve;";
  if (!data.inputs_unchanged()) run.complaint += " changed an input;";
  return run;
}

int64_t gradient_size(const Problem& p, int64_t rows, int k) {
  if (k == 0) return rows * p.I;
  if (k == 1) return p.D * p.B * p.P;
  if (k == 2) return p.D * p.B * p.H;
  const int64_t sizes[] = {4 * p.H * p.I, 4 * p.H * p.P, 4 * p.H, p.P * p.H};
  return sizes[(k - 3) % 4];
}

void** gradient_slot(fused_lstm::Gradients& gradients, int k) {
  if (k == 0) return &gradients.dx;
  if (k == 1) return &gradients.dh0;
  if (k == 2) return &gradients.dc0;
  auto& w = gradients.weights[(k - 3) / 4];
  void** slots[] = {&w.dw_ih, &w.dw_hh, &w.db, &w.dw_hr};
  return slots[(k - 3) % 4];
}

bool same_bytes(const std::unique_ptr<Guarded>& a, const std::unique_ptr<Guarded>& b) {
  return a && b && a->bytes() == b->bytes() && std::memcmp(a->data(), b->data(), a->bytes()) == 0;
}

std::string difference(const BackwardRun& a, const BackwardRun& b) {
  for (int k = 0; k < kGradients; ++k) {
    if (a.gradients[k] && !same_bytes(a.gradients[k], b.gradients[k])) return kGradientNames[k];
  }
  return "";
}
