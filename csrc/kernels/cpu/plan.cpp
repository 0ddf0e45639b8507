#include "plan.h"

#include "../frozen.h"

namespace fused_lstm {
namespace cpu {
namespace {

int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Below this many multiply-adds a step is not worth a barrier, a call not worth waking threads.
constexpr int64_t kBarrierWork = 50'000;
constexpr int64_t kCallWork = 1'000'000;
// Rows of x, of projected gates or of dgates kept between phases.
constexpr int64_t kForwardChunkRows = 1024;
constexpr int64_t kForwardNearRows = 384;  // where W_ih stays in L2, and projected gates should too
constexpr int64_t kBackwardChunkRows = 512;
constexpr int64_t kFrozenChunkRows = 256;
// A recurrence's rows: their products stay in L2 between the product and the cells; a block of
// fewer rows would read W_hh too often where it comes from farther away.
constexpr int64_t kBlockBytes = 128 << 10;
constexpr int64_t kLeastBlockRows = 24;
// A tile is worth it with few of its rows in use; backward, whose dW pads every step's rows to
// whole tiles, asks for more on average.
constexpr int64_t kTileRows = 16;
constexpr int64_t kMatrixRows = 2, kMatrixBackwardRows = 8;

// A projection stands between two steps: there are no tiles for it yet.
bool suits_matrix(const Problem& problem) { return problem.B >= kMatrixRows && !projects(problem); }

void plan_threads(const Problem& problem, int64_t step_work, int64_t weight_bytes, int32_t threads,
                  const Facts& facts, Plan& plan) {
  const int64_t rows = total_rows(problem);
  if (threads > 1 && step_work / problem.B * rows * problem.D < kCallWork) threads = 1;
  // Rows need no barrier, but every task then streams all the weights: right while they fit its L2
  // and every task keeps enough rows to reuse them.
  const int64_t tasks_per_direction = max_of(1, threads / problem.D);
  const bool weights_fit = weight_bytes <= facts.l2_bytes / 2;
  // A matrix unit works on tiles of 16 rows, and so fast that weights from afar keep it waiting.
  if (plan.matrix) plan.row_block = kTileRows;
  const int64_t least = plan.matrix ? kTileRows : 8, hides_weights = plan.matrix ? 256 : 64;
  const bool rows_enough = problem.B >= least * tasks_per_direction;
  plan.split = rows_enough && (weights_fit || problem.B >= hides_weights * tasks_per_direction)
                   ? Split::kRows
                   : Split::kUnits;
  if (plan.split == Split::kUnits) {
    const int64_t panels = (problem.H + facts.width - 1) / facts.width;
    const int64_t most = step_work < kBarrierWork ? 1 : panels;  // parties a direction can feed
    threads = static_cast<int32_t>(min_of(threads, most * problem.D));
  }
  plan.threads = threads;
}

}  // namespace

// Longer sums bear longer blocks: those of 512 in blocks of 128 are still twice as accurate as
// nn.LSTM's.
int64_t products_per_block(int64_t n) { return n < 256 ? Plan{}.k_block : n < 512 ? 64 : 128; }

bool projects(const Problem& problem) {
  return problem.P != problem.H || problem.weights[0].w_hr != nullptr;
}

bool valid_batch_sizes(const Problem& problem) {
  if (problem.batch_sizes == nullptr) return true;
  int64_t before = problem.B;
  for (int64_t t = 0; t < problem.T; ++t) {
    if (problem.batch_sizes[t] < 1 || problem.batch_sizes[t] > before) return false;
    before = problem.batch_sizes[t];
  }
  return problem.batch_sizes[0] == problem.B;
}

int64_t total_rows(const Problem& problem) {
  if (problem.batch_sizes == nullptr) return problem.T * problem.B;
  int64_t rows = 0;
  for (int64_t t = 0; t < problem.T; ++t) rows += problem.batch_sizes[t];
  return rows;
}

namespace {

bool converts(const Facts& facts) { return facts.storage_bytes < facts.operand_bytes; }

// Whether packing weights would not pay. Up to four rows it never does. A single row packs for a
// dozen steps and more; stored halves are worth reading as they lie even then, for a packed panel
// is of computed elements, twice the bytes, and small tiles have no gain from a panel for one row:
// eight chains of sums are what either way has. One step of more rows reads weights once either
// way, and packing writes and reads them once more: the longer the way they have to come, the more
// rows it takes until a packed panel, from which a tile takes more rows at once, makes up for it.
// Halves of more rows are converted sooner once.
bool multiplies_as_they_lie(const Problem& problem, int64_t weight_bytes, const Facts& facts) {
  const int64_t rows = total_rows(problem);
  if (rows <= 4) return true;
  if (problem.B == 1) return problem.T < 12 || converts(facts) || facts.small_tiles;
  if (facts.matrix || facts.storage_bytes < facts.compute_bytes) return false;
  const bool far = weight_bytes > facts.l2_bytes, halfway = weight_bytes > facts.l2_bytes / 4;
  if (problem.T == 1) {
    const int64_t most = far ? 32 : halfway ? 8 : 4;
    return problem.B <= most / (facts.small_tiles ? 4 : 1);
  }
  return problem.B <= 4 && problem.T < 12 && (far || (halfway && rows <= 8));
}

}  // namespace

Plan plan_forward(const Problem& problem, bool training, int32_t threads, const Facts& facts) {
  Plan plan;
  plan.near_bytes = facts.near_bytes;
  plan.distant = facts.distant;
  const int64_t rows = total_rows(problem);
  const int64_t gate_bytes = problem.D * rows * 4 * problem.H * facts.storage_bytes;
  plan.stream_gates = training && !problem.recompute && problem.marks == nullptr &&
                      facts.storage_bytes == facts.compute_bytes && facts.stream_bytes > 0 &&
                      gate_bytes > facts.stream_bytes;
  const int64_t input_bytes = 4 * problem.H * problem.I * facts.operand_bytes;
  const int64_t state_bytes = 4 * problem.H * problem.P * facts.operand_bytes;
  plan.dot = multiplies_as_they_lie(problem, input_bytes + state_bytes, facts);
  plan.matrix = facts.matrix && !plan.dot && suits_matrix(problem);
  if (rows <= 4 || (plan.dot && problem.T == 1)) {
    plan.fused = true;
  } else if (problem.B < 6) {
    plan.fused = problem.I <= 8;
  } else {
    // One product over a chunk of steps reuses W_ih; worth a pass through memory once W_ih and W_hh
    // together no longer stay near between steps and a step has too few rows to hide their reading.
    plan.fused = problem.I <= 64 || problem.B >= (plan.matrix ? 192 : 48) ||
                 input_bytes + state_bytes <= facts.fused_bytes;
  }
  plan.chunk_steps = problem.T;
  if (!plan.fused || converts(facts)) {
    const bool near = !plan.fused && input_bytes <= facts.l2_bytes;
    plan.chunk_steps =
        min_of(problem.T, max_of(1, (near ? kForwardNearRows : kForwardChunkRows) / problem.B));
  }
  const int64_t products = problem.P + (plan.fused ? problem.I : 0);
  plan.k_block = products_per_block(products);
  const int64_t projection = projects(problem) ? problem.H * problem.P : 0;
  const int64_t step_work = problem.B * (4 * problem.H * products + projection);
  plan_threads(problem, step_work,
               state_bytes + (plan.fused ? input_bytes : 0) + projection * facts.operand_bytes,
               threads, facts, plan);
  return plan;
}

Plan plan_backward(const Problem& problem, int32_t threads, const Facts& facts) {
  Plan plan;
  const int64_t rows = total_rows(problem);
  plan.dot = rows <= (facts.storage_bytes < facts.compute_bytes ? 1 : 4) &&
             problem.h_factors == nullptr;  // then h is not as it lies
  plan.matrix =
      facts.matrix && !plan.dot && suits_matrix(problem) && rows >= kMatrixBackwardRows * problem.T;
  // In one chunk dW needs no sums of its own, only a panel at a time (backward.h): less memory, as
  // long as the chunk has fewer rows than dW.
  const int64_t step_rows =
      plan.matrix ? (problem.B + kTileRows - 1) / kTileRows * kTileRows : problem.B;
  const int64_t kept_rows = plan.matrix ? problem.T * step_rows : rows;
  const bool one_chunk = kept_rows <= max_of(kBackwardChunkRows, problem.I + problem.P);
  plan.chunk_steps =
      one_chunk ? problem.T : min_of(problem.T, max_of(1, kBackwardChunkRows / step_rows));
  if (plan.dot) plan.chunk_steps = problem.T;
  if (facts.small_tiles) plan.k_block = problem.H < 256 ? 64 : 96;  // of 4H products
  plan.near_bytes = facts.near_bytes;
  plan.distant = facts.distant;
  const int64_t weights = (projects(problem) ? 5 : 4) * problem.H * problem.P;
  plan_threads(problem, problem.B * weights, weights * facts.compute_bytes, threads, facts, plan);
  return plan;
}

Plan plan_frozen(const Problem& problem, int32_t threads) {
  Plan plan;
  plan.split = Split::kUnits;
  plan.fused = false;
  plan.k_block = products_per_block(problem.H);
  plan.chunk_steps = min_of(problem.T, max_of(1, kFrozenChunkRows / problem.B));
  const int64_t step_work = problem.B * 4 * problem.H * problem.H;
  const int64_t call_work = total_rows(problem) * 4 * problem.H * (problem.I + problem.H);
  const int64_t panels = (problem.H + kFrozenUnits - 1) / kFrozenUnits;
  int64_t most = threads;
  if (call_work * problem.D < kCallWork) most = 1;
  most = min_of(most, problem.D * (step_work < kBarrierWork ? 1 : panels));
  plan.threads = static_cast<int32_t>(max_of(1, most));
  return plan;
}

RecurrencePlan plan_recurrence(const Recurrence& q, int32_t threads) {
  RecurrencePlan plan;
  const bool small = q.T * q.B * q.gates * q.H * q.H < kCallWork;
  plan.threads = small || threads < 1 ? 1 : threads;
  const int64_t row_bytes = q.gates * q.H * (q.dtype == DType::kFloat64 ? 8 : 4);
  const int64_t rows = max_of(kLeastBlockRows, kBlockBytes / row_bytes);
  const int64_t blocks = (q.B + rows - 1) / rows;
  const int64_t rounds = (blocks + plan.threads - 1) / plan.threads;
  plan.tasks = min_of(q.B, rounds * plan.threads);  // as many for every thread
  return plan;
}

}  // namespace cpu
}  // namespace fused_lstm
