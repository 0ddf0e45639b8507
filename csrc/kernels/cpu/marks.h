// What nn.LSTM lacks: rows that are reset or have ended (Problem::marks), the cell states of every
// step (Outputs::cells), units that keep their value (Problem::zoneout), factors of h before the
// gates (Problem::h_factors). Here are the buffers and passes that these add to forward.h and
// backward.h. Included inside an ISA's namespace.
//
// A step's products always run over rows that lie at one stride. So where a row's state is not what
// the step before left (a reset, its first step, a factor), the states of all rows are first copied
// to a buffer and put right there: a copy of B*(P+H) elements beside B*4H*(I+P) multiply-adds. Rows
// that have ended compute along between others, for the products come in tiles of rows, and what
// comes out is thrown away; those before the first and after the last running row are left out.
// Zoneout mixes a cell's h and c with those before it where forward.h finishes the cell; going
// back, backward finds what the cell itself had computed from its gates and the c before.

// The marks of a call, for direction d: s counts steps in the order in which it processes them.
struct Marks {
  const uint8_t* data;  // [T, B] or null
  int64_t T, B;

  // Where the state before a step comes from.
  enum class From { kStepBefore, kInitial, kZeros, kNoStep };

  bool on() const { return data != nullptr; }
  uint8_t at(int32_t d, int64_t s, int64_t b) const {
    return data[(d == 0 ? s : T - 1 - s) * B + b];
  }
  bool ended(int32_t d, int64_t s, int64_t b) const { return (at(d, s, b) & kMarkEnded) != 0; }
  bool starts(int32_t d, int64_t s, int64_t b) const { return s == 0 || ended(d, s - 1, b); }
  bool ends(int32_t d, int64_t s, int64_t b) const { return s + 1 == T || ended(d, s + 1, b); }
  From from(int32_t d, int64_t s, int64_t b) const {
    if (!on()) return s == 0 ? From::kInitial : From::kStepBefore;
    const uint8_t mark = at(d, s, b);
    if ((mark & kMarkEnded) != 0) return From::kNoStep;
    if ((mark & kMarkReset) != 0) return From::kZeros;
    return starts(d, s, b) ? From::kInitial : From::kStepBefore;
  }
  // Whether all rows [b0, b1) run through step s, from where the step before left them.
  bool ordinary(int32_t d, int64_t s, int64_t b0, int64_t b1) const {
    for (int64_t b = b0; b < b1; ++b) {
      if (at(d, s, b) != 0 || (s > 0 && ended(d, s - 1, b))) return false;
    }
    return true;
  }
  // Rows that have no step at all: ended at the first one.
  bool never_runs(int64_t b) const { return on() && (data[b] & kMarkEnded) != 0; }
};

// What the gates multiply h of row b by, [P]; null: nothing.
template <class S>
const S* h_factors_of(const Problem& q, int32_t d, int64_t b) {
  return q.h_factors ? static_cast<const S*>(q.h_factors) + (d * q.B + b) * q.P : nullptr;
}

// n elements of h times their factors, rounded as products take them.
template <class E, class A, class S>
void scale_row(const A* h, const S* factors, int64_t n, A* out) {
  constexpr int W = Vec<E>::kWidth;
  for (int64_t k = 0; k < n; k += W) {
    const int count = static_cast<int>(min64(W, n - k));
    store_as(load_as(Tag<E>{}, h + k, count) * load_as(Tag<E>{}, factors + k, count), out + k,
             count);
  }
}

// What W units of one row keep of h and c: shares of them, or all of some units and nothing of
// others.
template <class E>
class Kept {
 public:
  static constexpr int W = Vec<E>::kWidth;

