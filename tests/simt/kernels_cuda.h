// The CUDA kernels on the stand-in, as tests/native/run.h calls them (kernels_cuda.cpp defines
// kernels::forward and the rest), and what a test may want besides.
#pragma once

#include <functional>
#include <string>

#include "cases.h"
#include "cuda.h"

// The device and options of a case; products by multiply_plainly.
fused_lstm::cuda::Launch make_launch(const Case& c, bool backward);

namespace kernels {
extern uint32_t fault;     // Launch::fault of the call just made
extern uint64_t patience;  // Launch::patience of calls to come
// Any other call of the kernels, under the case's schedule and with the host kept from the device's
// memory; complaint() is then about it.
fused_lstm::Status run(const Case& c, const std::function<fused_lstm::Status()>& call);
std::string complaint();
}  // namespace kernels
