// Zoneout's random bits: Philox against its authors' known answers, and what lstm.h promises of the
// bits (they follow from key, stream and place alone, and come as often as was asked).
#include <cmath>
#include <set>
#include <vector>

#include "parallel.h"
#include "random.h"
#include "suite.h"

using fused_lstm::KeepBits;
using fused_lstm::Status;

namespace {

void check_known_answers(Suite& suite) {
  struct Answer {
    uint32_t counter[4], key[2], want[4];
  };
  // Random123's kat_vectors, philox4x32 10.
  const Answer answers[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0xffffffff, 0xffffffff},
       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
  suite.begin("philox");
  for (const Answer& a : answers) {
    const fused_lstm::Philox got = fused_lstm::philox(
        {{a.counter[0], a.counter[1], a.counter[2], a.counter[3]}}, a.key[0], a.key[1]);
    for (int k = 0; k < 4; ++k) suite.expect(got.word[k] == a.want[k], "a known answer");
  }
  suite.end();
}

struct Drawn {
  std::vector<uint8_t> keep;
  Status status;
};

Drawn draw(KeepBits bits, int64_t parallel, int64_t threads) {
  Drawn drawn{std::vector<uint8_t>(static_cast<size_t>(bits.T * bits.B * bits.U + 1), 0x5a),
              Status::kOk};
  bits.keep = drawn.keep.data();
  drawn.status = fused_lstm::cpu::keep_bits(bits, make_parallel(parallel, threads));
  return drawn;
}

void check_bits(Suite& suite, int64_t T, int64_t B, int64_t U) {
  suite.begin("bits " + std::to_string(T) + " " + std::to_string(B) + " " + std::to_string(U));
  KeepBits bits;
  bits.key = 0x123456789abcdefull;
  bits.stream = 7;
  bits.T = T, bits.B = B, bits.U = U;
  bits.h = 65536 / 4, bits.c = 65536 / 8;
  const Drawn one = draw(bits, kSerial, 1);
  suite.expect(one.status == Status::kOk, "the status");
  const int64_t count = T * B * U;
  bool defined = true;  // as random.h has it, whatever draws them
  for (int64_t k = 0; k < count; ++k) {
    uint8_t quad[4];
    const int64_t u = k % U;
    fused_lstm::keep_quad(bits, static_cast<uint32_t>(k / (B * U)),
                          static_cast<uint32_t>(k / U % B), static_cast<uint32_t>(u / 4), quad);
    defined = defined && one.keep[static_cast<size_t>(k)] == quad[u % 4];
  }
  suite.expect(defined, "bits are not those of their place");
  suite.expect(one.keep[static_cast<size_t>(count)] == 0x5a, "a byte behind the last was written");
  for (const int64_t threads : {2, 3, 5}) {
    suite.expect(draw(bits, kPool, threads).keep == one.keep, "bits depend on threads");
  }
  // A part of a larger draw is the same draw.
  KeepBits more = bits;
  more.T = T + 2, more.B = B + 3, more.U = U + 5;
  const Drawn larger = draw(more, kSerial, 1);
  bool same = true;
  int64_t h = 0, c = 0, both = 0;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t t = k / (B * U), b = k / U % B, u = k % U;
    same = same && one.keep[k] == larger.keep[(t * more.B + b) * more.U + u];
    h += (one.keep[k] & fused_lstm::kKeepH) != 0;
    c += (one.keep[k] & fused_lstm::kKeepC) != 0;
    both += one.keep[k] == (fused_lstm::kKeepH | fused_lstm::kKeepC);
  }
  suite.expect(same, "bits depend on more than their place");
  if (U > 100) {  // so that two rows are alike by chance in none of many runs
    std::set<std::vector<uint8_t>> rows;
    for (int64_t row = 0; row < T * B; ++row) {
      rows.emplace(one.keep.begin() + row * U, one.keep.begin() + (row + 1) * U);
    }
    suite.expect(static_cast<int64_t>(rows.size()) == T * B, "two rows are alike");
  }
  const double n = static_cast<double>(count);
  const auto near = [&](int64_t found, double p, const char* what) {
    // Five standard deviations.
    suite.expect(std::fabs(found - p * n) <= 5 * std::sqrt(p * (1 - p) * n) + 1, what);
  };
  near(h, 0.25, "how often h is kept");
  near(c, 0.125, "how often c is kept");
  near(both, 0.03125, "how often both are kept");
  KeepBits other = bits;
  other.stream = 8;
  suite.expect(count < 100 || draw(other, kSerial, 1).keep != one.keep, "another stream's bits");
  other = bits;
  other.key ^= uint64_t{1} << 40;
  suite.expect(count < 100 || draw(other, kSerial, 1).keep != one.keep, "another key's bits");
  other = bits;
  other.h = 65536, other.c = 0;
  const Drawn certain = draw(other, kSerial, 1);
  bool all = true;
  for (int64_t k = 0; k < count; ++k) all = all && certain.keep[k] == fused_lstm::kKeepH;
  suite.expect(all, "probabilities 1 and 0");
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_random");
  check_known_answers(suite);
  for (const int64_t isa : suite.isas()) {
    fused_lstm::cpu::set_isa(static_cast<fused_lstm::Isa>(isa));
    check_bits(suite, 1, 1, 1);
    check_bits(suite, 3, 5, 7);
    check_bits(suite, 20, 9, 130);
    check_bits(suite, 2, 1, 1001);
    check_bits(suite, 2, 3, 64);
  }
  suite.begin("refusals");
  KeepBits bits;
  suite.expect(fused_lstm::cpu::keep_bits(bits, make_parallel(kSerial, 1)) == Status::kBadArgument,
               "sizes of 0");
  suite.end();
  return suite.finish();
}
