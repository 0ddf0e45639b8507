// Which family computes a call, for lstm.cu: pure functions of shape, dtype and device.
#pragma once

#include "cuda.h"
#include "sliced.h"

namespace fused_lstm {
namespace cuda {

// How a sliced family would compute one pass of a call; refusal says why not.
sliced::Plan sliced_plan(Family family, const Problem& problem, bool backward,
                         const Launch& launch);
inline bool is_sliced(Family family) {
  return family == Family::kCluster || family == Family::kGrid;
}
// Microseconds of one step of a call, backward too where it is for training; infinite where the
// family cannot compute it. By models: only what is smaller matters.
double predicted_us(Family family, const Problem& problem, bool training, const Launch& launch);

// Whether the family can compute this call at all.
bool computes(Family family, const Problem& problem, bool training, const Launch& launch);
// Whether it may without being forced: families whose blocks wait for each other have a switch.
bool may_choose(Family family, const Launch& launch);

// How many blocks a launch of the family keeps on the device from the first step to the last, the
// larger pass where it is for training, and how many of them there is room for; 0 of both where
// nothing stays there between steps. Only for calls that the family computes.
struct Footprint {
  int64_t blocks = 0, room = 0;
};
Footprint footprint(Family family, const Problem& problem, bool training, const Launch& launch);

}  // namespace cuda
}  // namespace fused_lstm
