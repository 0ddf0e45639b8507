// Forward of the single-block family: what is queued for one call.
#include "single_block_sequence.cuh"
#include "single_block_strict.cuh"

namespace fused_lstm {
namespace cuda {
namespace single_block {

namespace {

// projected [D, N, 4H] = x W_ih^T, one product per direction.
template <class T>
void queue_projection(Queue& queue, const Problem& p, const ForwardScratch& scratch) {
  const int64_t rows = row_count(p);
  const Operand x = queue_x<T>(queue, p, scratch.x);
  for (int32_t d = 0; d < p.D; ++d) {
    queue.multiply(rows, 4 * p.H, p.I, x, {p.weights[d].w_ih, p.I, true},
                   scratch.projected + d * rows * 4 * p.H, false);
  }
}

template <class Element>
void queue_forward(Queue& queue, const Problem& p, const Outputs& outputs, const Plan& plan,
                   const ForwardScratch& scratch) {
  using T = Stored<Element>;
  const int64_t rows = row_count(p);
  const bool packed = p.batch_sizes != nullptr;
  ForwardCall<T> call = {};
  call.sequence = queue_sequence(queue, p, scratch.lengths, scratch.offsets);
  const Tiles& tiles = plan.tiles;
  queue_pack<Element, false>(queue, p, false, tiles, tiles.depth(), scratch.w_hh);
  if (plan.input_depth == 0) {
    queue_projection<T>(queue, p, scratch);
  } else if (!tiles.strict) {
    queue_pack<Element, false>(queue, p, true, tiles, plan.input_depth, scratch.w_ih);
  }
  call.inputs = static_cast<int32_t>(p.I);
  call.hidden = static_cast<int32_t>(p.H);
  call.input_depth = plan.input_depth;
  call.x = static_cast<const T*>(p.x);
  call.x_t = packed ? 0 : p.x_t;
  call.x_b = p.x_b;
  call.w_hh = static_cast<const uint4*>(scratch.w_hh);
  call.w_ih = static_cast<const uint4*>(scratch.w_ih);
  call.h0 = static_cast<const T*>(p.h0);
  call.c0 = static_cast<const T*>(p.c0);
  call.y = static_cast<T*>(outputs.y);
  call.y_t = packed ? 0 : outputs.y_t;
  call.y_b = outputs.y_b;
  call.wide_y = pairs_are_aligned(call.y, call.y_t, call.y_b, p.H, sizeof(T));
  call.wide_c0 = pairs_are_aligned(call.c0, 0, 0, p.H, sizeof(T));  // a view may begin anywhere
  call.h_n = static_cast<T*>(outputs.h_n);
  call.c_n = static_cast<T*>(outputs.c_n);
  const ReserveLayout reserve = reserve_layout(p);
  for (int32_t d = 0; d < p.D; ++d) {
    call.projected[d] = scratch.projected + d * rows * 4 * p.H;
    call.w_ih_rows[d] = static_cast<const T*>(p.weights[d].w_ih);
    call.b_ih[d] = static_cast<const T*>(p.weights[d].b_ih);
    call.b_hh[d] = static_cast<const T*>(p.weights[d].b_hh);
    if (outputs.reserve == nullptr) continue;
    char* const base = static_cast<char*>(outputs.reserve);
    call.gates[d] = reinterpret_cast<T*>(base + reserve.gates[d]);
    call.cells[d] = reinterpret_cast<float*>(base + reserve.cells[d]);
  }
  with_tiles<Element, false>(tiles, [&](auto units, auto block_rows) {
    constexpr int kUnits = decltype(units)::value, kRows = decltype(block_rows)::value;
    device::Launch how;
    how.grid = dim3(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(p.D));
    how.block = dim3(static_cast<unsigned>(tiles.threads()));
    how.shared = static_cast<size_t>(plan.shared_bytes);
    if constexpr (std::is_same_v<Element, float>) {
      queue.run(strict_forward_kernel<kUnits, kRows>, how, call);
    } else {
      queue.run(forward_kernel<Element, kUnits, kRows>, how, call);
    }
  });
}

}  // namespace

Status forward(const Problem& problem, const Outputs& outputs, void* workspace,
               const Launch& launch) {
  const Plan chosen = plan(problem, false, launch);
  if (chosen.refusal != nullptr) return Status::kUnsupported;
  const ForwardScratch scratch = forward_scratch(problem, chosen, workspace);
  Queue queue(launch, problem.dtype);
  with_element(problem.dtype, chosen.tiles, [&](auto element) {
    queue_forward<decltype(element)>(queue, problem, outputs, chosen, scratch);
  });
  return queue.status();
}

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
