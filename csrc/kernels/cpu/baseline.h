// What every isa_*.cpp includes before it sets its target: whatever is inline in here is shared
// between files and must be compiled for the baseline.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../frozen.h"
#include "../lstm.h"
#include "../numeric.h"
#include "kernels.h"
#include "plan.h"
#include "team.h"

#ifndef FL_INLINE  // a test build that compiles fast and need not run fast: -DFL_INLINE=inline
#define FL_INLINE inline __attribute__((always_inline))
#endif
