#include "run_cuda.h"

#include "launch_cuda.h"

namespace fused_lstm {

Tensor new_bytes(const CudaPlace& place, size_t bytes) {
  return place.empty({static_cast<int64_t>(bytes)}, torch_uint8());
}

Tensor new_reserve(const CudaPlace& place, const Problem& problem, bool saves, Outputs* outputs) {
  if (!saves || problem.B == 0) return new_bytes(place, 0);
  Tensor reserve = new_bytes(place, cuda::reserve_bytes(problem));
  outputs->reserve = write_data(reserve);
  return reserve;
}

void run_forward(const CudaPlace& place, const Problem& problem, const Outputs& outputs, bool tf32,
                 const char* op) {
  if (problem.B == 0) return;
  const bool training = outputs.reserve != nullptr;
  const LaunchContext context(place.device().index, problem, training, tf32);
  const cuda::Launch& launch = context.launch();
  const size_t bytes = cuda::forward_workspace_bytes(problem, training, launch);
  const Tensor workspace = new_bytes(place, bytes);
  context.check(cuda::forward(problem, outputs, write_data(workspace), bytes, launch), op);
}

void run_backward(const CudaPlace& place, const Problem& problem, const Gradients& gradients,
                  bool tf32, const char* op) {
  if (problem.B == 0) return;
  const LaunchContext context(place.device().index, problem, true, tf32);
  const cuda::Launch& launch = context.launch();
  const size_t bytes = cuda::backward_workspace_bytes(problem, gradients, launch);
  const Tensor workspace = new_bytes(place, bytes);
  context.check(cuda::backward(problem, gradients, write_data(workspace), bytes, launch), op);
}

}  // namespace fused_lstm
