// The CUDA half of the contracts in ../lstm.h and ../recurrence.h: the same Problem, Outputs and
// Gradients, with pointers to device memory (batch_sizes alone stays in host memory), and what a
// launch needs besides: the device's facts, a stream, and the dense products of whoever owns a BLAS
// handle.
//
// Plain C++, no CUDA header: the binding includes it, and tests/simt runs what stands behind it on
// the CPU. Nothing here allocates, synchronises, or touches a global setting; everything is queued
// on the stream that is given, and may be captured into a CUDA graph.
#pragma once

#include "../lstm.h"
#include "../recurrence.h"

namespace fused_lstm {
namespace cuda {

// What a plan needs to know of a device; the binding reads it once per device.
struct Device {
  int32_t arch = 0;              // 10 * major + minor: 75, 80, 86, 90, ...
  int32_t sms = 0;               // multiprocessors
  int64_t shared_per_block = 0;  // bytes of shared memory that one block may opt in to
  int64_t shared_per_sm = 0;
  // Clusters of 2, 4, 8 and 16 of our blocks that run at once: 0 where there are none.
  int32_t clusters[4] = {0, 0, 0, 0};
};

// How float32 products are formed; cuDNN's switch for RNNs decides, as it does for nn.LSTM.
enum class Math : int32_t { kStrict = 0, kTf32 = 1 };

// Which kernels compute a call.
enum class Family : int32_t {
  kStepwise = 0,     // a library product and one fused pointwise kernel per step: everything
  kSingleBlock = 1,  // all of W_hh in one block's registers and shared memory, one launch
  // W_hh cut into slices, one for each of the blocks that share a batch group; they wait for each
  // other every step. Only with Launch::across_blocks.
  kCluster = 2,  // the blocks of a group are a cluster (sm_90)
  kGrid = 3,     // they are spread over the device by a cooperative launch
};

// C [m, n] = op(A) [m, k] op(B) [k, n] + beta C, all row-major; a_row, b_row, c_row are the strides
// of the matrices as they lie. A and B have type `in`, C has type `out` (float32 for half types:
// sums are never rounded to half), sums are in float32, or float64 for float64.
struct Product {
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  int64_t a_row = 0, b_row = 0, c_row = 0;
  bool a_transposed = false, b_transposed = false;
  float beta = 0;  // 0 or 1; with 0 C is not read
  DType in = DType::kFloat32, out = DType::kFloat32;
  Math math = Math::kStrict;
};

struct Blas {
  void* context = nullptr;
  // Queues the product on the stream of the call. False when the library refused.
  bool (*multiply)(void* context, const Product& product) = nullptr;
};

// Everything about one call that is not the mathematics.
struct Launch {
  Device device;
  void* stream = nullptr;  // cudaStream_t
  Blas blas;
  Math math = Math::kStrict;
  // Tests and benchmarks may force a family; a call it cannot compute is then kUnsupported.
  bool forced = false;
  // Or it was measured to be the quickest: the plan takes it where it computes the call and may be
  // chosen, and chooses by its table elsewhere.
  bool measured = false;
  Family family = Family::kStepwise;
  // And how many units each block of kCluster and kGrid has: 16, 32 or 64; 0: the plan chooses.
  int32_t units = 0;
  // Whether the plan may choose kCluster and kGrid.
  bool across_blocks = false;
  // A word that kernels can reach and that outlives the call, or null. Set to 1 when a block waited
  // for another longer than `patience` nanoseconds: the results of that call mean nothing.
  uint32_t* fault = nullptr;
  uint64_t patience = uint64_t{10} * 1000 * 1000 * 1000;
};

// The family that computes this call, by shape, dtype and device; a pure function (plan.cpp).
Family choose_family(const Problem& problem, bool training, const Launch& launch);

// Reserve, the same for every family, so that any backward reads what any forward wrote:
// per direction gates [N, 4H] as stored (gate order i, f, g, o, activated; none with recompute),
// then, per direction, cells [N, H] as computed (float32, or float64). Each array begins at a
// multiple of 256 bytes. With a projection: per direction also o * tanh(c) [N, H] as stored.
size_t reserve_bytes(const Problem& problem);
size_t forward_workspace_bytes(const Problem& problem, bool training, const Launch& launch);
size_t backward_workspace_bytes(const Problem& problem, const Gradients& gradients,
                                const Launch& launch);
// workspace: 256-byte aligned device memory, contents undefined before and after. kLaunchFailed:
// last_error() says what CUDA or the BLAS said.
Status forward(const Problem& problem, const Outputs& outputs, void* workspace,
               size_t workspace_bytes, const Launch& launch);
Status backward(const Problem& problem, const Gradients& gradients, void* workspace,
                size_t workspace_bytes, const Launch& launch);
// Fills bits.keep: what cpu::keep_bits draws, to the bit. Of the launch only the stream is looked
// at.
Status keep_bits(const KeepBits& bits, const Launch& launch);

// The recurrence of the variants (recurrence_steps.h): always stepwise. A reserve is of this device
// alone.
size_t recurrence_reserve_bytes(const Recurrence& recurrence);
size_t recurrence_forward_workspace_bytes(const Recurrence& recurrence);
size_t recurrence_backward_workspace_bytes(const Recurrence& recurrence,
                                           const RecurrenceGradients& gradients);
// workspace as above. Of the launch only the stream, the BLAS and math are looked at.
Status recurrence_forward(const Recurrence& recurrence, const RecurrenceOutputs& outputs,
                          void* workspace, size_t workspace_bytes, const Launch& launch);
Status recurrence_backward(const Recurrence& recurrence, const RecurrenceGradients& gradients,
                           void* workspace, size_t workspace_bytes, const Launch& launch);

const char* last_error();  // of this thread; never null
// Fills in device.clusters by what occupancy says of the present device.
void read_cluster_limits(Device* device);
// One human-readable line: which family, why, with which tiles, and how long a step should take.
void explain(const Problem& problem, bool training, const Launch& launch, char* text,
             size_t text_bytes);

}  // namespace cuda
}  // namespace fused_lstm
