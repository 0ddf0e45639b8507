// Zoneout's random bits: the CUDA kernel draws what csrc/kernels/random.h says of each place, for
// any sizes and alignment, and nothing beyond; and that is Philox as its authors published it.
#include <cuda_runtime.h>

#include "kernels_cuda.h"
#include "random.h"
#include "suite.h"

using fused_lstm::KeepBits;
using fused_lstm::Status;
namespace cuda = fused_lstm::cuda;

namespace {

// shift: how far the array begins after an aligned address.
void check(Suite& suite, KeepBits bits, int64_t shift) {
  const int64_t count = bits.T * bits.B * bits.U;
  suite.begin("T=" + std::to_string(bits.T) + " B=" + std::to_string(bits.B) +
              " U=" + std::to_string(bits.U) + " shift=" + std::to_string(shift));
  Guarded array(static_cast<size_t>(shift + count), 16, true);
  array.fill(0x5a);
  bits.keep = static_cast<uint8_t*>(array.data()) + shift;
  suite.expect(cuda::keep_bits(bits, cuda::Launch()) == Status::kOk, "returns an error status");
  suite.expect(array.intact(), "wrote outside");
  bool same = true, before = true;
  for (int64_t k = 0; k < shift; ++k) before = before && bits.keep[k - shift] == 0x5a;
  for (int64_t n = 0; n < count; ++n) {
    uint8_t quad[4];
    const int64_t row = n / bits.U, unit = n % bits.U;
    fused_lstm::keep_quad(bits, static_cast<uint32_t>(row / bits.B),
                          static_cast<uint32_t>(row % bits.B), static_cast<uint32_t>(unit / 4),
                          quad);
    same = same && bits.keep[n] == quad[unit % 4];
  }
  suite.expect(before, "wrote before its array");
  suite.expect(same, "another byte than its place gives");
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_keep_bits", nullptr);
  KeepBits bits;
  bits.key = 0x123456789abcdef0ull;
  bits.stream = 3;
  bits.h = 0x4000, bits.c = 0x8000;
  for (const int64_t U : {1, 3, 4, 7, 8, 130, 520}) {
    for (const int64_t shift : {0, 1}) {
      bits.T = 5, bits.B = U % 2 == 0 ? 3 : 1, bits.U = U;
      check(suite, bits, shift);
    }
  }
  bits.T = 3, bits.B = 40, bits.U = 9;
  check(suite, bits, 0);
  suite.begin("nothing to fill");
  suite.expect(cuda::keep_bits(bits, cuda::Launch()) == Status::kBadArgument, "no array is taken");
  suite.end();
  suite.begin("a launch is refused");
  uint8_t somewhere[3 * 40 * 9];
  bits.keep = somewhere;
  simt::options.refuse_launch = 0;
  suite.expect(cuda::keep_bits(bits, cuda::Launch()) == Status::kLaunchFailed, "without a word");
  simt::options.refuse_launch = -1;
  suite.end();
  suite.begin("Philox's published answer");  // Random123, kat_vectors: philox4x32 10, all zeros
  const fused_lstm::Philox random = fused_lstm::philox({{0, 0, 0, 0}}, 0, 0);
  const uint32_t want[] = {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u};
  for (int k = 0; k < 4; ++k) suite.expect(random.word[k] == want[k], "another word");
  suite.end();
  return suite.finish();
}
