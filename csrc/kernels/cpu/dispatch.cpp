// Chooses the instruction set once per process and checks what the entry points are given.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "bytes.h"
#include "kernels.h"
#include "plan.h"

namespace fused_lstm {
namespace cpu {
namespace {

constexpr Isa kAllIsas[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kEmulated512};

const Kernels* kernels_of(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return portable_kernels();
    case Isa::kAvx2:
      return avx2_kernels();
    case Isa::kAvx512:
      return avx512_kernels();
    case Isa::kEmulated512:
      return emulated512_kernels();
  }
  return nullptr;
}

#if defined(__x86_64__)
// By hand: clang before 16 refuses "f16c" as a name for __builtin_cpu_supports.
bool processor_has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// Whether there are tiles of bfloat16, the system keeps them between threads, and lets us use them:
// Linux wants to be asked, once for all threads, because they enlarge every thread's saved state.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr unsigned kTileBits = 1u << 24 | 1u << 22;  // AMX-TILE, AMX-BF16 in leaf 7's edx
  constexpr unsigned kSaved = 3u << 17;                // tile configuration and data in XCR0
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kTileBits) != kTileBits) {
    return false;
  }
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & bit_OSXSAVE) == 0) return false;
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return (eax & kSaved) == kSaved && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

bool processor_has(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && processor_has_f16c();
  if (isa == Isa::kAvx2) return avx2;
  if (isa == Isa::kAvx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  }
#endif
  return isa == Isa::kPortable || isa == Isa::kEmulated512;
}

Isa best_isa() {
  if (const char* name = std::getenv("FUSED_LSTM_ISA")) {
    for (const Isa isa : kAllIsas) {
      if (std::strcmp(name, isa_name(isa)) == 0 && isa_runs_here(isa)) return isa;
    }
  }
  if (isa_runs_here(Isa::kAvx512)) return Isa::kAvx512;
  if (isa_runs_here(Isa::kAvx2)) return Isa::kAvx2;
  return Isa::kPortable;
}

std::atomic<Isa>& chosen_isa() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}

int64_t l2_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return 512 << 10;
}

bool is_zen() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  static const bool zen = __builtin_cpu_is("amd");
  return zen;
#else
  return false;
#endif
}

bool is_intel() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  static const bool intel = __builtin_cpu_is("intel");
  return intel;
#else
  return false;
#endif
}

// Zen's L3 gives a core 30 bytes a cycle; elsewhere it is shared by many more cores, and far. The
// system may count the L3 of all complexes together: one has 16 to 32 MB. Small tiles read faster
// than it gives, and beside busy neighbours much of it is theirs.
void set_distances(Facts& facts) {
  facts.l2_bytes = facts.near_bytes = l2_bytes();
  facts.fused_bytes = facts.l2_bytes * 3 / 4;
  facts.distant = facts.small_tiles || is_intel();
  if (active_isa() == Isa::kEmulated512) {  // tests alone run it: both sides of the bound
    facts.distant = true;
    facts.near_bytes = 64 << 10;
    return;
  }
  if (!is_zen()) return;
  facts.near_bytes = facts.small_tiles ? 3 << 20 : 16 << 20;
  facts.fused_bytes = facts.small_tiles ? 2 << 20 : 8 << 20;
  // More than an L2 holds is gone from it before backward comes. Small tiles gain nothing by it,
  // and elsewhere it is not measured.
  facts.stream_bytes = facts.small_tiles ? 0 : facts.l2_bytes;
}

// Whether this processor multiplies pairs of bfloat16.
bool multiplies_pairs() {
#if defined(__x86_64__)
  static const bool pairs = avx512_bfloat16_kernels() != nullptr &&
                            __builtin_cpu_supports("avx512bf16") && isa_runs_here(Isa::kAvx512);
  return pairs;
#else
  return false;
#endif
}

// Whether it has tiles of bfloat16 beside them (AMX).
bool has_tiles() {
#if defined(__x86_64__)
  static const bool tiles =
      amx_bfloat16_kernels() != nullptr && multiplies_pairs() && may_use_tiles();
  return tiles;
#else
  return false;
#endif
}

const Kernels& kernels(DType dtype) {
  const Isa isa = active_isa();
  if (isa == Isa::kAvx512 && dtype == DType::kBFloat16 && has_tiles()) {
    return *amx_bfloat16_kernels();
  }
  if (isa == Isa::kAvx512 && dtype == DType::kBFloat16 && multiplies_pairs()) {
    return *avx512_bfloat16_kernels();
  }
  return *kernels_of(isa);
}

Facts facts_of(DType dtype) {
  Facts facts = kernels(dtype).facts(dtype);
  set_distances(facts);
  return facts;
}

Status check(const Problem& q) {
  switch (q.dtype) {
    case DType::kFloat32:
    case DType::kFloat64:
    case DType::kBFloat16:
    case DType::kFloat16:
      break;
    default:
      return Status::kUnsupported;
  }
  if (q.T < 1 || q.B < 1 || q.I < 1 || q.H < 1 || q.P < 1 || q.D < 1 || q.D > 2) {
    return Status::kBadArgument;
  }
  if (q.x == nullptr) return Status::kBadArgument;
  for (int32_t d = 0; d < q.D; ++d) {
    if (q.weights[d].w_ih == nullptr || q.weights[d].w_hh == nullptr) return Status::kBadArgument;
    if ((q.weights[d].w_hr != nullptr) != projects(q)) return Status::kBadArgument;
  }
  if (q.marks != nullptr || q.zoneout.on() || q.h_factors != nullptr) {
    if (q.batch_sizes != nullptr) return Status::kBadArgument;
    if (projects(q)) return Status::kUnsupported;
  }
  return valid_batch_sizes(q) ? Status::kOk : Status::kBadArgument;
}

