// Each run() here splits [0, n) as at::parallel_for with grain 1 does: equal chunks, rounded up.
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

const char* const kParallelNames[kParallelKinds] = {
    "serial", "pool", "late", "whole", "fewer", "sequential", "reversed", "independent"};

namespace {

using Task = void (*)(void* context, int64_t begin, int64_t end);

std::atomic<int64_t> parties{1};
std::atomic<int64_t> shared{0};

void run_whole(int64_t n, Task task, void* context) {
  shared += n > 1;
  if (n > 0) task(context, 0, n);
}

void run_threads(int64_t n, Task task, void* context, bool late) {
  shared += n > 1;
  if (n <= 0) return;
  const int64_t chunk = (n + parties - 1) / parties;
  std::vector<std::thread> others;
  for (int64_t begin = chunk; begin < n; begin += chunk) {
    const bool sleeps = late && (begin / chunk) % 2 == 1;
    others.emplace_back([=] {
      if (sleeps) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      task(context, begin, std::min(n, begin + chunk));
    });
  }
  task(context, 0, std::min(n, chunk));
  for (std::thread& other : others) other.join();
}

void run_pool(int64_t n, Task task, void* context) { run_threads(n, task, context, false); }
void run_late(int64_t n, Task task, void* context) { run_threads(n, task, context, true); }

void run_sequential(int64_t n, Task task, void* context) {
  shared += n > 1;
  const int64_t chunk = std::max<int64_t>(1, (n + parties - 1) / parties);
  for (int64_t begin = 0; begin < n; begin += chunk)
    task(context, begin, std::min(n, begin + chunk));
}

void run_reversed(int64_t n, Task task, void* context) {
  shared += n > 1;
  const int64_t chunk = std::max<int64_t>(1, (n + parties - 1) / parties);
  for (int64_t begin = (n - 1) / chunk * chunk; n > 0 && begin >= 0; begin -= chunk) {
    std::thread([=] { task(context, begin, std::min(n, begin + chunk)); }).join();
  }
}

}  // namespace

fused_lstm::Parallel make_parallel(int64_t kind, int64_t threads) {
  fused_lstm::Parallel parallel;
  parallel.threads = static_cast<int32_t>(threads);
  parallel.concurrent = kind == kPool || kind == kLatePool || kind == kWhole || kind == kFewer;
  shared = 0;
  parties = kind == kFewer ? std::max<int64_t>(1, (threads + 1) / 2) : threads;
  switch (kind) {
    case kSerial:
    case kWhole:
      parallel.run = run_whole;
      break;
    case kLatePool:
      parallel.run = run_late;
      break;
    case kSequential:
      parallel.run = run_sequential;
      break;
    case kReversed:
      parallel.run = run_reversed;
      break;
    default:
      parallel.run = run_pool;
  }
  return parallel;
}

int64_t shared_runs() { return shared; }
