// Everything that a kernel of this folder uses beyond plain C++, as named wrappers: each has a body
// for nvcc (an intrinsic or PTX) and a twin for the stand-in of tests/simt, which compiles the same
// kernels as C++ and runs them on the CPU. So kernels contain no #ifdef and no asm, take shared
// memory through dynamic_shared alone, and are launched through launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#define ON_GPU(gpu, cpu) gpu
#else
#define ON_GPU(gpu, cpu) cpu
#endif
#define DEVICE __device__ __forceinline__

namespace fused_lstm {
namespace device {

using bf16 = __nv_bfloat16;
using half = __half;

// Whether kernels that keep the weights resident are compiled for this architecture;
// single_block.cpp knows the same limits. Older ones lack the products, and on newer ones some
// instances still spill registers in their step loop.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 800 || __CUDA_ARCH__ >= 1000)
constexpr bool kResidentKernels = false;
#else
constexpr bool kResidentKernels = true;
#endif
// The most shared memory that one block gets there; an instance that needs more never runs.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890)
constexpr int64_t kMostSharedBytes = 99 * 1024;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int64_t kMostSharedBytes = 163 * 1024;
#else
constexpr int64_t kMostSharedBytes = 227 * 1024;
#endif
// The same for kernels whose blocks form a cluster.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kClusters = false;
#else
constexpr bool kClusters = kResidentKernels;
#endif
// Where they are not: a launch there ends with an error instead of nothing.
DEVICE void refuse() {
#ifdef __CUDACC__
  __trap();
#endif
}

// ---- numbers
// -------------------------------------------------------------------------------------

// What sums and states of stored type T are held in.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

DEVICE float to_float(float value) { return value; }
DEVICE double to_float(double value) { return value; }
DEVICE float to_float(bf16 value) { return __bfloat162float(value); }
DEVICE float to_float(half value) { return __half2float(value); }
// Rounds to nearest, ties to even.
template <class T>
DEVICE T from_float(Compute<T> value) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16(value);
  } else if constexpr (std::is_same_v<T, half>) {
    return __float2half(value);
  } else {
    return value;
  }
}
// Two 16-bit values as one register of an mma fragment.
template <class T>
DEVICE uint32_t pack(T low, T high) {
  static_assert(sizeof(T) == 2, "only 16-bit types are packed in pairs");
  uint16_t l, h;
  memcpy(&l, &low, 2);
  memcpy(&h, &high, 2);
  return l | static_cast<uint32_t>(h) << 16;
}
// A few units in the last place, and no subnormal results: enough where h is stored in 16 bits.
DEVICE float fast_exp(float value) { return ON_GPU(__expf(value), std::exp(value)); }
DEVICE float fast_divide(float a, float b) { return ON_GPU(__fdividef(a, b), a / b); }

// ---- shared memory
// -------------------------------------------------------------------------------

// The block's dynamic shared memory, 128-byte aligned.
template <class T>
DEVICE T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(128) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
#else
  return reinterpret_cast<T*>(simt::current->block->shared);
#endif
}

#ifdef __CUDACC__
DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
#endif

// Copies kBytes (4, 8 or 16; both addresses aligned to that) from global to shared memory. Visible
// to this thread after cp_async_wait, to others after a barrier that follows it. Below sm_80, which
// has no such copy, it happens at once.
template <int kBytes>
DEVICE void cp_async(void* to_shared, const void* from_global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "a copy is 4, 8 or 16 bytes");
#if !defined(__CUDACC__)
  simt::async_copy(to_shared, from_global, kBytes);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  using Word =
      std::conditional_t<kBytes == 16, uint4, std::conditional_t<kBytes == 8, uint2, uint32_t>>;
  *static_cast<Word*>(to_shared) = *static_cast<const Word*>(from_global);
#else
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to_shared)),
                 "l"(from_global)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to_shared)),
                 "l"(from_global), "n"(kBytes)
                 : "memory");
  }
#endif
}