int32_t usable(int32_t threads) { return threads < 1 ? 1 : threads > 256 ? 256 : threads; }

// The pointer only says that a reserve will be written: sizes do not depend on where.
Outputs outputs_for_size(bool training) {
  Outputs outputs;
  static char somewhere;
  outputs.reserve = training ? &somewhere : nullptr;
  return outputs;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kEmulated512:
      return "emulated512";
  }
  return "unknown";
}

bool isa_runs_here(Isa isa) { return kernels_of(isa) != nullptr && processor_has(isa); }
Isa active_isa() { return chosen_isa().load(std::memory_order_relaxed); }
bool set_isa(Isa isa) {
  if (!isa_runs_here(isa)) return false;
  chosen_isa().store(isa, std::memory_order_relaxed);
  return true;
}

const Kernels& active_kernels(DType dtype) { return kernels(dtype); }

ByteProduct active_byte_product() {
  const Isa isa = active_isa();
  if (isa == Isa::kEmulated512) return plain_byte_product();
#if defined(__x86_64__)
  static const bool here = __builtin_cpu_supports("avx512vnni");
  if (isa == Isa::kAvx512 && here) return avx512vnni_byte_product();
  if (isa == Isa::kAvx2) return avx2_byte_product();
#endif
  return {};
}

size_t reserve_bytes(const Problem& problem) {
  return kernels(problem.dtype).reserve_bytes(problem);
}

size_t forward_workspace_bytes(const Problem& problem, bool training, int32_t threads) {
  const Plan plan = plan_forward(problem, training, usable(threads), facts_of(problem.dtype));
  return kernels(problem.dtype).forward_workspace(problem, outputs_for_size(training), plan);
}

size_t backward_workspace_bytes(const Problem& problem, const Gradients& gradients,
                                int32_t threads) {
  const Plan plan = plan_backward(problem, usable(threads), facts_of(problem.dtype));
  return kernels(problem.dtype).backward_workspace(problem, gradients, plan);
}

Status forward(const Problem& problem, const Outputs& outputs, void* workspace,
               size_t workspace_bytes, const Parallel& parallel) {
  const Status status = check(problem);
  if (status != Status::kOk) return status;
  if (outputs.y == nullptr || outputs.h_n == nullptr || outputs.c_n == nullptr ||
      workspace == nullptr) {
    return Status::kBadArgument;
  }
  if (outputs.cells != nullptr) {
    if (!problem.cells || problem.batch_sizes != nullptr) return Status::kBadArgument;
    if (projects(problem)) return Status::kUnsupported;
  }
  const Plan plan = plan_forward(problem, outputs.reserve != nullptr, usable(parallel.threads),
                                 facts_of(problem.dtype));
  if (kernels(problem.dtype).forward_workspace(problem, outputs, plan) > workspace_bytes) {
    return Status::kWorkspaceTooSmall;
  }
  kernels(problem.dtype).forward(problem, outputs, plan, workspace, parallel);
  return Status::kOk;
}

Status backward(const Problem& problem, const Gradients& gradients, void* workspace,
                size_t workspace_bytes, const Parallel& parallel) {
  const Status status = check(problem);
  if (status != Status::kOk) return status;
  if (gradients.y == nullptr || gradients.reserve == nullptr || workspace == nullptr) {
    return Status::kBadArgument;
  }
  if (gradients.dcells != nullptr) {
    if (!problem.cells || problem.batch_sizes != nullptr) return Status::kBadArgument;
    if (projects(problem)) return Status::kUnsupported;
  }
  const Plan plan = plan_backward(problem, usable(parallel.threads), facts_of(problem.dtype));
  if (kernels(problem.dtype).backward_workspace(problem, gradients, plan) > workspace_bytes) {
    return Status::kWorkspaceTooSmall;
  }
  kernels(problem.dtype).backward(problem, gradients, plan, workspace, parallel);
  return Status::kOk;
}

void explain(const Problem& problem, bool training, int32_t threads, char* text,
             size_t text_bytes) {
  const Plan plan = plan_forward(problem, training, usable(threads), facts_of(problem.dtype));
  const bool pairs = problem.dtype == DType::kBFloat16 && active_isa() == Isa::kAvx512 &&
                     &kernels(problem.dtype) != avx512_kernels();
  std::snprintf(text, text_bytes, "cpu %s%s: %s, input %s%s, %d task%s%s", isa_name(active_isa()),
                plan.matrix ? " with bfloat16 tiles"
                : pairs     ? " with bfloat16 products"
                            : "",
                plan.dot ? "dot products on the weights as they lie" : "packed gate panels",
                plan.fused ? "fused into each step" : "projected ahead in chunks",
                projects(problem) ? ", h projected after each step" : "", plan.threads,
                plan.threads == 1 ? "" : "s",
                plan.threads == 1            ? ""
                : plan.split == Split::kRows ? " over rows"
                                             : " over hidden units");
}

}  // namespace cpu
}  // namespace fused_lstm
