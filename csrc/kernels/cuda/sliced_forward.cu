// Forward of the sliced families: what is queued for one call.
#include "sliced_forward.cuh"
#include "sliced_launch.cuh"

namespace fused_lstm {
namespace cuda {
namespace sliced {
namespace {

template <class Product, bool kOptions>
auto kernel_of(bool cluster) {
  using T = Stored<typename Product::Element>;
  void (*const kernel)(ForwardSlices<T>) =
      cluster ? sliced_forward_kernel<Product, ClusterExchange, kOptions>
              : sliced_forward_kernel<Product, GridExchange, kOptions>;
  return kernel;
}

// False when the device has no room for the launch.
template <class Product>
bool queue_forward(Queue& queue, const Problem& p, const Outputs& outputs, const Plan& plan,
                   const ForwardScratch& scratch, const Launch& launch) {
  using T = Stored<typename Product::Element>;
  const auto kernel = plan.slices.options ? kernel_of<Product, true>(plan.cluster)
                                          : kernel_of<Product, false>(plan.cluster);
  if (!has_room(kernel, plan, launch)) return false;
  ForwardSlices<T> arguments = {};
  auto& call = arguments.call;
  call = single_block::forward_call<T>(p, outputs);
  call.sequence = single_block::queue_sequence(queue, p, scratch.lengths, scratch.offsets);
  call.w_hh = static_cast<const uint4*>(scratch.w_hh);
  for (int32_t d = 0; d < p.D; ++d) {
    call.projected[d] = scratch.projected + d * row_count(p) * 4 * p.H;
  }
  const Meeting meeting = queue_meeting(queue, p, plan, launch, scratch.meeting);
  queue_begin<Product>(queue, p, plan, meeting, p.c0, scratch.carried);
  const int depth =
      queue_weights<typename Product::Element, false>(queue, p, plan.slices, scratch.w_hh);
  single_block::queue_projection<T>(queue, p, scratch.x, scratch.projected);
  arguments.cut = make_cut(p, plan, meeting, depth, scratch.carried);
  return queue_steps(queue, kernel, p, plan, p.T, arguments);
}

}  // namespace

bool forward(const Problem& problem, const Outputs& outputs, const Plan& plan, void* workspace,
             const Launch& launch, Status* status) {
  const ForwardScratch scratch = forward_scratch(problem, plan, workspace);
  Queue queue(launch, problem.dtype);
  bool taken = false;
  with_product<false>(problem, plan.slices, [&](auto product) {
    using Product = typename decltype(product)::type;
    taken = queue_forward<Product>(queue, problem, outputs, plan, scratch, launch);
  });
  *status = queue.status();
  return taken;
}

}  // namespace sliced
}  // namespace cuda
}  // namespace fused_lstm
