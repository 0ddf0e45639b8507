// Threads as the kernels see them: independent tasks in any order, or a team whose members wait for
// one another at a barrier. Compiled for the baseline instruction set (include before any target
// pragma). No thread is started here; the caller's Parallel does that.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "../lstm.h"

namespace fused_lstm {
namespace cpu {

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Spins for a short while, then gives the processor away: a party may have been descheduled.
class Backoff {
 public:
  void pause() {
    if (++spins_ < 2048) {
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      __asm__ __volatile__("yield");
#endif
    } else {
      std::this_thread::yield();
    }
  }

 private:
  int spins_ = 0;
};

// Reusable barrier; every party names the same number of parties, all running at the same time.
class Barrier {
 public:
  void wait(int32_t parties) {
    if (parties <= 1) return;
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == parties - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    Backoff backoff;
    while (phase_.load(std::memory_order_acquire) == phase) backoff.pause();
  }

 private:
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

// f(i) for every i in [0, n), in any order, perhaps at once. No task may wait for another.
template <class F>
void run_tasks(const Parallel& parallel, int64_t n, const F& f) {
  if (n <= 1 || parallel.threads <= 1 || parallel.run == nullptr) {
    for (int64_t i = 0; i < n; ++i) f(i);
    return;
  }
  parallel.run(
      n,
      [](void* context, int64_t begin, int64_t end) {
        const F& task = *static_cast<const F*>(context);
        for (int64_t i = begin; i < end; ++i) task(i);
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// f(rank, parties) once on each of `parties` threads that run at the same time, 1 <= parties <= n.
// How many they are is known only inside: the chunk that starts at 0 tells the chunk size, and a
// range of [0, n) means a team of one (a nested region, OMP_THREAD_LIMIT=1).
// Requires parallel.concurrent; otherwise the team is a team of one.
template <class F>
void run_team(const Parallel& parallel, int64_t n, const F& f) {
  if (n <= 1 || parallel.threads <= 1 || parallel.run == nullptr || !parallel.concurrent) {
    f(0, 1);
    return;
  }
  struct Context {
    const F* f;
    int64_t n;
    std::atomic<int64_t> chunk{0};
  } context{&f, n};
  parallel.run(
      n,
      [](void* pointer, int64_t begin, int64_t end) {
        Context& team = *static_cast<Context*>(pointer);
        if (begin == 0) {
          team.chunk.store(end, std::memory_order_release);
        }
        int64_t chunk;
        Backoff backoff;
        while ((chunk = team.chunk.load(std::memory_order_acquire)) == 0) backoff.pause();
        (*team.f)(static_cast<int32_t>(begin / chunk),
                  static_cast<int32_t>(ceil_div(team.n, chunk)));
      },
      &context);
}

// Part i of n of the range [0, size): begin of part i is split(size, i, n), its end the begin of
// i+1.
inline int64_t split(int64_t size, int64_t i, int64_t n) { return size * i / n; }

}  // namespace cpu
}  // namespace fused_lstm
