// Dense products as the kernels are handed them, for the stand-in: plain loops in double, rounded
// once to the type of C. Refuses what cuBLAS would refuse, and whatever the contract rules out.
#pragma once

#include "cuda.h"

// Blas::multiply; context is not used.
bool multiply_plainly(void* context, const fused_lstm::cuda::Product& product);
