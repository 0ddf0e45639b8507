// Which calls the sliced families take, how they are cut up, and where their scratch lies. The cut
// is the cheapest by a model of a step; its figures are arithmetic about an H100 and not measured.
#include "sliced.h"

#include <cstdio>
#include <initializer_list>

#include "options.h"

namespace fused_lstm {
namespace cuda {
namespace sliced {
namespace {

constexpr int32_t kOldestArch = 80, kOldestClusterArch = 90;
constexpr int32_t kNewestArch = 99;  // see device::kResidentKernels
constexpr int64_t kMostUnits = 4096;

const char* refusal(const Problem& p, bool cluster, const Launch& launch) {
  const Device& device = launch.device;
  if (p.dtype == DType::kFloat64) return "float64 does not fit";
  if (device.arch < kOldestArch) return "needs sm_80";
  if (cluster && device.arch < kOldestClusterArch) return "needs sm_90";
  if (device.arch > kNewestArch) return "not compiled for sm_100 and newer yet";
  if (p.weights[0].w_hr != nullptr || p.P != p.H) return "h is projected";
  if (p.H > kMostUnits) return "H is too large";
  if (device.sms < 1) return "the device has no multiprocessors";
  if (p.T >= INT32_MAX || p.B > INT32_MAX || p.I > INT32_MAX) return "a size needs 64 bits";
  return nullptr;
}

// Clusters of that many blocks that run at once.
int64_t clusters_at_once(const Device& device, int64_t blocks) {
  const int index = blocks <= 2 ? 0 : blocks <= 4 ? 1 : blocks <= 8 ? 2 : 3;
  return blocks <= 16 ? device.clusters[index] : 0;
}

// ---- the cost table: microseconds, of one step of one direction --------------------------------

constexpr double kCyclesPerUs = 1750;
constexpr double kCounterUs = 0.7, kClusterUs = 0.3;  // until all blocks know that all are ready
constexpr double kCounterUsPerBlock = 0.003;          // each adds to the one counter
constexpr double kLoadUs = 0.45;                      // of the state, from L2: latency
constexpr double kL2BytesPerUs = 4.0e6;               // all blocks together
constexpr double kSharedBytesPerCycle = 128;
constexpr double kFragmentCycles = 6.5 / 4;  // of a 16-row tile and 8 batch rows, of four quarters
constexpr double kStrictPerCycle = 128;      // multiplications
constexpr double kCellCycles = 450;          // of a pass: sums added, cells, what they store
constexpr double kPassCycles = 250;          // barriers and latencies of a pass

double step_us(const Slices& s, int64_t groups, bool cluster) {
  const double fragments =
      double(kWarps) * s.pieces_of_warp() * piece_fragments(s.strict, s.backward);
  double product = fragments * kFragmentCycles * s.rows / 8;
  if (s.strict) product = fragments * 32 * 4 * s.rows / kStrictPerCycle;
  const double from_shared = double(s.weights_bytes()) / kSharedBytesPerCycle;
  const double state = double(s.exchange_words()) * 4;  // of a group, into each of its blocks
  const double loads = cluster ? double(s.units / kWarpUnits) * state / s.passes /
                                     kSharedBytesPerCycle / kCyclesPerUs * s.passes
                               : kLoadUs * s.passes + state * double(s.blocks) * double(groups) *
                                                          (s.units / kWarpUnits) / kL2BytesPerUs;
  const double pass = (product > from_shared ? product : from_shared) + kCellCycles + kPassCycles;
  const double meet =
      cluster ? kClusterUs + 0.01 * s.blocks : kCounterUs + kCounterUsPerBlock * s.blocks;
  return meet + loads + s.passes * pass / kCyclesPerUs;
}

// ---- the choice ---------------------------------------------------------------------------------

class Search {
 public:
  Search(const Problem& p, bool cluster, const Launch& launch)
      : p_(p), cluster_(cluster), launch_(launch) {}

  void consider(Slices slices, Plan* best) const {
    const int64_t blocks = slices.blocks;
    if (!is_built(slices.units, slices.rows)) return;
    if (cluster_ && (blocks < 2 || blocks > 16)) return;
    for (const int32_t directions : {p_.D, 1}) {
      const int64_t room = cluster_ ? clusters_at_once(launch_.device, blocks) / directions
                                    : launch_.device.sms / (blocks * directions);
      if (room < 1) continue;
      const int64_t tiles = (p_.B + slices.rows - 1) / slices.rows;  // of rows
      // A cluster waits for no other: there may be more of them than run at once.
      const int64_t most = cluster_ ? tiles : room;
      int64_t groups = tiles < most ? tiles : most;
      const int64_t passes = (tiles + groups - 1) / groups;
      if (passes > kMostPasses) continue;
      slices.passes = static_cast<int>(passes);
      groups = (tiles + passes - 1) / passes;
      if (groups > 65535) continue;
      const int64_t shared = slices.shared_bytes(cluster_);
      if (shared > launch_.device.shared_per_block) continue;
      const int64_t waves = (groups + room - 1) / room;
      const double us = step_us(slices, groups, cluster_) * double(waves) * (p_.D / directions);
      if (best->refusal != nullptr || us < best->us) {
        const int64_t at_once = cluster_ ? clusters_at_once(launch_.device, blocks) * blocks
                                         : int64_t{launch_.device.sms};
        *best = {nullptr, cluster_, slices, groups, directions, shared, us, at_once};
      }
    }
  }

