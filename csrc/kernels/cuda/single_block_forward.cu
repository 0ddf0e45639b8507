// Forward of the single-block family: what is queued for one call.
#include "single_block_calls.cuh"
#include "single_block_strict.cuh"

namespace fused_lstm {
namespace cuda {
namespace single_block {

namespace {

template <class Element>
void queue_forward(Queue& queue, const Problem& p, const Outputs& outputs, const Plan& plan,
                   const ForwardScratch& scratch) {
  using T = Stored<Element>;
  ForwardCall<T> call = forward_call<T>(p, outputs);
  call.sequence = queue_sequence(queue, p, scratch.lengths, scratch.offsets);
  const Tiles& tiles = plan.tiles;
  queue_pack<Element, false>(queue, p, false, tiles, tiles.depth(), scratch.w_hh);
  if (plan.input_depth == 0) {
    queue_projection<T>(queue, p, scratch.x, scratch.projected);
  } else if (!tiles.strict) {
    queue_pack<Element, false>(queue, p, true, tiles, plan.input_depth, scratch.w_ih);
  }
  call.input_depth = plan.input_depth;
  call.w_hh = static_cast<const uint4*>(scratch.w_hh);
  call.w_ih = static_cast<const uint4*>(scratch.w_ih);
  for (int32_t d = 0; d < p.D; ++d) {
    call.projected[d] = scratch.projected + d * row_count(p) * 4 * p.H;
  }
  with_tiles<Element, false>(tiles, [&](auto units, auto block_rows, auto options) {
    constexpr int kUnits = decltype(units)::value, kRows = decltype(block_rows)::value;
    constexpr bool kOptions = decltype(options)::value;
    device::Launch how;
    how.grid = dim3(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(p.D));
    how.block = dim3(static_cast<unsigned>(tiles.threads()));
    how.shared = static_cast<size_t>(plan.shared_bytes);
    if constexpr (std::is_same_v<Element, float>) {
      queue.run(strict_forward_kernel<kUnits, kRows, kOptions>, how, call);
    } else {
      queue.run(forward_kernel<Element, kUnits, kRows, kOptions>, how, call);
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
  with_element(problem.dtype, chosen.tiles.strict, [&](auto element) {
    queue_forward<decltype(element)>(queue, problem, outputs, chosen, scratch);
  });
  return queue.status();
}

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
