// How a kernel may use this process's threads: torch's own pool, so that torch.set_num_threads and
// OMP_NUM_THREADS mean what their user expects, and one thread in a forked child, where that pool's
// threads no longer exist and waiting for them would never end.
#pragma once

#include "../kernels/lstm.h"

namespace fused_lstm::runtime {

// What a kernel that is called now, from this thread, may use.
Parallel parallel();

// Throws std::runtime_error if torch's pool failed in this thread since the last call.
void check_parallel();

// Whether the chunks of a parallel loop are held by distinct OS threads at once (torch built on
// OpenMP), so that one may wait for another. Python says so; false until then.
void set_concurrent(bool concurrent);

bool in_forked_child();

}  // namespace fused_lstm::runtime
