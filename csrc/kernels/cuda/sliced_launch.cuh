// What both passes of the sliced families queue: everything begins cleared, the states of the rows
// are put where the first step finds them, and the recurrence goes in as many launches as it needs.
#pragma once

#include "single_block_calls.cuh"
#include "sliced.h"
#include "sliced_block.cuh"

namespace fused_lstm {
namespace cuda {
namespace sliced {

struct ClearWords {
  uint32_t* words;
  int64_t count;
};
static __global__ void clear_words(ClearWords call) {
  for_each_element(1, call.count, [&](int64_t, int64_t i) { call.words[i] = 0; });
}
inline void queue_clear(Queue& queue, void* words, int64_t count) {
  queue.run(clear_words, cover(1, count), ClearWords{static_cast<uint32_t*>(words), count});
}

// Both copies of the state at once.
struct BothCopies {
  uint32_t* words;
  int64_t exchange_words;
  DEVICE void publish(int /*s*/, int at, uint32_t word) {
    words[at] = word;
    words[exchange_words + at] = word;
  }
};

// What the first step reads as h into both copies, since a packed row that joins late finds it in
// either; and c0 or dc_n. With options h0 besides (backward: zeros).
template <class T>
struct BeginRows {
  int64_t directions, batch, hidden;
  ReadH<T> read_h[2];          // forward; without h0 nothing is put anywhere
  const T* c;                  // ? [D, B, H]
  float *carried, *carried_h;  // [D, B, H]; ? the same
  uint32_t* words;             // [D][groups][2][exchange_words]
  int64_t exchange_words, groups;
  int32_t group_rows, pieces;
};
template <class Product>
__global__ void begin_rows(BeginRows<Stored<typename Product::Element>> call) {
  const int64_t pairs = (call.hidden + 1) / 2;
  for_each_element(call.directions * call.batch, pairs, [&](int64_t row, int64_t k) {
    const int64_t direction = row / call.batch, b = row % call.batch;
    const int64_t group = direction * call.groups + b / call.group_rows;
    const bool both = 2 * k + 1 < call.hidden;
    const auto& read_h = call.read_h[direction];
    const auto* const h0 = read_h.h0 != nullptr ? read_h.h0 + b * call.hidden : nullptr;
    const auto* const c = call.c != nullptr ? call.c + row * call.hidden : nullptr;
    float h[2] = {};
    for (int64_t unit = 2 * k; unit < 2 * k + (both ? 2 : 1); ++unit) {
      const int64_t at = row * call.hidden + unit;
      call.carried[at] = c != nullptr ? device::to_float(c[unit]) : 0.0f;
      if (call.carried_h != nullptr) {
        call.carried_h[at] = h0 != nullptr ? device::to_float(h0[unit]) : 0.0f;
      }
      if (h0 == nullptr) continue;
      const int32_t first = direction == 0 ? 0 : read_h.marks.T - 1;
      h[unit % 2] = device::to_float(
          read_h(first, static_cast<int32_t>(b), static_cast<int32_t>(unit), nullptr));
    }
    if (h0 == nullptr) return;
    BothCopies copies = {call.words + group * 2 * call.exchange_words, call.exchange_words};
    Product::publish(copies, 0, static_cast<int>(b % call.group_rows), static_cast<int>(2 * k),
                     h[0], h[1], call.pieces);
  });
}

// Where the groups of a call meet, cleared.
inline Meeting queue_meeting(Queue& queue, const Problem& p, const Plan& plan, const Launch& launch,
                             uint32_t* words) {
  queue_clear(queue, words, meeting_words(p, plan));
  Meeting meeting = {};
  meeting.gave_up = words;
  meeting.counters = words + kCounterWords;
  meeting.words = words + counter_words(p, plan);
  meeting.exchange_words = static_cast<uint32_t>(plan.slices.exchange_words());
  meeting.fault = launch.fault;
  meeting.patience = launch.patience;
  return meeting;
}

template <class Product>
void queue_begin(Queue& queue, const Problem& p, const Plan& plan, const Meeting& meeting,
                 const void* c, float* carried) {
  using T = Stored<typename Product::Element>;
  const Slices& s = plan.slices;
  BeginRows<T> call = {};
  call.directions = p.D;
  call.batch = p.B;
  call.hidden = p.H;
  for (int32_t d = 0; d < p.D && !s.backward; ++d) call.read_h[d] = read_h_of<T>(p, d);
  call.c = static_cast<const T*>(c);
  call.carried = carried;
  if (s.options) call.carried_h = carried + p.D * p.B * p.H;
  call.words = meeting.words;
  call.exchange_words = s.exchange_words();
  call.groups = plan.groups;
  call.group_rows = s.group_rows();
  call.pieces = s.pieces();
  queue.run(begin_rows<Product>, cover(p.D * p.B, (p.H + 1) / 2), call);
}

// The packed weights as single_block::queue_pack makes them for that many units.
template <class Element, bool kBackward>
int queue_weights(Queue& queue, const Problem& p, const Slices& s, void* packed) {
  const single_block::Tiles tiles = {s.padded(), s.rows, s.bytes, s.strict, kBackward};
  single_block::queue_pack<Element, kBackward>(queue, p, false, tiles, tiles.depth(), packed);
  return tiles.depth();
}

inline Cut make_cut(const Problem& p, const Plan& plan, const Meeting& meeting, int depth,
                    float* carried) {
  const Slices& s = plan.slices;
  Cut cut = {};
  cut.meeting = meeting;
  cut.units = s.units;
  cut.parts = s.parts();
  cut.group_rows = s.group_rows();
  cut.passes = s.passes;
  cut.pieces = s.pieces();
  cut.pieces_of_warp = s.pieces_of_warp();
  cut.depth = depth;
  cut.rest_fragments = s.rest_pieces() * piece_fragments(s.strict, s.backward);
  cut.sums_pitch = s.sums_pitch();
  cut.carried = carried;
  cut.carried_each = p.D * p.B * p.H;
  return cut;
}

inline device::Launch shape(const Plan& plan) {
  device::Launch how;
  how.grid = dim3(static_cast<unsigned>(plan.slices.blocks), static_cast<unsigned>(plan.groups),
                  static_cast<unsigned>(plan.directions));
  how.block = dim3(kThreads);
  how.shared = static_cast<size_t>(plan.shared_bytes);
  how.cluster = plan.cluster ? how.grid.x : 1;
  how.cooperative = !plan.cluster;
  return how;
}

// Whether the device takes all blocks that wait for each other at once.
template <class Arguments>
bool has_room(void (*kernel)(Arguments), const Plan& plan, const Launch& launch) {
  const device::Launch how = shape(plan);
  const int64_t at_once = device::most_at_once(kernel, how);
  if (plan.cluster) return at_once > 0;
  return at_once * launch.device.sms >= plan.slices.blocks * plan.groups * plan.directions;
}

// The recurrence, `steps` of it. False when the first launch was refused.
template <class Arguments>
bool queue_steps(Queue& queue, void (*kernel)(Arguments), const Problem& p, const Plan& plan,
                 int64_t steps, Arguments& arguments) {
  const device::Launch how = shape(plan);
  bool begun = false;
  for (int32_t d = 0; d < p.D; d += plan.directions) {
    for (int64_t s = 0; s < steps; s += kMostSteps) {
      arguments.cut.first_direction = d;
      arguments.cut.begin = static_cast<int32_t>(s);
      arguments.cut.end = static_cast<int32_t>(s + kMostSteps < steps ? s + kMostSteps : steps);
      if (begun) {
        queue.run(kernel, how, arguments);
      } else if (!queue.try_run(kernel, how, arguments)) {
        return false;
      }
      begun = true;
    }
  }
  return true;
}

// Calls run(product) with the type of product that a plan names.
template <bool kBackward, class Run>
void with_product(const Problem& p, const Slices& s, const Run& run) {
  single_block::with_element(p.dtype, s.strict, [&](auto element) {
    using Element = decltype(element);
    const bool few = s.rows == few_rows(s.strict);
    if constexpr (std::is_same_v<Element, float>) {
      few ? run(std::common_type<StrictProduct<few_rows(true), kBackward>>{})
          : run(std::common_type<StrictProduct<many_rows(true), kBackward>>{});
    } else {
      few ? run(std::common_type<TensorProduct<Element, few_rows(false), kBackward>>{})
          : run(std::common_type<TensorProduct<Element, many_rows(false), kBackward>>{});
    }
  });
}

}  // namespace sliced
}  // namespace cuda
}  // namespace fused_lstm