  FL_INLINE Kept(const Problem& q, int32_t d, int64_t t, int64_t b, int64_t p)
      : zoneout_(q.zoneout) {
    if (zoneout_.keep == nullptr) return;
    bytes_ = zoneout_.keep + ((t * q.B + b) * q.D + d) * q.H + p * W;
    if (q.H - p * W < W) {
      std::memcpy(some_, bytes_, static_cast<size_t>(q.H - p * W));
      bytes_ = some_;
    }
  }
  FL_INLINE Vec<E> part_of_h(Vec<E> h) const { return part(kKeepH, zoneout_.h, h); }
  FL_INLINE Vec<E> part_of_c(Vec<E> c) const { return part(kKeepC, zoneout_.c, c); }
  FL_INLINE Vec<E> mix_h(Vec<E> before, Vec<E> now) const {
    return mix(kKeepH, zoneout_.h, before, now);
  }
  FL_INLINE Vec<E> mix_c(Vec<E> before, Vec<E> now) const {
    return mix(kKeepC, zoneout_.c, before, now);
  }

 private:
  FL_INLINE Vec<E> part(uint8_t bit, double share, Vec<E> x) const {
    if (bytes_) return either_where(bytes_, bit, x, Vec<E>::set1(0));
    return Vec<E>::set1(static_cast<E>(share)) * x;
  }
  FL_INLINE Vec<E> mix(uint8_t bit, double share, Vec<E> before, Vec<E> now) const {
    if (bytes_) return either_where(bytes_, bit, before, now);
    const E kept = static_cast<E>(share);
    return fma(Vec<E>::set1(kept), before, Vec<E>::set1(1 - kept) * now);
  }

  const Zoneout& zoneout_;
  const uint8_t* bytes_ = nullptr;
  alignas(16) uint8_t some_[W] = {};
};

template <class S, class E>
class ForwardMarks {
 public:
  static constexpr int W = Vec<E>::kWidth;
  using A = typename Operand<S, E>::type;

  ForwardMarks(const Problem& problem, const Outputs& outputs, const Plan& plan)
      : q_(problem),
        out_(outputs),
        marks_{problem.marks, problem.T, problem.B},
        panels_(ceil_div(problem.H, W)),
        parties_(plan.split == Split::kUnits ? ceil_div(plan.threads, problem.D) : 1) {}

  void carve(Carver& carver) {
    const bool keeps_h = q_.zoneout.on() && q_.h_factors != nullptr;
    for (int32_t d = 0; (marks_.on() || q_.h_factors) && d < q_.D; ++d) {
      h_[d] = carver.take<A>(parties_ * q_.B * q_.P);
      h_kept_[d] = carver.take<A>(keeps_h ? parties_ * q_.B * q_.P : 0);
      c_[d] = carver.take<E>(marks_.on() ? panels_ * q_.B * W : 0);
    }
  }
  bool on() const { return marks_.on() || q_.h_factors != nullptr || out_.cells != nullptr; }
  bool writes_last_states() const { return marks_.on(); }  // leave() and finish() do

  // Narrows a segment to rows that run through processing step s, and points it at a copy of their
  // states where some are not those of the step before. h0: [B][P] or null. Returns the number of
  // segments that are left, 0 or 1.
  template <class Segment>
  int enter(int32_t d, int64_t s, int64_t p0, int64_t p1, int64_t party, const A* h0,
            Segment& segment) const {
    if (!marks_.on() && q_.h_factors == nullptr) return 1;
    int64_t &begin = segment.begin, &end = segment.end;
    while (marks_.on() && begin < end && marks_.ended(d, s, begin)) ++begin;
    while (marks_.on() && begin < end && marks_.ended(d, s, end - 1)) --end;
    if (begin == end) return 0;
    const bool first = s == 0;  // then the segment's own state is the initial one
    bool same = true;
    for (int64_t b = begin; b < end; ++b) {
      const Marks::From from = marks_.from(d, s, b);
      same = same && from != Marks::From::kZeros && (first || from != Marks::From::kInitial);
    }
    if (same && q_.h_factors == nullptr) return 1;
    A* h = h_[d] + party * q_.B * q_.P;
    A* kept = q_.zoneout.on() && q_.h_factors ? h_kept_[d] + party * q_.B * q_.P : h;
    for (int64_t b = begin; b < end; ++b) {
      const Marks::From from = marks_.from(d, s, b);
      const bool initial = from == Marks::From::kInitial && !first;
      copy_h(from == Marks::From::kZeros ? nullptr
             : !initial                  ? segment.h + b * segment.h_row
             : h0                        ? h0 + b * q_.P
                                         : nullptr,
             kept + b * q_.P);
      if (q_.h_factors) {
        scale_row<E>(kept + b * q_.P, h_factors_of<S>(q_, d, b), q_.P, h + b * q_.P);
      }
      for (int64_t p = p0; !same && p < p1; ++p) {
        Vec<E> c = Vec<E>::set1(0);
        if (initial) {
          c = initial_c(d, p, b);
        } else if (from != Marks::From::kZeros) {
          c = Vec<E>::load(segment.c + p * segment.c_panel + b * W);
        }
        c.store(c_[d] + (p * q_.B + b) * W);
      }
    }
    segment.h = h;
    segment.h_kept = kept;
    segment.h_row = segment.h_kept_row = q_.P;
    if (!same) {
      segment.c = c_[d];
      segment.c_panel = q_.B * W;
    }
    return 1;
  }

