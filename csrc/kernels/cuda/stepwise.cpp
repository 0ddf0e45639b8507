// What the stepwise family keeps in its workspace.
#include "stepwise.h"

#include <algorithm>
#include <type_traits>

#include "options.h"

namespace fused_lstm {
namespace cuda {
namespace stepwise {
namespace {

// Hands out aligned pieces of a workspace; with a null base it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
  void* take(bool needed, int64_t count, int64_t element) {
    if (!needed) return nullptr;
    void* const piece = base_ ? base_ + used_ : nullptr;
    used_ += aligned(count * element);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

int64_t computed_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

// Rows of the largest chunk: whole steps, and never fewer than one. Sizes are not checked yet here.
int64_t chunk_rows(const Problem& p, int64_t row_bytes) {
  return std::min(row_count(p), std::max(p.B, kChunkBytes / std::max(row_bytes, int64_t{1})));
}

}  // namespace

ForwardScratch forward_scratch(const Problem& p, bool training, void* base) {
  const int64_t stored = element_bytes(p.dtype), computed = computed_bytes(p.dtype);
  const bool projects = p.weights[0].w_hr != nullptr;
  const bool gathers = Rows{p.x_t, p.x_b}.uniform(p, p.I) == 0;
  Carver carver(base);
  ForwardScratch s = {};
  s.chunk_rows = chunk_rows(p, 4 * p.H * computed);
  s.z = carver.take(true, s.chunk_rows * 4 * p.H, computed);
  s.x = carver.take(gathers, s.chunk_rows * p.I, stored);
  s.c = carver.take(!training, p.B * p.H, computed);
  s.before_hr = carver.take(!training && projects, p.B * p.H, stored);
  s.h = carver.take(projects, p.B * p.P, computed);
  s.next_h = carver.take(changes_h(p), p.B * p.H, stored);
  s.bytes = carver.used();
  return s;
}

BackwardScratch backward_scratch(const Problem& p, const Gradients& g, void* base) {
  const int64_t stored = element_bytes(p.dtype), computed = computed_bytes(p.dtype);
  const bool projects = p.weights[0].w_hr != nullptr, rounds = stored < computed;
  const bool gathers = Rows{p.x_t, p.x_b}.uniform(p, p.I) == 0 || p.marks != nullptr;
  const auto asked = [&](auto member) {  // of either direction
    return g.weights[0].*member != nullptr || (p.D == 2 && g.weights[1].*member != nullptr);
  };
  using W = std::remove_const_t<std::remove_reference_t<decltype(g.weights[0])>>;
  Carver carver(base);
  BackwardScratch s = {};
  s.chunk_rows = chunk_rows(p, 4 * p.H * (p.recompute ? computed : stored));
  s.slices = std::min(kMostSlices, (s.chunk_rows + 31) / 32);
  s.dz = carver.take(true, s.chunk_rows * 4 * p.H, stored);
  s.z = carver.take(p.recompute && rounds, s.chunk_rows * 4 * p.H, computed);
  if (p.recompute && !rounds) s.z = s.dz;
  s.x = carver.take(gathers && (p.recompute || asked(&W::dw_ih)), s.chunk_rows * p.I, stored);
  s.h_before = carver.take(p.recompute || asked(&W::dw_hh), s.chunk_rows * p.P, stored);
  s.dh = carver.take(true, p.B * p.P, computed);
  s.dc = carver.take(true, p.B * p.H, computed);
  s.dh_kept = carver.take(p.zoneout.on(), p.B * p.H, computed);
  s.dh_stored = carver.take(projects, s.chunk_rows * p.P, stored);
  s.dm = carver.take(projects, p.B * p.H, computed);
  s.db = carver.take(asked(&W::db), s.slices * 4 * p.H, computed);
  s.dw_ih = carver.take(rounds && asked(&W::dw_ih), 4 * p.H * p.I, computed);
  s.dw_hh = carver.take(rounds && asked(&W::dw_hh), 4 * p.H * p.P, computed);
  s.dw_hr = carver.take(rounds && asked(&W::dw_hr), p.P * p.H, computed);
  s.dx = carver.take(rounds && g.dx, (p.D == 2 ? row_count(p) : s.chunk_rows) * p.I, computed);
  s.bytes = carver.used();
  return s;
}

}  // namespace stepwise
}  // namespace cuda
}  // namespace fused_lstm
