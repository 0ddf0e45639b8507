// What nn.LSTM lacks, as kernels see it: rows that are reset or have ended (Problem::marks), what
// units keep from the step before (zoneout), and the h that a step's gates read. ../lstm.h says
// what each means, cpu/marks.h is the CPU's twin.
#pragma once

#include "device.cuh"
#include "options.h"

namespace fused_lstm {
namespace cuda {

// The marks of one direction. Its steps are named by their time t: the one before is t - 1, or t +
// 1 in reverse.
struct Marks {
  const uint8_t* data;  // ? [T, B]
  int32_t T, B;
  bool reverse;

  // Where the state before a step comes from.
  enum class From : uint8_t { kStepBefore, kInitial, kZeros, kNoStep };

  DEVICE int32_t before(int32_t t) const { return reverse ? t + 1 : t - 1; }
  DEVICE int32_t after(int32_t t) const { return reverse ? t - 1 : t + 1; }
  DEVICE bool exists(int32_t t) const { return t >= 0 && t < T; }
  DEVICE uint8_t at(int32_t t, int32_t b) const {
    return data != nullptr ? data[int64_t{t} * B + b] : 0;
  }
  DEVICE bool ended(int32_t t, int32_t b) const { return (at(t, b) & kMarkEnded) != 0; }
  // Whether the row, if it has this step, has none before it, or none after it.
  DEVICE bool starts(int32_t t, int32_t b) const {
    return !exists(before(t)) || ended(before(t), b);
  }
  DEVICE bool ends(int32_t t, int32_t b) const { return !exists(after(t)) || ended(after(t), b); }
  DEVICE From from(int32_t t, int32_t b) const {
    const uint8_t mark = at(t, b);
    if ((mark & kMarkEnded) != 0) return From::kNoStep;
    if ((mark & kMarkReset) != 0) return From::kZeros;
    return starts(t, b) ? From::kInitial : From::kStepBefore;
  }
  // Whether a row without step t has none at all.
  static DEVICE bool is_first_of_all(int32_t t) { return t == 0; }
};

inline Marks marks_of(const Problem& p, int32_t d) {
  return {p.marks, static_cast<int32_t>(p.T), static_cast<int32_t>(p.B), d != 0};
}

// The h that the gates of a step read.
template <class S>
struct ReadH {
  Marks marks;
  int32_t hidden;
  const S *h0, *factors;  // ? [B, H], of this direction

  // Of one unit of row b. h: what the step before left, looked at only where it counts.
  DEVICE S operator()(int32_t t, int32_t b, int32_t unit, const S* h) const {
    const int64_t at = int64_t{b} * hidden + unit;
    const Marks::From from = marks.from(t, b);
    S value = device::from_float<S>(0);
    if (from == Marks::From::kStepBefore) value = *h;
    if (from == Marks::From::kInitial && h0 != nullptr) value = h0[at];
    if (factors == nullptr) return value;
    return device::from_float<S>(device::to_float(value) * device::to_float(factors[at]));
  }
};

template <class S>
ReadH<S> read_h_of(const Problem& p, int32_t d) {
  const auto own = [&](const void* all) {
    return all ? static_cast<const S*>(all) + d * p.B * p.H : nullptr;
  };
  return {marks_of(p, d), static_cast<int32_t>(p.H), own(p.h0), own(p.h_factors)};
}

// Zoneout of one direction: the shares of h and c that a unit keeps.
template <class E>
struct Zones {
  bool on;
  const uint8_t* keep;  // ? [T * B, D * H], this direction's columns
  int64_t row;          // D * H
  E h, c;               // where there is no keep

  struct Shares {
    E h, c;
  };
  DEVICE Shares at(int64_t step_row, int32_t unit) const {
    if (keep == nullptr) return {h, c};
    const uint8_t bits = keep[step_row * row + unit];
    return {E((bits & kKeepH) != 0), E((bits & kKeepC) != 0)};
  }
};
template <class E>
DEVICE E kept(E share, E before, E now) {
  return share * before + (1 - share) * now;
}

template <class E>
Zones<E> zones_of(const Problem& p, int32_t d) {
  const Zoneout& z = p.zoneout;
  return {z.on(), z.keep ? z.keep + d * p.H : nullptr, p.D * p.H, static_cast<E>(z.h),
          static_cast<E>(z.c)};
}

}  // namespace cuda
}  // namespace fused_lstm