  // After processing step s, for units of panels [p0, p1): y and cells of rows that have ended,
  // cells of the others, and h_n and c_n of those whose last step it was. y: the rows of the step;
  // c: [panel][B][W], its cell states; gates: [panel][B][4W], or null. Both are zero where there
  // was no step, so that a reserve holds nothing by chance.
  void leave(int32_t d, int64_t s, int64_t b0, int64_t b1, int64_t p0, int64_t p1, S* y,
             int64_t y_row, E* c, S* gates) const {
    const int64_t u0 = p0 * W, units = min64(p1 * W, q_.H) - u0;
    const size_t bytes = static_cast<size_t>(units) * sizeof(S);
    const int64_t t = d == 0 ? s : q_.T - 1 - s;
    for (int64_t b = b0; b < b1; ++b) {
      S* cells = out_.cells == nullptr
                     ? nullptr
                     : static_cast<S*>(out_.cells) + ((t * q_.B + b) * q_.D + d) * q_.H;
      if (marks_.on() && marks_.ended(d, s, b)) {
        std::memset(static_cast<void*>(y + b * y_row + u0), 0, bytes);
        if (cells) std::memset(static_cast<void*>(cells + u0), 0, bytes);
        for (int64_t row = p0 * q_.B + b; row < p1 * q_.B; row += q_.B) {
          Vec<E>::set1(0).store(c + row * W);
          if (gates) std::memset(static_cast<void*>(gates + row * 4 * W), 0, 4 * W * sizeof(S));
        }
        continue;
      }
      if (cells) write_c(c, b, p0, p1, cells);
      if (marks_.on() && marks_.ends(d, s, b)) {
        const int64_t row = d * q_.B + b;
        std::memcpy(static_cast<S*>(out_.h_n) + row * q_.P + u0, y + b * y_row + u0, bytes);
        write_c(c, b, p0, p1, static_cast<S*>(out_.c_n) + row * q_.H);
      }
    }
  }

  // h_n and c_n of rows without any step.
  void finish() const {
    for (int32_t d = 0; d < q_.D; ++d) {
      for (int64_t b = 0; b < q_.B; ++b) {
        if (!marks_.never_runs(b)) continue;
        const int64_t row = d * q_.B + b;
        copy_last(q_.h0, out_.h_n, row, q_.P);
        copy_last(q_.c0, out_.c_n, row, q_.H);
      }
    }
  }

