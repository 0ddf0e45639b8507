// The stand-in tested by itself, before it judges a kernel: the collectives against plain
// arithmetic, and that each mistake it claims to catch is caught.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "device.cuh"
#include "suite.h"

namespace {

using namespace fused_lstm::device;

template <class Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const simt::Error& e) {
    return e.what();
  }
  return "";
}

// ---- mma: fragments are filled by an independent description of the layouts, as strides --------

template <class T>
__global__ void one_mma(const float* a, const float* b, float* c) {  // [16, 16] [16, 8] [16, 8]
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t fa[4], fb[2];
  for (int r = 0; r < 4; ++r) {  // register bit 0: 8 rows down; bit 1: 8 columns to the right
    const float* p = a + (lane >> 2) * 16 + (lane & 3) * 2 + (r & 1) * 128 + (r >> 1) * 8;
    fa[r] = pack(from_float<T>(p[0]), from_float<T>(p[1]));
  }
  for (int r = 0; r < 2; ++r) {
    const float* p = b + (lane & 3) * 16 + (lane >> 2) + r * 64;
    fb[r] = pack(from_float<T>(p[0]), from_float<T>(p[8]));
  }
  float* const corner = c + (lane >> 2) * 8 + (lane & 3) * 2;
  float d[4] = {corner[0], corner[1], corner[64], corner[65]};
  mma<T>(d, fa, fb[0], fb[1]);
  for (int i = 0; i < 4; ++i) corner[(i & 1) + (i >> 1) * 64] = d[i];
}

__global__ void one_mma_tf32(const float* a, const float* b, float* c) {  // [16, 8] [8, 8] [16, 8]
  const int lane = static_cast<int>(threadIdx.x), g = lane >> 2, t = lane & 3;
  uint32_t fa[4], fb[2];
  for (int r = 0; r < 4; ++r) fa[r] = to_tf32(a[(g + (r & 1) * 8) * 8 + t + (r >> 1) * 4]);
  for (int r = 0; r < 2; ++r) fb[r] = to_tf32(b[(t + r * 4) * 8 + g]);
  float* const corner = c + g * 8 + t * 2;
  float d[4] = {corner[0], corner[1], corner[64], corner[65]};
  mma_tf32(d, fa, fb[0], fb[1]);
  for (int i = 0; i < 4; ++i) corner[(i & 1) + (i >> 1) * 64] = d[i];
}

template <int K>
bool mma_matches(void (*kernel)(const float*, const float*, float*)) {
  std::vector<float> a(16 * K), b(K * 8), c(128);  // small integers: exact in every type
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i * 37 % 23) - 11;
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i * 29 % 19) - 9;
  for (size_t i = 0; i < c.size(); ++i) c[i] = static_cast<float>(i);
  std::vector<float> want = c;
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      for (int k = 0; k < K; ++k) want[m * 8 + n] += a[m * K + k] * b[k * 8 + n];
    }
  }
  simt::launch(kernel, {1, 32}, a.data(), b.data(), c.data());
  return c == want;
}

__global__ void load_b_operand(const uint16_t* h, uint32_t* out) {  // [8, 32] -> [32 lanes, 6]
  auto* const rows = dynamic_shared<uint16_t>();
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += 32) rows[i] = h[i];
  __syncwarp();
  uint32_t four[4], two[2];
  const uint16_t* const row = rows + lane % 8 * 32;
  ldmatrix_x4(four, row + lane / 8 * 8);
  ldmatrix_x2(two, row + (2 + lane / 8 % 2) * 8);
  for (unsigned i = 0; i < 4; ++i) out[lane * 6 + i] = four[i];
  for (unsigned i = 0; i < 2; ++i) out[lane * 6 + 4 + i] = two[i];
}

bool ldmatrix_matches() {
  std::vector<uint16_t> h(256);
  for (size_t i = 0; i < h.size(); ++i) h[i] = static_cast<uint16_t>(i);
  std::vector<uint32_t> out(192);
  simt::launch(load_b_operand, {1, 32, 512}, h.data(), out.data());
  bool good = true;  // register m: (k = 8m + 2t, 8m + 2t + 1; n = g), the B operand of two mma
  for (unsigned l = 0; l < 32; ++l) {
    for (unsigned m = 0; m < 6; ++m) {
      const unsigned k = l / 4 * 32 + 8 * (m < 4 ? m : m - 2) + 2 * (l % 4);
      good &= out[l * 6 + m] == (k | (k + 1) << 16);
    }
  }
  return good;
}

