// The most multiply-adds per second that one core of this machine can retire, per instruction set:
// the ceiling against which the benchmark reads its GF/s. Built by peak.py when it is needed.
//
// Twelve independent accumulators hide the latency of the fused multiply-add; nothing is loaded.
// On x86-64 "portable" is the SSE2 baseline, where a multiply and an add are two instructions.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace {

constexpr int kAccumulators = 12;

template <typename V>
[[gnu::always_inline]] inline double multiply_adds(long iterations) {
  V a = V{} + 0.999f, b = V{} + 0.001f;
  asm volatile("" : "+m"(a), "+m"(b));  // values the compiler may not fold
  const V scale = a, shift = b;
  V sum[kAccumulators];
  for (V& s : sum) s = shift;
  for (long i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kAccumulators; ++j) sum[j] = sum[j] * scale + shift;
  }
  double total = 0;
  for (const V& s : sum) total += static_cast<double>(s[0]);
  return total;
}

template <typename T, int kBytes>
struct Vector {
  typedef T type __attribute__((vector_size(kBytes)));
  static constexpr double kFlops = 2.0 * kAccumulators * (kBytes / sizeof(T));
};

template <typename T>
double run_portable(long n) {
  return multiply_adds<typename Vector<T, 16>::type>(n);
}

#if defined(__x86_64__)
template <typename T>
__attribute__((target("avx2,fma"))) double run_avx2(long n) {
  return multiply_adds<typename Vector<T, 32>::type>(n);
}

template <typename T>
__attribute__((target("avx512f,avx512vl,prefer-vector-width=512"))) double run_avx512(long n) {
  return multiply_adds<typename Vector<T, 64>::type>(n);
}
#endif

struct Kernel {
  double (*run)(long) = nullptr;
  double flops = 0;  // per iteration
};

template <typename T>
Kernel choose(int isa) {
  if (isa == 0) return {run_portable<T>, Vector<T, 16>::kFlops};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return {run_avx2<T>, Vector<T, 32>::kFlops};
  }
  if (isa == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) {
    return {run_avx512<T>, Vector<T, 64>::kFlops};
  }
#endif
  return {};
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

// GF/s of `threads` cores together over about `duration` seconds, or 0 where the processor lacks
// the instruction set. isa: 0 portable, 1 AVX2, 2 AVX-512. bits: 32 or 64.
extern "C" double fma_peak(int isa, int bits, int threads, double duration) {
  const Kernel kernel = bits == 64 ? choose<double>(isa) : choose<float>(isa);
  if (kernel.run == nullptr) return 0;
  constexpr long kChunk = 100000;
  std::atomic<int> waiting{threads};
  std::vector<double> rates(threads);
  std::vector<double> sinks(threads);
  const auto work = [&](int index) {
    waiting.fetch_sub(1);
    while (waiting.load() > 0) std::this_thread::yield();
    const double begin = seconds();
    double now = begin;
    long chunks = 0;
    while (now - begin < duration) {
      sinks[index] += kernel.run(kChunk);
      ++chunks;
      now = seconds();
    }
    rates[index] = chunks * kChunk * kernel.flops / (now - begin) / 1e9;
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& other : others) other.join();
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}