 private:
  void copy_h(const A* from, A* to) const {
    const size_t bytes = static_cast<size_t>(q_.P) * sizeof(A);
    if (from) {
      std::memcpy(static_cast<void*>(to), from, bytes);
    } else {
      std::memset(static_cast<void*>(to), 0, bytes);
    }
  }
  static void copy_last(const void* initial, void* last, int64_t row, int64_t n) {
    S* to = static_cast<S*>(last) + row * n;
    const size_t bytes = static_cast<size_t>(n) * sizeof(S);
    if (initial) {
      std::memcpy(static_cast<void*>(to), static_cast<const S*>(initial) + row * n, bytes);
    } else {
      std::memset(static_cast<void*>(to), 0, bytes);
    }
  }
  Vec<E> initial_c(int32_t d, int64_t p, int64_t b) const {
    if (q_.c0 == nullptr) return Vec<E>::set1(0);
    const S* c0 = static_cast<const S*>(q_.c0) + (d * q_.B + b) * q_.H + p * W;
    return load_as(Tag<E>{}, c0, static_cast<int>(min64(W, q_.H - p * W)));
  }
  // c of row b, [panel][B][W], to one row of H units.
  void write_c(const E* c, int64_t b, int64_t p0, int64_t p1, S* row) const {
    for (int64_t p = p0; p < p1; ++p) {
      store_as(Vec<E>::load(c + (p * q_.B + b) * W), row + p * W,
               static_cast<int>(min64(W, q_.H - p * W)));
    }
  }

  const Problem& q_;
  const Outputs& out_;
  const Marks marks_;
  const int64_t panels_, parties_;
  A* h_[2] = {};       // [party][B][P]
  A* h_kept_[2] = {};  // the same without factors, where zoneout needs it too
  E* c_[2] = {};       // [panel][B][W]
};

template <class S, class E>
class BackwardMarks {
 public:
  static constexpr int W = Vec<E>::kWidth;
  static constexpr int G = 4 * W;

  BackwardMarks(const Problem& problem, const Gradients& gradients)
      : q_(problem),
        g_(gradients),
        marks_{problem.marks, problem.T, problem.B},
        panels_(ceil_div(problem.H, W)) {}

  void carve(Carver& carver) {
    for (int32_t d = 0; d < q_.D; ++d) {
      if (marks_.on()) c_before_[d] = carver.take<E>(panels_ * q_.B * W);
      if (q_.zoneout.on()) dh_kept_[d] = carver.take<E>(panels_ * q_.B * W);
    }
  }
  bool on() const { return hands_back() || g_.dcells != nullptr; }
  // Whether what a step hands back to the one before is more than its product with W_hh.
  bool hands_back() const { return marks_.on() || q_.zoneout.on() || q_.h_factors != nullptr; }
  const Marks& marks() const { return marks_; }
  // dh that went by the cell of row b, panel p, at the step that was last computed: [W].
  E* dh_kept(int32_t d, int64_t p, int64_t b) const { return dh_kept_[d] + (p * q_.B + b) * W; }

  // sums is what processing step s + 1 hands back as dh, row b at sums + (b - b0) * (v1 - v0) * W,
  // units of vectors [v0, v1). Puts right what step s must take: factors, what zoneout kept,
  // nothing across a reset, dh_n where the row's last step is s. What goes to a row's initial state
  // is written to dh0.
  void hand_back(int32_t d, int64_t s, int64_t v0, int64_t v1, int64_t b0, int64_t b1,
                 E* sums) const {
    if (!hands_back() || s + 1 >= q_.T) return;
    for (int64_t b = b0; b < b1; ++b) {
      E* row = sums + (b - b0) * (v1 - v0) * W;
      if (!marks_.on() || !marks_.ended(d, s + 1, b)) complete(d, v0, v1, b, row);
      switch (marks_.from(d, s + 1, b)) {
        case Marks::From::kNoStep:
          load_dh_n(d, b, v0, v1, row);
          if (s < 0 && marks_.never_runs(b)) write_dh0(d, b, v0, v1, row);
          break;
        case Marks::From::kZeros:
          for (int64_t k = 0; k < v1 - v0; ++k) Vec<E>::set1(0).store(row + k * W);
          if (marks_.starts(d, s + 1, b)) write_dh0(d, b, v0, v1, row);
          break;
        case Marks::From::kInitial:
          write_dh0(d, b, v0, v1, row);
          break;
        case Marks::From::kStepBefore:
          break;
      }
    }
  }

