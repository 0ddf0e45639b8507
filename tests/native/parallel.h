// Ways in which a caller may hand its threads to a kernel: what torch's pool does on a good day,
// and what it does under OMP_THREAD_LIMIT, in nested regions and with other backends.
#pragma once

#include <cstdint>

#include "lstm.h"

enum ParallelKind : int64_t {
  kSerial = 0,       // one call over the whole range
  kPool = 1,         // real threads at the same time, one chunk each, as OpenMP
  kLatePool = 2,     // the same, but every second thread begins a millisecond late
  kWhole = 3,        // claims its threads and concurrency, then calls once with the whole range
  kFewer = 4,        // claims more threads than it has: larger chunks, still concurrent
  kSequential = 5,   // not concurrent: chunk k+1 begins after chunk k has ended
  kReversed = 6,     // not concurrent, last chunk first, each on a thread of its own
  kIndependent = 7,  // real threads that promise nothing (concurrent = false)
  kParallelKinds = 8
};

extern const char* const kParallelNames[kParallelKinds];

// At most one kind and number of threads is in use at a time: Parallel::run has no argument for
// them.
fused_lstm::Parallel make_parallel(int64_t kind, int64_t threads);

// How often run() was called with more than one task since the last make_parallel().
int64_t shared_runs();