// Ends a group of copies; cp_async_wait<n> waits until at most the last n groups are under way.
DEVICE void cp_async_commit() {
#if !defined(__CUDACC__)
  simt::async_commit();
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kGroupsLeft>
DEVICE void cp_async_wait() {
#if !defined(__CUDACC__)
  simt::async_wait(kGroupsLeft);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}

// ---- tensor cores
// --------------------------------------------------------------------------------

// Loads N 8x8 matrices of 16-bit elements; lane 8m + r gives the address of row r of matrix m
// (lanes beyond 8N: any valid one), 16-byte aligned.
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#else
  simt::ldmatrix(r, row);
#endif
}
DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
#else
  simt::ldmatrix(r, row);
#endif
}

// d[16x8] += a[16x16] * b[16x8], sums in float; tests/simt/include/simt_warp.h draws the fragments.
// From sm_80 on: a kernel that needs it is not launched below, and traps there.
template <class T>
DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, half>, "16-bit operands");
#if !defined(__CUDACC__)
  const uint32_t b[2] = {b0, b1};
  simt::mma_m16n8k16<T>("mma", d, a, b, [](T value) { return to_float(value); });
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();
#else
#define FUSED_LSTM_MMA(type)                                                \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type       \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if constexpr (std::is_same_v<T, bf16>) {
    FUSED_LSTM_MMA("bf16");
  } else {
    FUSED_LSTM_MMA("f16");
  }
#undef FUSED_LSTM_MMA
#endif
}

// d[16x8] += a[16x8] * b[8x8] in tf32; operands come from to_tf32. From sm_80 on, as mma.
DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if !defined(__CUDACC__)
  const uint32_t b[2] = {b0, b1};
  simt::mma_m16n8k8_tf32(d, a, b);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
DEVICE uint32_t to_tf32(float value) {  // nearest, ties away from zero
  uint32_t bits;
#if !defined(__CUDACC__)
  memcpy(&bits, &value, 4);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  bits = is_nan ? bits : (bits + 0x1000u) & ~0x1fffu;  // a carry may not run through a NaN
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  bits = __float_as_uint(value);
#else
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#endif
  return bits;
}

// ---- between blocks
// ------------------------------------------------------------------------------
//
// What one block writes and another reads within a kernel: written plainly, then a barrier of the
// block, then a release by one of its threads; acquired by one thread of the reader, then a barrier
// of that block, then load_shared_by_blocks, which takes no stale line of L1.

DEVICE uint4 load_shared_by_blocks(const uint4* from) {
#ifdef __CUDACC__
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
#else
  return *from;
#endif
}
DEVICE uint32_t load_acquire(const uint32_t* from) {
#if !defined(__CUDACC__)
  simt::maybe_leave();
  return *from;
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 700
  return *from;
#else
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
#endif
}
// Only integers that are counted are ever added to: no result depends on an order.
DEVICE void add_release(uint32_t* to, uint32_t value) {
#if !defined(__CUDACC__)
  simt::update(to, value, true);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 700
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
#endif
}
// Seen by every block, and by the host where the memory is the host's.
DEVICE void store_for_all(uint32_t* to, uint32_t value) {
#if !defined(__CUDACC__)
  simt::update(to, value, false);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 700
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
#endif
}
// For a thread that looks again and again: lets others go on.
DEVICE void pause() { ON_GPU(__nanosleep(20), simt::poll()); }
DEVICE uint64_t nanoseconds() {
#ifdef __CUDACC__
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
#else
  return simt::clock_now;
#endif
}

// A cluster's barrier in two halves: what a thread wrote before it arrived, also into the shared
// memory of other blocks, all see who have waited. Called by all threads, of a warp in any order:
// what comes before is divergent, so neither half may be the aligned one.
DEVICE void cluster_arrive() {
#if !defined(__CUDACC__)
  simt::cluster_arrive();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
#ifdef __CUDACC__
DEVICE void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}
#else
inline void cluster_wait(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::cluster_wait({file, line});
}
#endif
// Stores a word where `mine`, a place in shared memory, lies in block `rank` of the cluster.
DEVICE void store_in_cluster(uint32_t* mine, uint32_t rank, uint32_t value) {
#if !defined(__CUDACC__)
  *simt::shared_of_rank(mine, rank) = value;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(there)
               : "r"(shared_address(mine)), "r"(rank));
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(there), "r"(value) : "memory");
#endif
}

