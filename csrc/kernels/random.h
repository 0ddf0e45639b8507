// Random numbers that depend on nothing but a key and a place: Philox4x32-10, counter-based (Salmon
// et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). The CPU and CUDA kernels call the
// same functions, so a mask is the same on every device, for any number of threads, and when it is
// drawn again.
#pragma once

#include <cstdint>

#include "gate_math.h"
#include "lstm.h"

namespace fused_lstm {

struct Philox {
  uint32_t word[4];
};

FUSED_LSTM_CELL Philox philox(Philox counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xd2511f53u) * counter.word[0];
    const uint64_t b = static_cast<uint64_t>(0xcd9e8d57u) * counter.word[2];
    counter = {{static_cast<uint32_t>(b >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(b),
                static_cast<uint32_t>(a >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(a)}};
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return counter;
}

// The bytes of units 4*quad to 4*quad + 3 of row b at step t: half a word each for h and for c.
FUSED_LSTM_CELL void keep_quad(const KeepBits& bits, uint32_t t, uint32_t b, uint32_t quad,
                               uint8_t* keep) {
  const Philox random = philox({{quad, b, t, bits.stream}}, static_cast<uint32_t>(bits.key),
                               static_cast<uint32_t>(bits.key >> 32));
  for (int k = 0; k < 4; ++k) {
    const bool h = (random.word[k] & 0xffffu) < bits.h, c = random.word[k] >> 16 < bits.c;
    keep[k] = static_cast<uint8_t>((h ? kKeepH : 0) | (c ? kKeepC : 0));
  }
}

}  // namespace fused_lstm
