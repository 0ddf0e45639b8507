// What one test case is: sizes, options and a seed, written as one line `T=3 B=5 ...` from which
// the same inputs are made again, bit for bit; and the inputs themselves.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "guarded.h"
#include "lstm.h"

// Where the rows of a [T, B, features] array lie. Packed arrays know only dense and padded.
enum Layout : int64_t {
  kDense = 0,       // [T, B, features] contiguous
  kPadded = 1,      // room after every row and every step
  kBatchFirst = 2,  // [B, T, features] contiguous
  kBatchFirstPadded = 3,
  kSameForBatch = 4,  // stride 0 over B: inputs only
  kSameForTime = 5,   // stride 0 over T: inputs only
  kLayouts = 6
};

// A value that is not finite, put somewhere into the inputs.
enum Special : int64_t {
  kOrdinary = 0,
  kNanX,
  kInfX,
  kNanH0,
  kInfH0,
  kNanC0,
  kInfC0,
  kNanWih,
  kInfWih,
  kNanWhh,
  kInfWhh,
  kNanBias,
  kInfBias,
  kNanDy,
  kInfDy,
  kNanDhn,
  kInfDhn,
  kNanDcn,
  kInfDcn,
  kSpecials
};

// Every field is a number so that one table reads and writes them all (cases.cpp).
struct Case {
  int64_t T = 1, B = 1, I = 1, H = 1, P = 0, D = 1;  // P = 0: no projection
  int64_t dtype = 0, packed = 0;
  int64_t marks = 0;      // bits: rows are reset (1), rows end (2), or are marked at random (4)
  int64_t cells = 0;      // 1: c of every step is asked for, and has a gradient
  int64_t zoneout = 0;    // units keep h and c where bits say so (1), or a share of them (2)
  int64_t h_factors = 0;  // 1: the gates read h times factors
  int64_t recompute = 0;  // 1: backward computes the gates again
  int64_t h0 = 1, c0 = 1, b_ih = 1, b_hh = 1;  // given (1) or null (0)
  int64_t x_layout = 0, y_layout = 0, dy_layout = 0;
  int64_t dy = 1, dh_n = 1, dc_n = 1;  // incoming gradients: given or null
  int64_t needs = 2047;                // wanted gradients, bits in the order of kGradientNames
  int64_t special = 0;
  int64_t at_start = 0;  // 1: unreadable memory lies before the buffers, not after
  int64_t seed = 1;
  int64_t isa = 0, par = 0, threads = 1;   // how forward runs
  int64_t back_par = 0, back_threads = 1;  // how backward runs
  // How CUDA kernels run (tests/simt): the device, Math, the family (0: the plan's choice, 1 + k:
  // family k is forced) and the seed of the scheduler.
  int64_t arch = 90, sms = 132, math = 0, family = 0, back_family = 0, schedule = 1;
  int64_t units =
      0;  // of a block, where a family that cuts W_hh up is forced; 0: the plan's choice
};

constexpr int kGradients = 11;
extern const char* const kGradientNames[kGradients];
extern const char* const kDTypeNames[4];
extern const char* const kIsaNames[4];

// The whole case in one line. with_run = false leaves out how it runs: what the inputs depend on.
std::string to_text(const Case& c, bool with_run = true);
// Exits with a message on an unknown key or name.
Case parse_case(const std::string& text);

// Random numbers that are the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 0x1234567) {}
  uint64_t bits();
  double uniform(double low, double high);
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  int64_t pick(const std::vector<int64_t>& values) {
    return values[static_cast<size_t>(below(static_cast<int64_t>(values.size())))];
  }

 private:
  uint64_t state_;
};

struct Strides {
  int64_t t = 0, b = 0, elements = 0;  // elements: from the first to the last that is touched
};
Strides strides_of(const Case& c, int64_t layout, int64_t features, int64_t rows);

// The inputs of a case, in guarded memory, and a copy to notice writes into them.
class Data {
 public:
  explicit Data(const Case& c);
  fused_lstm::Problem problem;
  fused_lstm::Gradients incoming;  // dy, dh_n, dc_n and their strides; the rest is null
  int64_t rows = 0;
  bool inputs_unchanged() const;

 private:
  void* make(int64_t count, double scale);
  void make_marks();
  void make_zoneout();
  void spoil_ended(int64_t layout, void* data, int64_t stride_t, int64_t stride_b,
                   int64_t features);
  std::vector<int64_t> batch_sizes_;
  std::vector<uint8_t> marks_, keep_;
  std::vector<std::unique_ptr<Guarded>> arrays_;
  std::vector<std::vector<unsigned char>> copies_;
  const Case case_;
  Random random_;
};