// ---- host: one launch call for both worlds
// -------------------------------------------------------

struct Launch {
  dim3 grid, block;
  size_t shared = 0;
  unsigned cluster = 1;      // blocks of a cluster, neighbours in x
  bool cooperative = false;  // all blocks are under way at once, or the launch is refused
};

#ifdef __CUDACC__
// Lets a kernel have what `how` asks for.
template <class... Parameters>
cudaError_t prepare(void (*kernel)(Parameters...), const Launch& how) {
  cudaError_t status = cudaSuccess;
  if (how.shared > 48 * 1024) {
    // Always the most there is: another thread's call of another size must not find it lowered.
    int device = 0, most = 0;
    cudaFuncAttributes facts{};
    status = cudaGetDevice(&device);
    if (status == cudaSuccess) {
      status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
    if (status == cudaSuccess) status = cudaFuncGetAttributes(&facts, kernel);
    if (status == cudaSuccess) {
      status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    most - static_cast<int>(facts.sharedSizeBytes));
    }
  }
  if (status == cudaSuccess && how.cluster > 8) {
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  return status;
}

inline cudaLaunchConfig_t configuration(const Launch& how, cudaStream_t stream,
                                        cudaLaunchAttribute (&attributes)[2]) {
  cudaLaunchConfig_t config = {};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared;
  config.stream = stream;
  config.attrs = attributes;
  if (how.cluster > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = how.cluster;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  }
  if (how.cooperative) {
    cudaLaunchAttribute& cooperative = attributes[config.numAttrs++];
    cooperative.id = cudaLaunchAttributeCooperative;
    cooperative.val.cooperative = 1;
  }
  return config;
}
#endif

// Queues kernel(arguments...) on the stream; 0, or CUDA's error code.
template <class... Parameters>
int launch(void (*kernel)(Parameters...), const Launch& how, cudaStream_t stream,
           std::common_type_t<Parameters>... arguments) {
#ifdef __CUDACC__
  const cudaError_t status = prepare(kernel, how);
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = configuration(how, stream, attributes);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
#else
  (void)stream;
  return simt::launch(kernel, {how.grid, how.block, how.shared, how.cluster, how.cooperative},
                      arguments...)
             ? 0
             : 1;
#endif
}

// How many blocks of such a launch a multiprocessor takes at once, or how many of its clusters the
// device: 0 where the launch would be refused. Leaves no error behind.
template <class... Parameters>
int most_at_once(void (*kernel)(Parameters...), const Launch& how) {
  int count = 0;
#ifdef __CUDACC__
  cudaError_t status = prepare(kernel, how);
  if (status == cudaSuccess && how.cluster > 1) {
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config = configuration(how, nullptr, attributes);
    status = cudaOccupancyMaxActiveClusters(&count, kernel, &config);
  } else if (status == cudaSuccess) {
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &count, kernel, static_cast<int>(how.block.x), how.shared);
  }
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
#else
  (void)kernel;
  count = simt::options.coresident > 0 && how.shared <= simt::options.shared_limit ? 1 : 0;
#endif
  return count;
}

// Whether a launch was refused because the device has no room for all its blocks at once.
inline bool has_no_room(int error) {
  return ON_GPU(error == cudaErrorCooperativeLaunchTooLarge ||
                    error == cudaErrorLaunchOutOfResources || error == cudaErrorInvalidClusterSize,
                error != 0);
}

// A refusal that is answered is no error of a later call.
inline void forget_error() { ON_GPU((void)cudaGetLastError(), (void)0); }

inline const char* error_text(int error) {
  return ON_GPU(cudaGetErrorString(static_cast<cudaError_t>(error)),
                error == 0 ? "no error" : "the stand-in was told to refuse");
}

}  // namespace device
}  // namespace fused_lstm
