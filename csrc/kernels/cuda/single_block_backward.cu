// Backward of the single-block family: what is queued for one call.
#include "single_block_calls.cuh"
#include "single_block_strict.cuh"

namespace fused_lstm {
namespace cuda {
namespace single_block {

namespace {

template <class Element>
void queue_recurrence(Queue& queue, const Problem& p, const Gradients& gradients, const Plan& plan,
                      const BackwardScratch& scratch, const Sequence& sequence) {
  using T = Stored<Element>;
  const Tiles& tiles = plan.tiles;
  queue_pack<Element, true>(queue, p, false, tiles, tiles.depth(), scratch.w_hh);
  BackwardCall<T> call = backward_call<T>(p, gradients, scratch.dense.dz);
  call.sequence = sequence;
  call.w_hh = static_cast<const uint4*>(scratch.w_hh);
  call.db = scratch.dense.db;
  with_tiles<Element, true>(tiles, [&](auto units, auto block_rows, auto options) {
    constexpr int kUnits = decltype(units)::value, kRows = decltype(block_rows)::value;
    constexpr bool kOptions = decltype(options)::value;
    device::Launch how;
    how.grid = dim3(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(p.D));
    how.block = dim3(static_cast<unsigned>(tiles.threads()));
    how.shared = static_cast<size_t>(plan.shared_bytes);
    if constexpr (std::is_same_v<Element, float>) {
      queue.run(strict_backward_kernel<kUnits, kRows, kOptions>, how, call);
    } else {
      queue.run(backward_kernel<Element, kUnits, kRows, kOptions>, how, call);
    }
  });
}

}  // namespace

Status backward(const Problem& problem, const Gradients& gradients, void* workspace,
                const Launch& launch) {
  const Plan chosen = plan(problem, true, launch);
  if (chosen.refusal != nullptr) return Status::kUnsupported;
  const BackwardScratch scratch = backward_scratch(problem, gradients, chosen, workspace);
  Queue queue(launch, problem.dtype);
  const Sequence sequence = queue_sequence(queue, problem, scratch.lengths, scratch.offsets);
  with_element(problem.dtype, chosen.tiles.strict, [&](auto element) {
    using T = Stored<decltype(element)>;
    const DenseScratch& dense = scratch.dense;
    if (problem.recompute) queue_gates<T>(queue, problem, gradients, dense, sequence);
    queue_recurrence<decltype(element)>(queue, problem, gradients, chosen, scratch, sequence);
    queue_weight_gradients<T>(queue, problem, gradients, dense, sequence);
  });
  return queue.status();
}

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
