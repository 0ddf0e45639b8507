// Which calls the single-block family takes, with which instance, and where its scratch lies.
#include "single_block.h"

#include <cstdio>
#include <initializer_list>

#include "options.h"

namespace fused_lstm {
namespace cuda {
namespace single_block {

namespace {

// Every device from here on has 65536 registers per multiprocessor, which Tiles counts on. What
// differs is shared memory.
constexpr int32_t kOldestArch = 80;
constexpr int32_t kNewestArch = 99;  // see device::kResidentKernels

const char* refusal(const Problem& p, const Launch& launch) {
  if (p.dtype == DType::kFloat64) return "float64 does not fit";
  if (launch.device.arch < kOldestArch) return "needs sm_80";
  if (launch.device.arch > kNewestArch) return "not compiled for sm_100 and newer yet";
  if (p.weights[0].w_hr != nullptr || p.P != p.H) return "h is projected";
  if (p.H > kMostUnits) return "H is too large";
  if (launch.device.sms < 1) return "the device has no multiprocessors";
  if (p.T > INT32_MAX || p.B > INT32_MAX || p.I > INT32_MAX) return "a size needs 64 bits";
  return nullptr;
}

constexpr double kCyclesPerUs = 1750;

// Cycles of one step, by a model; only the ratio between two row counts matters. What a step waits
// for whatever the rows, and what each tile of rows adds: cells, and either tensor core work or, in
// strict float32, 4 H^2 multiplications on 128 lanes.
int64_t step_cycles(const Tiles& tiles) {
  constexpr int64_t kWait = 600, kRowTile = 900;
  if (!tiles.strict) return kWait + kRowTile * tiles.row_tiles();
  return kWait + int64_t{4} * tiles.units * tiles.units * tiles.rows / 128;
}

}  // namespace

Plan plan(const Problem& p, bool backward, const Launch& launch) {
  Plan result;
  result.refusal = refusal(p, launch);
  if (result.refusal != nullptr) return result;
  result.refusal = "H needs more shared memory than this device gives to a block";
  const int bytes = static_cast<int>(element_bytes(p.dtype));
  const bool strict = p.dtype == DType::kFloat32 && launch.math == Math::kStrict;
  Tiles tiles = {0, 0, bytes, strict, backward, has_options(p)};
  for (const int units : kUnits) {
    if (tiles.units < p.H) tiles.units = units;
  }
  const bool reads_x = !backward && p.I <= most_direct_input(strict);
  const int direct = reads_x ? input_depth(p.I, bytes, strict) : 0;
  int64_t least = 0;
  const auto consider = [&](int rows, int depth) {
    tiles.rows = rows;
    const int64_t shared = tiles.shared_bytes(depth);
    if (!is_built(tiles) || shared > launch.device.shared_per_block) return false;
    const int64_t blocks = (p.B + rows - 1) / rows;
    const int64_t waves = (blocks * p.D + launch.device.sms - 1) / launch.device.sms;
    const int64_t cost = waves * step_cycles(tiles);
    if (result.refusal != nullptr || cost < least) {
      least = cost;
      result = {nullptr, tiles, depth, blocks, shared, static_cast<double>(cost) / kCyclesPerUs};
    }
    return true;
  };
  for (const int rows : {few_rows(strict), many_rows(strict)}) {
    consider(rows, direct) || consider(rows, 0);
  }
  return result;
}

bool fits(const Problem& p, bool training, const Launch& launch) {
  return plan(p, false, launch).refusal == nullptr &&
         (!training || plan(p, true, launch).refusal == nullptr);
}

void explain(const Problem& p, bool training, const Launch& launch, char* text, size_t text_bytes) {
  const Plan chosen = plan(p, false, launch);
  const Tiles& tiles = chosen.tiles;
  std::snprintf(
      text, text_bytes,
      "cuda sm_%d: single block, the whole sequence in one launch%s: %lld blocks of %d "
      "threads, %d rows and %lld bytes of shared memory each; input %s; predicted %.1f us "
      "per step",
      launch.device.arch, training ? " each way" : "", static_cast<long long>(chosen.blocks * p.D),
      tiles.threads(), tiles.rows, static_cast<long long>(chosen.shared_bytes),
      chosen.input_depth > 0 ? "read directly" : "projected ahead", chosen.us);
}

namespace {

int64_t packed_bytes(const Problem& p, const Tiles& tiles, int64_t depth) {
  return p.D * depth * tiles.warps() * tiles.warp_tiles() * kFragmentBytes;
}

}  // namespace

ForwardScratch forward_scratch(const Problem& p, const Plan& plan, void* base) {
  const int64_t rows = row_count(p), stored = element_bytes(p.dtype);
  const bool packed = p.batch_sizes != nullptr, direct = plan.input_depth > 0;
  ForwardScratch scratch;
  Pieces pieces(base);
  pieces.take(scratch.lengths, p.B * int64_t{sizeof(int32_t)}, packed);
  pieces.take(scratch.offsets, p.T * int64_t{sizeof(int64_t)}, packed);
  pieces.take(scratch.w_hh, packed_bytes(p, plan.tiles, plan.tiles.depth()));
  pieces.take(scratch.w_ih, packed_bytes(p, plan.tiles, plan.input_depth),
              direct && !plan.tiles.strict);
  pieces.take(scratch.projected, p.D * rows * 4 * p.H * int64_t{sizeof(float)}, !direct);
  pieces.take(scratch.x, rows * p.I * stored, !direct && !rows_of_x_are_uniform(p));
  scratch.bytes = pieces.bytes();
  return scratch;
}

BackwardScratch backward_scratch(const Problem& p, const Gradients& gradients, const Plan& plan,
                                 void* base) {
  const bool packed = p.batch_sizes != nullptr;
  BackwardScratch scratch;
  Pieces pieces(base);
  pieces.take(scratch.lengths, p.B * int64_t{sizeof(int32_t)}, packed);
  pieces.take(scratch.offsets, p.T * int64_t{sizeof(int64_t)}, packed);
  pieces.take(scratch.w_hh, packed_bytes(p, plan.tiles, plan.tiles.depth()));
  scratch.dense = take_dense(pieces, p, gradients, plan.blocks);
  scratch.bytes = pieces.bytes();
  return scratch;
}

}  // namespace single_block
}  // namespace cuda
}  // namespace fused_lstm
