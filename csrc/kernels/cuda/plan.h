// Which family computes a call, for lstm.cu: pure functions of shape, dtype and device.
#pragma once

#include "cuda.h"

namespace fused_lstm {
namespace cuda {

// Whether the family can compute this call at all.
bool computes(Family family, const Problem& problem, bool training, const Launch& launch);

}  // namespace cuda
}  // namespace fused_lstm
