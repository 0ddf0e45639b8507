// A stand-in for the CUDA runtime: the kernels' own source, compiled as C++, runs on the CPU with
// one fibre for every CUDA thread (simt_engine.h). It proves the logic of a kernel: indices, tails,
// masks, fragment layouts, barriers. It says nothing about speed, about the memory model (all is
// sequentially consistent here), about occupancy, or about what ptxas makes of it.
//
// nvcc must never see this folder: it includes <cuda_runtime.h> by itself, and would find this one.
//
// Deliberately missing, so that a kernel which uses it does not compile: `__shared__` (kernels take
// device::dynamic_shared, which is poisoned and fenced), atomics (results would depend on their
// order), and every intrinsic that has no twin in csrc/kernels/cuda/device.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#ifndef __forceinline__  // -D__forceinline__=inline compiles several times as fast
#define __forceinline__ inline __attribute__((always_inline))
#endif
#define __launch_bounds__(...)
#define __restrict__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  size_t volume() const { return static_cast<size_t>(x) * y * z; }
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
using cudaStream_t = void*;

#include "simt_warp.h"

// ---- the names that kernels use ----------------------------------------------------------------

#define threadIdx (simt::thread_index())
#define blockIdx (simt::current->block->index)
#define blockDim (simt::current->block->grid->launch.block)
#define gridDim (simt::current->block->grid->launch.grid)

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::sync_block({file, line});
}
inline void __syncwarp(unsigned mask = ~0u) { simt::sync_warp(mask); }
template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return simt::exchange("shfl", mask, value, static_cast<unsigned>(source & 31));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return simt::exchange("shfl_xor", mask, value, simt::lane() ^ static_cast<unsigned>(bits));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned n) {
  return simt::exchange("shfl_down", mask, value, simt::lane() + n);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned n) {
  return simt::exchange("shfl_up", mask, value, simt::lane() - n);
}
