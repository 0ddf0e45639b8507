// Threads through torch's C shim, and what fork() does to them. Fork is handled in this one place:
// the handlers below are registered when the module is loaded, and serve the scratch pool too.
#include "runtime.h"

#include <atomic>
#include <stdexcept>

#include "scratch.h"
#include "stable.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fused_lstm::runtime {
namespace {

std::atomic<bool> is_concurrent{false};
std::atomic<bool> is_forked_child{false};
thread_local bool pool_failed = false;

struct BoundTask {
  void (*task)(void* context, int64_t begin, int64_t end);
  void* context;
};

void run(int64_t n, void (*task)(void* context, int64_t begin, int64_t end), void* context) {
  if (n <= 1 || in_forked_child()) {
    if (n > 0) task(context, 0, n);
    return;
  }
  BoundTask bound{task, context};
  const auto call = [](int64_t begin, int64_t end, void* opaque) {
    const BoundTask* const bound_task = static_cast<const BoundTask*>(opaque);
    bound_task->task(bound_task->context, begin, end);
  };
  // Tasks never throw, so only torch itself can fail; no exception crosses a kernel either way.
  if (torch_parallel_for(0, n, 1, call, &bound) != TORCH_SUCCESS) pool_failed = true;
}

#if defined(__unix__) || defined(__APPLE__)
void child_after_fork() {
  is_forked_child.store(true, std::memory_order_relaxed);
  scratch::after_fork_in_child();
}

[[maybe_unused]] const int registered =
    pthread_atfork(scratch::before_fork, scratch::after_fork_in_parent, child_after_fork);
#endif

}  // namespace

Parallel parallel() {
  Parallel parallel;
  parallel.run = run;
  if (in_forked_child()) return parallel;
  uint32_t threads = 1;
  check_shim(torch_get_num_threads(&threads), "say how many threads it uses");
  parallel.threads = threads > 0 ? static_cast<int32_t>(threads) : 1;
  parallel.concurrent = is_concurrent.load(std::memory_order_relaxed);
  return parallel;
}

void check_parallel() {
  if (!pool_failed) return;
  pool_failed = false;
  throw std::runtime_error("torch could not run a parallel loop");
}

void set_concurrent(bool concurrent) { is_concurrent.store(concurrent, std::memory_order_relaxed); }

bool in_forked_child() { return is_forked_child.load(std::memory_order_relaxed); }

}  // namespace fused_lstm::runtime