  // Adds the gradient of the cells of step s to dc [B][W], that of panel p.
  void add_dcells(int32_t d, int64_t s, int64_t p, int64_t b0, int64_t b1, E* dc) const {
    if (g_.dcells == nullptr) return;
    const int64_t t = d == 0 ? s : q_.T - 1 - s;
    const int units = static_cast<int>(min64(W, q_.H - p * W));
    const S* dcells = static_cast<const S*>(g_.dcells) + t * g_.dcells_t + d * q_.H + p * W;
    for (int64_t b = b0; b < b1; ++b) {
      if (marks_.on() && marks_.ended(d, s, b)) continue;
      (Vec<E>::load(dc + b * W) + load_as(Tag<E>{}, dcells + b * g_.dcells_b, units))
          .store(dc + b * W);
    }
  }

  // c before step s as the cells took it, [B][W] of panel p; c_step: that of the step before, null
  // at s = 0; c0: the initial one.
  const E* cells_before(int32_t d, int64_t s, int64_t p, int64_t b0, int64_t b1, const E* c_step,
                        const E* c0) const {
    E* out = c_before_[d] + p * q_.B * W;
    for (int64_t b = b0; b < b1; ++b) {
      Vec<E> c = Vec<E>::set1(0);
      const Marks::From from = marks_.from(d, s, b);
      if (from == Marks::From::kStepBefore) c = Vec<E>::load(c_step + b * W);
      if (from == Marks::From::kInitial) c = Vec<E>::load(c0 + b * W);
      c.store(out + b * W);
    }
    return out;
  }

  // After the cells of step s: no gradient of c goes on across a reset, dc [B][W]; a row without
  // the step has no gates, dz [B][4W] or, where they are elsewhere, null.
  void clear(int32_t d, int64_t s, int64_t b0, int64_t b1, E* dc, E* dz) const {
    for (int64_t b = b0; b < b1; ++b) {
      const Marks::From from = marks_.from(d, s, b);
      if (from == Marks::From::kZeros) Vec<E>::set1(0).store(dc + b * W);
      for (int k = 0; dz && from == Marks::From::kNoStep && k < 4; ++k) {
        Vec<E>::set1(0).store(dz + b * G + k * W);
      }
    }
  }

 private:
  void complete(int32_t d, int64_t v0, int64_t v1, int64_t b, E* row) const {
    const S* factors = h_factors_of<S>(q_, d, b);
    for (int64_t v = v0; v < v1; ++v, row += W) {
      const int units = static_cast<int>(min64(W, q_.P - v * W));
      Vec<E> dh = Vec<E>::load(row);
      if (factors) dh = dh * load_as(Tag<E>{}, factors + v * W, units);
      if (q_.zoneout.on()) dh = dh + Vec<E>::load(dh_kept(d, v, b));
      dh.store(row);
    }
  }
  void load_dh_n(int32_t d, int64_t b, int64_t v0, int64_t v1, E* row) const {
    const S* dh_n = static_cast<const S*>(g_.dh_n) + (d * q_.B + b) * q_.P;
    for (int64_t v = v0; v < v1; ++v, row += W) {
      const int units = static_cast<int>(min64(W, q_.P - v * W));
      (g_.dh_n ? load_as(Tag<E>{}, dh_n + v * W, units) : Vec<E>::set1(0)).store(row);
    }
  }
  void write_dh0(int32_t d, int64_t b, int64_t v0, int64_t v1, const E* row) const {
    S* dh0 = static_cast<S*>(g_.dh0) + (d * q_.B + b) * q_.P;
    for (int64_t v = v0; g_.dh0 && v < v1; ++v, row += W) {
      store_as(Vec<E>::load(row), dh0 + v * W, static_cast<int>(min64(W, q_.P - v * W)));
    }
  }

  const Problem& q_;
  const Gradients& g_;
  const Marks marks_;
  const int64_t panels_;
  E* c_before_[2] = {};  // [panel][B][W]
  E* dh_kept_[2] = {};   // [panel][B][W]
};
