// While a call is on the host, no array of a test can be touched, since that is device memory;
// while a kernel or a product runs, batch_sizes cannot, since that is host memory. What confuses
// the two crashes here, and the suite says in which case.
#include "kernels_cuda.h"

#include <cuda_runtime.h>

#include <memory>

#include "blas.h"
#include "run.h"

using fused_lstm::Gradients;
using fused_lstm::Outputs;
using fused_lstm::Problem;
using fused_lstm::Status;

namespace cuda = fused_lstm::cuda;

namespace {

std::string complaint_of_call;
constexpr int64_t kAcrossBlocks = 5;   // Case::family: the plan may choose any
const Guarded* host_memory = nullptr;  // batch_sizes of the call under way

void enter_device(bool entered) {
  Guarded::for_each(
      [&](const Guarded& block) { block.allow(&block == host_memory ? !entered : entered); });
}

bool multiply(void* context, const cuda::Product& product) {
  enter_device(true);
  const bool done = multiply_plainly(context, product);
  enter_device(false);
  return done;
}

// A copy of bytes that a kernel reads, in guarded memory.
std::unique_ptr<Guarded> on_device(const uint8_t*& bytes, int64_t count) {
  if (bytes == nullptr) return nullptr;
  auto copy = std::make_unique<Guarded>(static_cast<size_t>(count), 1);
  std::memcpy(copy->data(), bytes, copy->bytes());
  bytes = static_cast<const uint8_t*>(copy->data());
  return copy;
}

// Runs call(problem) with batch_sizes, marks and zoneout's bits in guarded memory of their own, and
// both memories kept apart.
template <class Call>
Status run_problem(const Case& c, const Problem& p, Call call) {
  Problem problem = p;
  Guarded batch_sizes(static_cast<size_t>(p.T) * sizeof(int64_t), sizeof(int64_t));
  if (p.batch_sizes) {
    std::memcpy(batch_sizes.data(), p.batch_sizes, batch_sizes.bytes());
    problem.batch_sizes = static_cast<const int64_t*>(batch_sizes.data());
  }
  const auto marks = on_device(problem.marks, p.T * p.B);
  const auto keep = on_device(problem.zoneout.keep, p.T * p.B * p.D * p.H);
  host_memory = &batch_sizes;
  const Status status = kernels::run(c, [&] { return call(problem); });
  host_memory = nullptr;
  return status;
}

}  // namespace

cuda::Launch make_launch(const Case& c, bool backward) {
  cuda::Launch launch;
  launch.device.arch = static_cast<int32_t>(c.arch);
  launch.device.sms = static_cast<int32_t>(c.sms);
  launch.device.shared_per_block = static_cast<int64_t>(simt::options.shared_limit);
  launch.device.shared_per_sm = launch.device.shared_per_block + 1024;
  launch.blas.multiply = multiply;
  launch.math = static_cast<cuda::Math>(c.math);
  const int64_t family = backward ? c.back_family : c.family;
  launch.across_blocks = family == kAcrossBlocks;
  launch.forced = family > 0 && !launch.across_blocks;
  launch.family = static_cast<cuda::Family>(launch.forced ? family - 1 : 0);
  launch.units = static_cast<int32_t>(c.units);
  launch.fault = &kernels::fault;
  launch.patience = kernels::patience;
  for (int i = 0; i < 4 && c.arch >= 90; ++i) {
    launch.device.clusters[i] = launch.device.sms / (2 << i);
  }
  return launch;
}

namespace kernels {

const size_t kAlignment = 256;
uint32_t fault = 0;
uint64_t patience = uint64_t{10} * 1000 * 1000 * 1000;

size_t reserve_bytes(const Case&, const Problem& p) { return cuda::reserve_bytes(p); }

size_t forward_workspace_bytes(const Case& c, const Problem& p, bool training) {
  return cuda::forward_workspace_bytes(p, training, make_launch(c, false));
}

size_t backward_workspace_bytes(const Case& c, const Problem& p, const Gradients& gradients) {
  return cuda::backward_workspace_bytes(p, gradients, make_launch(c, true));
}

Status forward(const Case& c, const Problem& p, const Outputs& outputs, void* workspace,
               size_t bytes) {
  return run_problem(c, p, [&](const Problem& problem) {
    return cuda::forward(problem, outputs, workspace, bytes, make_launch(c, false));
  });
}

Status backward(const Case& c, const Problem& p, const Gradients& gradients, void* workspace,
                size_t bytes) {
  return run_problem(c, p, [&](const Problem& problem) {
    return cuda::backward(problem, gradients, workspace, bytes, make_launch(c, true));
  });
}

Status run(const Case& c, const std::function<Status()>& call) {
  complaint_of_call.clear();
  fault = 0;
  simt::options.seed = static_cast<uint64_t>(c.schedule);
  simt::options.around_kernel = enter_device;
  enter_device(false);
  Status status = Status::kLaunchFailed;
  try {
    status = call();
    if (status == Status::kLaunchFailed) complaint_of_call = cuda::last_error();
  } catch (const simt::Error& e) {
    complaint_of_call = e.what();
  }
  if (complaint_of_call.empty() && fault != 0) complaint_of_call = "a block gave up";
  enter_device(true);
  simt::options.around_kernel = nullptr;
  return status;
}

std::string complaint() { return complaint_of_call; }
bool shared() { return false; }

}  // namespace kernels
