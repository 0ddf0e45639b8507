// Decides how a problem is computed: a pure function of shape, threads and what is known of the
// processor. Tested without running a kernel; explain() prints what it says.
#pragma once

#include <cstdint>

#include "../lstm.h"
#include "../recurrence.h"
#include "bytes.h"

namespace fused_lstm {
namespace cpu {

// What the plan needs to know of the processor and of the kernel's vectors.
struct Facts {
  int32_t width = 8;           // lanes of a compute vector (4 bytes each, or 8 for float64)
  int32_t compute_bytes = 4;   // size of a compute element
  int32_t storage_bytes = 4;   // size of a stored element
  int32_t operand_bytes = 4;   // size of what forward's products take: as stored or as computed
  bool matrix = false;         // has a matrix unit for its operands
  bool small_tiles = false;    // few registers, so tiles of few rows (tile.h)
  int64_t l2_bytes = 1 << 20;  // per core
  // Weights up to this size come as fast as they are used, without being asked for ahead: the L2,
  // and on processors whose L3 is close (Zen: 30 bytes a cycle) the L3 too.
  int64_t near_bytes = 1 << 20;
  // What lies farther comes late unless asked for, and a block of it at a time should serve all
  // rows: small tiles read faster than any L3 gives, and Intel's L3 is far.
  bool distant = false;
  // W_ih and W_hh together up to this size are read in every step; W_ih alone is worth a product
  // over many steps only beyond.
  int64_t fused_bytes = 768 << 10;
  // From this size on, what forward keeps of the gates is stored past the caches; 0: never.
  int64_t stream_bytes = 0;
};

enum class Split : int32_t {
  kRows,   // each task owns rows of the batch: no synchronisation
  kUnits,  // each party owns hidden units: a barrier per step
};

struct Plan {
  // Gates as dot products over the weights as they lie, nothing packed: short and small problems.
  bool dot = false;
  // x_t and h_{t-1} are two operands of the same accumulators; otherwise the input is projected for
  // a chunk of steps first, by one product that reuses W_ih.
  bool fused = true;
  bool matrix = false;    // products run on the matrix unit
  int64_t row_block = 1;  // tasks that split rows begin at multiples of it
  Split split = Split::kRows;
  int32_t threads = 1;  // tasks of the recurrence
  int64_t chunk_steps =
      0;                   // steps between which x is projected or converted; backward: dgates kept
  int64_t k_block = 48;    // products summed before they join the other blocks' sum
  int64_t near_bytes = 0;  // weights larger than this come from far away: prefetch them
  bool distant = false;    // and use them block by block; backward: prefetch at all
  ByteProduct byte_product;   // for frozen 8-bit weights, where a row of x or h allows
  bool stream_gates = false;  // forward: what backward needs of the gates goes past the caches
};

Plan plan_forward(const Problem& problem, bool training, int32_t threads, const Facts& facts);
Plan plan_backward(const Problem& problem, int32_t threads, const Facts& facts);
// From frozen weights: threads, chunk_steps and k_block alone have a meaning; byte_product is left
// to the dispatcher.
Plan plan_frozen(const Problem& problem, int32_t threads);

// How a recurrence is shared out: rows in `tasks` blocks, over at most `threads` threads.
struct RecurrencePlan {
  int32_t threads = 1;
  int64_t tasks = 1;
};
RecurrencePlan plan_recurrence(const Recurrence& recurrence, int32_t threads);

// Products summed before they join the other blocks' sum, where a sum is of n.
int64_t products_per_block(int64_t n);

// Whether h = W_hr (o * tanh(c)), and not o * tanh(c) itself.
bool projects(const Problem& problem);

// Whether batch_sizes, where there are any, are counts that never increase and begin with B.
bool valid_batch_sizes(const Problem& problem);

// Sum of batch_sizes, or T*B.
int64_t total_rows(const Problem& problem);

}  // namespace cpu
}  // namespace fused_lstm
