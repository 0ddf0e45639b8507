// What both passes of the recurrence (../recurrence.h) share: where a row's numbers lie, the small
// weights of the cell brought into vectors, and the moments of LayerNorm. Included inside an ISA's
// namespace.
//
// A row is handled whole, for LayerNorm needs all of it: its products go to a buffer that stays in
// L2, and its cells follow. Gates lie there as in a gate panel, [panel][gate][W].

enum Moment { kScaleOfProducts, kMeanOfCell, kScaleOfCell };

// What forward keeps of one row of one step, in this order: c [units], activated gates
// [panel][G][W] (f not where it is 1 - i), and with LayerNorm the normalised products [panel][G][W]
// and three moments. `units` counts whole lines, so that a record has one size on every processor.
template <class E>
struct Records {
  static constexpr int64_t kLine = 64 / sizeof(E);
  E* data;
  int64_t B, units, gates;
  bool normalises;

  Records(void* reserve, const Recurrence& q)
      : data(static_cast<E*>(reserve)),
        B(q.B),
        units(ceil_div(q.H, kLine) * kLine),
        gates(q.gates),
        normalises(q.ln_hh != nullptr) {}
  int64_t size() const { return units * (1 + gates) + (normalises ? units * gates + kLine : 0); }
  E* c(int64_t t, int64_t b) const { return data + (t * B + b) * size(); }
  E* gates_of(E* record) const { return record + units; }
  E* normalised(E* record) const { return record + units * (1 + gates); }
  E* moments(E* record) const { return record + units * (1 + 2 * gates); }
  // The first of the moments, and zeros in the rest of their line: equal calls leave equal bytes.
  void keep_scale(E* record, E scale) const {
    for (int64_t k = 0; k < kLine; ++k) moments(record)[k] = k == kScaleOfProducts ? scale : 0;
  }
};

// The small weights, zero beyond H: peepholes [panel][G-1][W], LayerNorm's gain of the products
// [panel][G][W] and gain and bias of the cell [panel][W].
template <class E, int G>
struct CellWeights {
  static constexpr int W = Vec<E>::kWidth;
  E *peepholes, *ln_hh, *ln_c, *ln_c_bias;

  void carve(Carver& carver, int64_t panels) {
    peepholes = carver.take<E>(panels * (G - 1) * W);
    ln_hh = carver.take<E>(panels * G * W);
    ln_c = carver.take<E>(panels * W);
    ln_c_bias = carver.take<E>(panels * W);
  }
  void pack(const Recurrence& q) const {
    spread<G - 1>(static_cast<const E*>(q.peepholes), q.H, peepholes);
    spread<G>(static_cast<const E*>(q.ln_hh), q.H, ln_hh);
    spread<1>(static_cast<const E*>(q.ln_c), q.H, ln_c);
    spread<1>(static_cast<const E*>(q.ln_c_bias), q.H, ln_c_bias);
  }
  // The cell of panel p, each number of which is a Vec or several alike.
  template <class Number, class Same>
  FL_INLINE CellVariant<Number> cell(const Recurrence& q, int64_t p, const Same& same) const {
    CellVariant<Number> v;
    v.coupled = G == 3;
    v.peepholes = q.peepholes != nullptr;
    v.clips_cell = q.cell_clip != kNoClip;
    v.clips_hidden = q.hidden_clip != kNoClip;
    const E* own = peepholes + p * (G - 1) * W;
    v.p_i = same(Vec<E>::load(own));
    v.p_f = same(Vec<E>::load(own + (G == 4 ? W : 0)));
    v.p_o = same(Vec<E>::load(own + (G - 2) * W));
    v.cell_clip = same(Vec<E>::set1(static_cast<E>(q.cell_clip)));
    v.hidden_clip = same(Vec<E>::set1(static_cast<E>(q.hidden_clip)));
    return v;
  }

 private:
  // [Per, H] -> [panel][Per][W]; zeros for null.
  template <int Per>
  static void spread(const E* src, int64_t H, E* dst) {
    for (int64_t p = 0; p * W < H; ++p) {
      const int units = static_cast<int>(min64(W, H - p * W));
      for (int k = 0; k < Per; ++k, dst += W) {
        (src ? Vec<E>::load(src + k * H + p * W, units) : Vec<E>::set1(0)).store(dst);
      }
    }
  }
};

// Part k of [panel][Per][W] sums -> row k of [Per, H].
template <int Per, class E>
void gather_panels(const E* src, int64_t H, E* dst) {
  constexpr int W = Vec<E>::kWidth;
  for (int64_t p = 0; p * W < H; ++p) {
    const int units = static_cast<int>(min64(W, H - p * W));
    for (int k = 0; k < Per; ++k, src += W) Vec<E>::load(src).store(dst + k * H + p * W, units);
  }
}

template <class E>
FL_INLINE Vec<E> load_units(const E* p, int units) {
  return units == Vec<E>::kWidth ? Vec<E>::load(p) : Vec<E>::load(p, units);
}
template <class E>
FL_INLINE void store_units(Vec<E> x, E* p, int units) {
  units == Vec<E>::kWidth ? x.store(p) : x.store(p, units);
}

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

// Mean and 1 / sqrt(variance + epsilon) of Per * H numbers [panel][Per][W], whose padding is zero:
// the variance by a second pass over what is in L1, so that nothing cancels.
template <int Per, class E>
FL_INLINE void moments(const E* x, int64_t H, E& mean, E& scale) {
  constexpr int W = Vec<E>::kWidth;
  const E count = static_cast<E>(Per * H);
  const int64_t whole = H / W * Per, vectors = ceil_div(H, W) * Per;
  Vec<E> total[4] = {Vec<E>::set1(0), Vec<E>::set1(0), Vec<E>::set1(0), Vec<E>::set1(0)};
  int64_t k = 0;
  for (; k + 4 <= vectors; k += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) total[i] = total[i] + Vec<E>::load(x + (k + i) * W);
  }
  for (; k < vectors; ++k) total[0] = total[0] + Vec<E>::load(x + k * W);
  mean = sum((total[0] + total[1]) + (total[2] + total[3])) / count;
  const Vec<E> middle = Vec<E>::set1(mean);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) total[i] = Vec<E>::set1(0);
  for (k = 0; k + 4 <= whole; k += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vec<E> apart = Vec<E>::load(x + (k + i) * W) - middle;
      total[i] = fma(apart, apart, total[i]);
    }
  }
  for (; k < vectors; ++k) {
    const Vec<E> apart = Vec<E>::load(x + k * W) - middle;
    const Vec<E> counted = k < whole ? apart : first_lanes(apart, static_cast<int>(H % W));
    total[0] = fma(counted, counted, total[0]);
  }
  const E variance = sum((total[0] + total[1]) + (total[2] + total[3])) / count;
  scale = 1 / square_root(variance + static_cast<E>(kLayerNormEpsilon));
}