__global__ void shuffle_all(int* out) {
  const int l = static_cast<int>(threadIdx.x);
  out[l] = __shfl_xor_sync(~0u, l, 5);
  out[32 + l] = __shfl_down_sync(~0u, l, 3);
  out[64 + l] = __shfl_up_sync(~0u, l, 3);
  out[96 + l] = __shfl_sync(~0u, l, 9);
  out[128 + l] = l < 16 ? __shfl_xor_sync(0xffffu, l, 1) : __shfl_xor_sync(0xffff0000u, l, 2);
}

bool shuffles_match() {
  int out[160];
  simt::launch(shuffle_all, {1, 32}, out);
  bool good = true;
  for (int l = 0; l < 32; ++l) {
    good &= out[l] == (l ^ 5) && out[32 + l] == (l + 3 < 32 ? l + 3 : l);
    good &= out[64 + l] == (l >= 3 ? l - 3 : l) && out[96 + l] == 9;
    good &= out[128 + l] == (l < 16 ? l ^ 1 : l ^ 2);
  }
  return good;
}

bool conversions_match() {
  bool good = true;
  for (unsigned i = 0; i < 65536; ++i) {
    const half h{static_cast<uint16_t>(i)};
    const bf16 b{static_cast<uint16_t>(i)};
    const float from_h = to_float(h), from_b = to_float(b);
    good &= std::isnan(from_h) ? std::isnan(to_float(from_float<half>(from_h)))
                               : from_float<half>(from_h).bits == i;
    good &= std::isnan(from_b) ? std::isnan(to_float(from_float<bf16>(from_b)))
                               : from_float<bf16>(from_b).bits == i;
  }
  good &= from_float<half>(2049.f / 2048).bits == 0x3c00;  // ties to even, both ways
  good &= from_float<half>(2051.f / 2048).bits == 0x3c02;
  good &= from_float<bf16>(257.f / 256).bits == 0x3f80;
  good &= from_float<bf16>(259.f / 256).bits == 0x3f82;
  return good;
}

// ---- mistakes
// ------------------------------------------------------------------------------------

__global__ void copy_reversed(const float* in, float* out, bool wait) {
  auto* const row = dynamic_shared<float>();
  cp_async<4>(row + threadIdx.x, in + threadIdx.x);
  cp_async_commit();
  if (wait) cp_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = row[blockDim.x - 1 - threadIdx.x];
  cp_async_wait<0>();
}

bool copies_reversed(bool wait) {
  float in[64], out[64];
  for (int i = 0; i < 64; ++i) in[i] = static_cast<float>(i);
  simt::launch(copy_reversed, {1, 64, 256}, in, out, wait);
  bool good = true;
  for (int i = 0; i < 64; ++i) good &= out[i] == static_cast<float>(63 - i);
  return good;
}

__global__ void no_barrier(int* out) {  // warp 1 reads what warp 0 writes
  int* const row = dynamic_shared<int>();
  if (threadIdx.x < 32) row[threadIdx.x] = 1;
  __syncwarp();
  if (threadIdx.x >= 32) out[threadIdx.x - 32] = row[threadIdx.x - 32];
}

bool barrier_missed() {
  int out[32] = {};
  simt::launch(no_barrier, {1, 64, 128}, out);
  for (int value : out) {
    if (value != 1) return true;
  }
  return false;
}

__global__ void two_barriers(int) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void some_return(int) {
  if (threadIdx.x >= 5) return;
  __syncthreads();
}
__global__ void lanes_disagree(int) {
  if (threadIdx.x < 4) {
    __syncwarp();
  } else {
    __shfl_xor_sync(~0u, 1, 1);
  }
}
__global__ void lane_missing(int) {
  if (threadIdx.x != 7) __shfl_xor_sync(~0u, 1, 1);
}
__global__ void lane_stays_away(int) {
  if (threadIdx.x % 32 != 0) __syncwarp();
  __syncthreads();
}
__global__ void overrun(int n) { dynamic_shared<char>()[n] = 1; }
__global__ void deep(int n) {
  volatile char big[70 << 10];
  big[0] = static_cast<char>(n);
  __syncthreads();
  (void)big[0];
}
__global__ void forgotten_copy(const float* in) { cp_async<16>(dynamic_shared<float>(), in); }
__global__ void misaligned_copy(const float* in) { cp_async<16>(dynamic_shared<float>(), in + 1); }
__global__ void nothing(int) {}

