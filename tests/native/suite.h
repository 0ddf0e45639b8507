// What the test programs share: counting, naming the case that failed, comparing with the reference
// under one table of tolerances, and the shape grid.
#pragma once

#include <string>
#include <vector>

#include "cases.h"
#include "reference.h"

class Suite {
 public:
  // Reads --case "...", --random N, --seed S, --isa NAME, --seconds N (a case that takes longer
  // hangs), --first 1 (the first failure ends it), --share K/N (of the lists that ask takes(),
  // every N-th from the K-th on); arms the watchdog for crashes and hangs. isa_runs_here: null
  // where no CPU kernel is tested (tests/simt).
  Suite(int argc, char** argv, const char* name,
        bool (*isa_runs_here)(fused_lstm::Isa) = fused_lstm::cpu::isa_runs_here);

  bool single() const { return !case_text_.empty(); }  // --case was given
  Case single_case() const { return parse_case(case_text_); }
  int64_t random_cases(int64_t usual) const { return random_ >= 0 ? random_ : usual; }
  // Whether the n-th case of a list is among those asked for.
  bool takes(int64_t n) const { return n % every_ == share_; }
  int64_t seed() const { return seed_; }
  const std::vector<int64_t>& isas() const { return isas_; }  // those that run here

  // One case: begin, any number of expectations, end.
  void begin(const Case& c) {
    begin(to_text(c));
    zero_ = smallest(c.dtype);
  }
  void begin(const std::string& what);
  void expect(bool good, const std::string& complaint);
  // Positions of NaN and Inf must agree; the rest within tolerance * size, where size is max |want|
  // unless given, or by less than the dtype's smallest step.
  void expect_close(const std::string& name, const reference::Values& want,
                    const reference::Values& got, double tolerance, double size = 0.0);
  void expect_close(const std::string& name, const reference::Gradient& want,
                    const reference::Values& got, double tolerance) {
    expect_close(name, want.sum, got, tolerance, want.size());
  }
  void unsupported() { is_unsupported_ = true; }
  void end();

  void note(const std::string& line) { notes_.push_back(line); }
  int finish();  // prints the notes and `N passed, M failed`; the exit code

 private:
  const char* name_;
  std::string case_text_;
  std::vector<int64_t> isas_;
  std::vector<std::string> notes_;
  int64_t random_ = -1, seed_ = 1, seconds_ = 60, first_ = 0, share_ = 0, every_ = 1;
  int64_t passed_ = 0, failed_ = 0, unsupported_ = 0;
  std::string current_, complaints_;
  bool is_unsupported_ = false;
  static double smallest(int64_t dtype);
  double worst_ = 0.0, zero_ = 0.0;
};

// The largest error allowed, relative to max |reference| of the same array (gradients: or the size
// of their terms, reference.h).
double forward_tolerance(const Case& c);
double gradient_tolerance(const Case& c);

// Sizes chosen to be awkward, every dtype's share of them, options drawn from the seed.
std::vector<Case> shape_grid(int64_t dtype, uint64_t seed);
Case random_case(Random& random, int64_t dtype);
// How often the k-th case of a grid runs under an instruction set: the emulation is slow.
int runs_of(int64_t isa, size_t k);
// Draws how a case runs: kind of Parallel and threads, for forward and backward.
void draw_run(Random& random, Case& c);
