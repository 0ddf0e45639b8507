// Times forward (inference and training) and backward of one shape without torch, for tuning:
//   bench_kernel T B I H [threads=1] [isa=active] [dtype=float32] [repeats=15]
// Prints the median in microseconds and GF/s (2 flops per multiply-add of the matrix products;
// backward without and with x's gradient). Threads stay alive and spin between calls, as OpenMP's
// do.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "lstm.h"

using namespace fused_lstm;

namespace {

using Task = void (*)(void* context, int64_t begin, int64_t end);

// Workers that wait for a new generation, run their chunk and count down.
struct Team {
  std::atomic<int64_t> generation{0}, running{0};
  std::atomic<bool> stop{false};
  int64_t n = 0, parties = 1;
  Task task = nullptr;
  void* context = nullptr;
  std::vector<std::thread> workers;

  void part(int64_t k) const {
    const int64_t chunk = (n + parties - 1) / parties;
    if (k * chunk < n) task(context, k * chunk, std::min(n, (k + 1) * chunk));
  }
  void start(int64_t threads) {
    parties = threads;
    for (int64_t k = 1; k < threads; ++k) {
      workers.emplace_back([this, k] {
        for (int64_t seen = 0;;) {
          while (generation.load(std::memory_order_acquire) == seen && !stop) {
          }
          if (stop) return;
          ++seen;
          part(k);
          running.fetch_sub(1, std::memory_order_release);
        }
      });
    }
  }
  void run(int64_t count, Task what, void* with) {
    n = count;
    task = what;
    context = with;
    running = parties - 1;
    generation.fetch_add(1, std::memory_order_release);
    part(0);
    while (running.load(std::memory_order_acquire) != 0) {
    }
  }
  void finish() {
    stop = true;
    for (std::thread& worker : workers) worker.join();
  }
} team;

void run_team(int64_t n, Task task, void* context) { team.run(n, task, context); }

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Block = std::unique_ptr<void, Free>;

Block allocate(size_t bytes) {
  const size_t size = (bytes + 4095) / 4096 * 4096 + 4096;
  void* memory = std::aligned_alloc(4096, size);
  std::memset(memory, 0, size);
  return Block(memory);
}

size_t element_size(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kFloat64 ? 8 : 2;
}

// Small random numbers in storage.
Block random_block(DType dtype, int64_t count) {
  Block block = allocate(count * element_size(dtype));
  uint32_t state = 12345;
  for (int64_t k = 0; k < count; ++k) {
    state = state * 1664525u + 1013904223u;
    const float value = (static_cast<float>(state >> 8) / 16777216.0f - 0.5f) * 0.2f;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (dtype == DType::kFloat32) static_cast<float*>(block.get())[k] = value;
    if (dtype == DType::kFloat64) static_cast<double*>(block.get())[k] = value;
    if (dtype == DType::kBFloat16) static_cast<uint16_t*>(block.get())[k] = bits >> 16;
    if (dtype == DType::kFloat16) {  // +-(0.0625 .. 0.125): exponent 2^-4
      static_cast<uint16_t*>(block.get())[k] =
          static_cast<uint16_t>((bits >> 16 & 0x8000u) | 0x2c00u | (state >> 22));
    }
  }
  return block;
}

double median_us(int repeats, const std::function<Status()>& call) {
  std::vector<double> times;
  for (int k = 0; k < repeats + 2; ++k) {
    const auto begin = std::chrono::steady_clock::now();
    const Status status = call();
    const auto end = std::chrono::steady_clock::now();
    if (status != Status::kOk) {
      std::printf("the kernel returned status %d\n", static_cast<int>(status));
      std::exit(1);
    }
    if (k >= 2) times.push_back(std::chrono::duration<double, std::micro>(end - begin).count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

template <class T>
T named(const char* text, const std::vector<std::string>& names) {
  for (size_t k = 0; k < names.size(); ++k) {
    if (names[k] == text) return static_cast<T>(k);
  }
  std::fprintf(stderr, "bench_kernel: unknown name '%s'\n", text);
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: bench_kernel T B I H [threads] [isa] [dtype] [repeats]\n");
    return 2;
  }
  Problem p;
  p.T = std::atoll(argv[1]);
  p.B = std::atoll(argv[2]);
  p.I = std::atoll(argv[3]);
  p.H = p.P = std::atoll(argv[4]);
  const int64_t threads = argc > 5 ? std::atoll(argv[5]) : 1;
  if (argc > 6 &&
      !cpu::set_isa(named<Isa>(argv[6], {"portable", "avx2", "avx512", "emulated512"}))) {
    std::fprintf(stderr, "bench_kernel: %s does not run here\n", argv[6]);
    return 2;
  }
  if (argc > 7) p.dtype = named<DType>(argv[7], {"float32", "float64", "bfloat16", "float16"});
  const int repeats = argc > 8 ? std::atoi(argv[8]) : 15;

  const size_t size = element_size(p.dtype);
  const int64_t rows = p.T * p.B, G = 4 * p.H;
  const Block x = random_block(p.dtype, rows * p.I), w_ih = random_block(p.dtype, G * p.I),
              w_hh = random_block(p.dtype, G * p.H), b_ih = random_block(p.dtype, G),
              b_hh = random_block(p.dtype, G), dy = random_block(p.dtype, rows * p.H);
  const Block y = allocate(rows * p.H * size), h_n = allocate(p.B * p.H * size),
              c_n = allocate(p.B * p.H * size), dx = allocate(rows * p.I * size),
              dw_ih = allocate(G * p.I * size), dw_hh = allocate(G * p.H * size),
              db = allocate(G * size), reserve = allocate(cpu::reserve_bytes(p));
  p.x = x.get();
  p.x_t = p.B * p.I;
  p.x_b = p.I;
  p.weights[0] = {w_ih.get(), w_hh.get(), b_ih.get(), b_hh.get(), nullptr};
  Outputs inference{y.get(), p.B * p.H, p.H, h_n.get(), c_n.get(), nullptr}, training = inference;
  training.reserve = reserve.get();
  Gradients gradients;
  gradients.y = y.get();
  gradients.dy = dy.get();
  gradients.y_t = gradients.dy_t = p.B * p.H;
  gradients.y_b = gradients.dy_b = p.H;
  gradients.reserve = reserve.get();
  gradients.weights[0] = {dw_ih.get(), dw_hh.get(), db.get(), nullptr};
  Gradients with_dx = gradients;
  with_dx.dx = dx.get();

  Parallel parallel;
  parallel.threads = static_cast<int32_t>(threads);
  parallel.concurrent = true;
  parallel.run = run_team;
  team.start(threads);
  const int32_t n = parallel.threads;
  const size_t bytes =
      std::max({cpu::forward_workspace_bytes(p, false, n), cpu::forward_workspace_bytes(p, true, n),
                cpu::backward_workspace_bytes(p, gradients, n),
                cpu::backward_workspace_bytes(p, with_dx, n)});
  const Block workspace = allocate(bytes);
  char plan[256];
  cpu::explain(p, true, n, plan, sizeof plan);
  std::printf("T=%lld B=%lld I=%lld H=%lld threads=%d: %s\n", static_cast<long long>(p.T),
              static_cast<long long>(p.B), static_cast<long long>(p.I), static_cast<long long>(p.H),
              n, plan);
  const double product = 2.0 * static_cast<double>(rows) * static_cast<double>(G);  // per column
  const double forward_flops = product * static_cast<double>(p.I + p.H);
  const auto report = [&](const char* what, double flops, const std::function<Status()>& call) {
    const double us = median_us(repeats, call);
    std::printf("  %-20s %10.1f us %7.1f GF/s\n", what, us, flops / us * 1e-3);
  };
  report("forward, inference", forward_flops,
         [&] { return cpu::forward(p, inference, workspace.get(), bytes, parallel); });
  report("forward, training", forward_flops,
         [&] { return cpu::forward(p, training, workspace.get(), bytes, parallel); });
  report("backward without dx", product * static_cast<double>(p.I + 2 * p.H),
         [&] { return cpu::backward(p, gradients, workspace.get(), bytes, parallel); });
  report("backward with dx", 2 * forward_flops,
         [&] { return cpu::backward(p, with_dx, workspace.get(), bytes, parallel); });
  team.finish();
  return 0;
}