__global__ void number_all(int* out, int n) {
  const unsigned i = (blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x * blockDim.y +
                     threadIdx.y * blockDim.x + threadIdx.x;
  if (static_cast<int>(i) < n) out[i] += static_cast<int>(i);
}

bool grid_covered() {  // every block and thread once, also of a grid larger than kResident
  std::vector<int> out(40 * 9 * 12, 0);
  const int n = static_cast<int>(out.size()) - 5;
  simt::launch(number_all, {{40, 9}, {4, 3}}, out.data(), n);
  bool good = true;
  for (int i = 0; i < static_cast<int>(out.size()); ++i) good &= out[i] == (i < n ? i : 0);
  return good;
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_standin", nullptr);
  const auto check = [&](const std::string& what, auto holds) {
    suite.begin(what);
    suite.expect(holds(), "does not hold");
    suite.end();
  };
  const auto refused = [&](const std::string& what, const std::string& got, const char* want) {
    suite.begin(what);
    suite.expect(got.find(want) != std::string::npos,
                 "expected " + std::string(want) + ", got '" + got + "'");
    suite.end();
  };
  check("fp16 and bf16 conversions, every value, and ties to even", conversions_match);
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    simt::options.seed = seed;
    check("mma m16n8k16 bf16", [] { return mma_matches<16>(one_mma<bf16>); });
    check("mma m16n8k16 fp16", [] { return mma_matches<16>(one_mma<half>); });
    check("mma m16n8k8 tf32", [] { return mma_matches<8>(one_mma_tf32); });
    check("ldmatrix yields B fragments of h stored [n][k]", ldmatrix_matches);
    check("shuffles, also under partial masks", shuffles_match);
    check("a grid of many blocks", grid_covered);
  }
  int races = 0, early = 0, on_time = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    simt::options.seed = seed;
    races += barrier_missed();
    early += !copies_reversed(false);
    on_time += copies_reversed(true);
  }
  check("a missing barrier shows under some of 20 seeds: " + std::to_string(races),
        [=] { return races >= 4; });
  check("cp.async read before its wait shows: " + std::to_string(early),
        [=] { return early == 20; });
  check("cp.async with its wait is right: " + std::to_string(on_time),
        [=] { return on_time == 20; });

  alignas(16) const float in[8] = {};
  const auto run = [](auto kernel, simt::Launch how, auto argument) {
    return error_of([&] { simt::launch(kernel, how, argument); });
  };
  refused("two barriers", run(two_barriers, {1, 64}, 0), "barrier divergence");
  refused("some threads return", run(some_return, {1, 64}, 0), "barrier divergence");
  refused("lanes in two collectives", run(lanes_disagree, {1, 32}, 0), "warp divergence");
  refused("a lane returns", run(lane_missing, {1, 32}, 0),
          "shfl_xor: lane 7 of the mask has returned");
  refused("lanes wait for one that waits elsewhere", run(lane_stays_away, {1, 64}, 0), "deadlock");
  refused("shared memory overrun", run(overrun, {1, 32, 40}, 40), "past the end");
  refused("a stack too small", run(deep, {1, 32}, 1), "stack overflow");
  refused("a copy nobody waits for", run(forgotten_copy, {1, 1, 16}, &in[0]), "still in flight");
  refused("a copy misaligned", run(misaligned_copy, {1, 1, 16}, &in[0]), "aligned");
  refused("too many threads", run(nothing, {1, 1025}, 0), "1024 threads");
  refused("no block at all", run(nothing, {0, 32}, 0), "empty grid");
  refused("too many blocks in y", run(nothing, {{1, 65536}, 32}, 0), "65535");
  refused("too much shared memory", run(nothing, {1, 32, 232449}, 0), "at most 232448");
  check("work goes on after errors", grid_covered);
  return suite.finish();
}