 private:
  static constexpr int64_t kMostPasses = 64;
  const Problem& p_;
  const bool cluster_;
  const Launch& launch_;
};

}  // namespace

Plan plan(const Problem& p, bool cluster, bool backward, const Launch& launch) {
  Plan best;
  best.cluster = cluster;
  best.refusal = refusal(p, cluster, launch);
  if (best.refusal != nullptr) return best;
  best.refusal = "H needs more blocks or more shared memory than this device has";
  const bool strict = p.dtype == DType::kFloat32 && launch.math == Math::kStrict;
  const Search search(p, cluster, launch);
  for (const int units : {16, 32, 64}) {
    if (launch.units != 0 && launch.units != units) continue;
    Slices slices;
    slices.units = units;
    slices.blocks = static_cast<int>((p.H + units - 1) / units);
    // Strict pieces are 32 units deep.
    if (strict && slices.padded() % 32 != 0) ++slices.blocks;
    slices.bytes = static_cast<int>(element_bytes(p.dtype));
    slices.strict = strict;
    slices.backward = backward;
    slices.options = has_options(p);
    for (const int rows : {few_rows(strict), many_rows(strict)}) {
      slices.rows = rows;
      search.consider(slices, &best);
    }
  }
  return best;
}

void explain(const Plan& plan, bool training, const Launch& launch, char* text, size_t text_bytes) {
  const Slices& s = plan.slices;
  std::snprintf(text, text_bytes,
                "cuda sm_%d: %s, up to %lld steps in one launch%s%s: %lld batch groups of %d "
                "blocks, %d units each, %d rows in %d passes, %lld bytes of shared memory each; "
                "input projected ahead; predicted %.1f us per step",
                launch.device.arch, plan.cluster ? "cluster" : "grid",
                static_cast<long long>(kMostSteps), training ? " each way" : "",
                plan.directions == 1 ? "" : " for both directions",
                static_cast<long long>(plan.groups), s.blocks, s.units, s.rows * s.passes, s.passes,
                static_cast<long long>(plan.shared_bytes), plan.us);
}

// ---- scratch ------------------------------------------------------------------------------------

namespace {

int64_t packed_bytes(const Problem& p, const Slices& s) {
  const int64_t warps = int64_t{s.padded()} / kWarpUnits;
  const int64_t depth = s.strict ? s.padded() / 2 : int64_t{s.state_words()} / 8;
  return p.D * warps * depth * (s.strict || s.backward ? 1 : 4) * kFragmentBytes;
}
int64_t carried_bytes(const Problem& p, const Slices& s) {
  return s.states() * p.D * p.B * p.H * int64_t{sizeof(float)};
}

}  // namespace

int64_t counter_words(const Problem& p, const Plan& plan) {
  return (1 + p.D * plan.groups) * kCounterWords;
}

int64_t meeting_words(const Problem& p, const Plan& plan) {
  return counter_words(p, plan) + 2 * p.D * plan.groups * plan.slices.exchange_words();
}

ForwardScratch forward_scratch(const Problem& p, const Plan& plan, void* base) {
  const int64_t rows = row_count(p), stored = element_bytes(p.dtype);
  const bool packed = p.batch_sizes != nullptr;
  ForwardScratch scratch;
  Pieces pieces(base);
  pieces.take(scratch.lengths, p.B * int64_t{sizeof(int32_t)}, packed);
  pieces.take(scratch.offsets, p.T * int64_t{sizeof(int64_t)}, packed);
  pieces.take(scratch.w_hh, packed_bytes(p, plan.slices));
  pieces.take(scratch.projected, p.D * rows * 4 * p.H * int64_t{sizeof(float)});
  pieces.take(scratch.x, rows * p.I * stored, !rows_of_x_are_uniform(p));
  pieces.take(scratch.meeting, meeting_words(p, plan) * int64_t{sizeof(uint32_t)});
  pieces.take(scratch.carried, carried_bytes(p, plan.slices));
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
  pieces.take(scratch.w_hh, packed_bytes(p, plan.slices));
  scratch.dense = take_dense(pieces, p, gradients, plan.groups);
  pieces.take(scratch.meeting, meeting_words(p, plan) * int64_t{sizeof(uint32_t)});
  pieces.take(scratch.carried, carried_bytes(p, plan.slices));
  scratch.bytes = pieces.bytes();
  return scratch;
}

}  // namespace sliced
}  // namespace cuda
}  // namespace fused_lstm
