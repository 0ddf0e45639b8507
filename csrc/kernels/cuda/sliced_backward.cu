// Backward of the sliced families: what is queued for one call, and what occupancy says of
// clusters.
#include "sliced_backward.cuh"
#include "sliced_launch.cuh"

namespace fused_lstm {
namespace cuda {
namespace sliced {
namespace {

template <class Product, bool kOptions>
auto kernel_of(bool cluster) {
  using T = Stored<typename Product::Element>;
  void (*const kernel)(BackwardSlices<T>) =
      cluster ? sliced_backward_kernel<Product, ClusterExchange, kOptions>
              : sliced_backward_kernel<Product, GridExchange, kOptions>;
  return kernel;
}

// False when the device has no room for the launch.
template <class Product>
bool queue_backward(Queue& queue, const Problem& p, const Gradients& gradients, const Plan& plan,
                    const BackwardScratch& scratch, const Launch& launch) {
  using T = Stored<typename Product::Element>;
  const auto kernel = plan.slices.options ? kernel_of<Product, true>(plan.cluster)
                                          : kernel_of<Product, false>(plan.cluster);
  const DenseScratch& dense = scratch.dense;
  if (!has_room(kernel, plan, launch)) return false;
  const Sequence sequence =
      single_block::queue_sequence(queue, p, scratch.lengths, scratch.offsets);
  BackwardSlices<T> arguments = {};
  auto& call = arguments.call;
  call = single_block::backward_call<T>(p, gradients, dense.dz);
  call.sequence = sequence;
  call.w_hh = static_cast<const uint4*>(scratch.w_hh);
  call.db = dense.db;
  const Meeting meeting = queue_meeting(queue, p, plan, launch, scratch.meeting);
  queue_clear(queue, dense.db, p.D * plan.groups * 4 * p.H);
  queue_begin<Product>(queue, p, plan, meeting, gradients.dc_n, scratch.carried);
  const int depth =
      queue_weights<typename Product::Element, true>(queue, p, plan.slices, scratch.w_hh);
  if (p.recompute) single_block::queue_gates<T>(queue, p, gradients, dense, sequence);
  arguments.cut = make_cut(p, plan, meeting, depth, scratch.carried);
  if (!queue_steps(queue, kernel, p, plan, p.T + 1, arguments)) return false;
  single_block::queue_weight_gradients<T>(queue, p, gradients, dense, sequence);
  return true;
}

}  // namespace

bool backward(const Problem& problem, const Gradients& gradients, const Plan& plan, void* workspace,
              const Launch& launch, Status* status) {
  const BackwardScratch scratch = backward_scratch(problem, gradients, plan, workspace);
  Queue queue(launch, problem.dtype);
  bool taken = false;
  with_product<true>(problem, plan.slices, [&](auto product) {
    using Product = typename decltype(product)::type;
    taken = queue_backward<Product>(queue, problem, gradients, plan, scratch, launch);
  });
  *status = queue.status();
  return taken;
}

}  // namespace sliced

void read_cluster_limits(Device* device) {
  using Product = sliced::TensorProduct<device::bf16, sliced::few_rows(false), true>;
  for (int i = 0; i < 4; ++i) {
    device::Launch how;
    how.cluster = 2u << i;
    how.grid = dim3(how.cluster);
    how.block = dim3(sliced::kThreads);
    how.shared = static_cast<size_t>(device->shared_per_block);
    device->clusters[i] =
        device->arch >= 90 ? device::most_at_once(sliced::kernel_of<Product, false>(true), how) : 0;
  }
}

}  // namespace cuda
}  // namespace fused_lstm
