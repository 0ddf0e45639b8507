// Cases of the sliced families: shapes with the device that forces a cut on them.
#pragma once

#include "checks.h"
#include "plan.h"

// Few multiprocessors force several rows and passes on a block, few units several blocks.
struct Sliced {
  int64_t T, B, I, H, sms, units;
};

// With as many multiprocessors as the shape needs and, for a cluster, two blocks.
inline void fit_device(Case& c, int64_t sms_at_least, int64_t family) {
  using namespace fused_lstm;
  for (const int64_t sms : {sms_at_least, int64_t{8}, int64_t{132}}) {
    c.sms = sms;
    const Data data(c);
    if (cuda::computes(static_cast<cuda::Family>(family - 1), data.problem, true,
                       make_launch(c, false))) {
      break;
    }
  }
}

// As drawn, on such a device.
inline Case case_of(Random& random, const Sliced& shape, const Kind& kind, int64_t family) {
  Case c = case_of(random, Shape{shape.T, shape.B, shape.I, shape.H}, kind);
  c.units = shape.units;
  fit_device(c, shape.sms, family);
  return c;
}
