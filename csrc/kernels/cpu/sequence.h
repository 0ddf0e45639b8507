// What forward and backward share: where the rows of a step lie, how memory is carved, how the
// reserve is laid out. Included inside an ISA's namespace.

// Rows of each step, padded or packed.
struct Steps {
  int64_t T, B;
  const int64_t* sizes;    // [T] or null when every step has B rows
  const int64_t* offsets;  // [T+1] with sizes

  int64_t rows(int64_t t) const { return sizes ? sizes[t] : B; }
  int64_t offset(int64_t t) const { return sizes ? offsets[t] : t * B; }
};

// A [T, B, features] tensor (packed: [N, features]) with unit stride over features.
template <class S>
struct Sequence {
  S* data;
  int64_t stride_t, stride_b;

  Sequence(S* base, int64_t t, int64_t b, const Steps& steps)
      : data(base), stride_t(steps.sizes ? 0 : t), stride_b(b) {}
  S* step(const Steps& steps, int64_t t) const {
    return steps.sizes ? data + steps.offsets[t] * stride_b : data + t * stride_t;
  }
  // Whether all rows of consecutive steps lie at one stride, and which.
  bool uniform(const Steps& steps) const {
    return steps.sizes || steps.B == 1 || stride_t == steps.B * stride_b;
  }
  int64_t uniform_stride(const Steps& steps) const {
    return !steps.sizes && steps.B == 1 ? stride_t : stride_b;
  }
};

// Hands out 64-byte aligned pieces of a workspace; with a null base it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
  template <class X>
  X* take(int64_t count) {
    char* piece = base_ ? base_ + used_ : nullptr;
    used_ += (static_cast<size_t>(count) * sizeof(X) + 63) / 64 * 64;
    return reinterpret_cast<X*>(piece);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// The reserve, per direction: activated gates as stored, unless they will be computed again, and
// cell states as computed. Step t holds rows(t) rows; within a step panel by panel: gates
// [panel][row][gate][W], c [panel][row][W].
template <class S, class E>
struct Reserve {
  static constexpr int W = Vec<E>::kWidth;
  S* gates;
  E* cells;
  int64_t panels;

  S* gates_at(const Steps& steps, int64_t t, int64_t p) const {
    return gates + (steps.offset(t) * panels + p * steps.rows(t)) * 4 * W;
  }
  E* cells_at(const Steps& steps, int64_t t, int64_t p) const {
    return cells + (steps.offset(t) * panels + p * steps.rows(t)) * W;
  }
  static Reserve at(Carver& carver, const Problem& problem, int64_t rows, int64_t panels) {
    Reserve r;
    r.panels = panels;
    r.gates = problem.recompute ? nullptr : carver.take<S>(rows * panels * 4 * W);
    r.cells = carver.take<E>(rows * panels * W);
    return r;
  }
};

inline Steps make_steps(const Problem& problem, int64_t* offsets) {
  Steps steps{problem.T, problem.B, problem.batch_sizes, offsets};
  if (steps.sizes && offsets) {
    offsets[0] = 0;
    for (int64_t t = 0; t < problem.T; ++t) offsets[t + 1] = offsets[t] + steps.sizes[t];
  }
  return steps;
}

// [B, H] in torch's layout <-> [panel][B][W].
template <class S, class E>
void pack_state(const S* src, int64_t B, int64_t H, E* dst) {
  constexpr int W = Vec<E>::kWidth;
  for (int64_t p = 0; p * W < H; ++p) {
    const int units = static_cast<int>(min64(W, H - p * W));
    for (int64_t b = 0; b < B; ++b, dst += W) {
      const Vec<E> value = src ? load_as(Tag<E>{}, src + b * H + p * W, units) : Vec<E>::set1(0);
      value.store(dst);
    }
  }
}

// Which part of the work one task of the recurrence does.
struct Share {
  int32_t first_side, last_side;  // directions [first, last)
  int64_t index, count;           // which of how many shares of those directions
};
inline Share share_of(int32_t rank, int32_t parties, int32_t D) {
  if (D == 1 || parties == 1) return {0, D, rank, parties};
  const int32_t first = parties / 2;  // parties of direction 0
  if (rank < first) return {0, 1, rank, first};
  return {1, 2, rank - first, parties - first};
}

// Row b of part i of n, such that the parts hold about the same number of steps.
inline int64_t split_steps(const Steps& steps, int64_t i, int64_t n) {
  if (!steps.sizes || i == 0 || i == n) return split(steps.B, i, n);
  const int64_t target = split(steps.offsets[steps.T], i, n);
  int64_t t = steps.T, before = 0;
  for (int64_t b = 0; b < steps.B; ++b) {
    while (t > 0 && steps.sizes[t - 1] <= b) --t;  // length of row b
    if (before >= target) return b;
    before += t;
  }
  return steps.B;
}
// The same, where parts begin at multiples of `block` rows.
inline int64_t split_rows(const Steps& steps, int64_t i, int64_t n, int64_t block) {
  const int64_t b = split_steps(steps, i, n);
  return i == n ? b : min64(steps.B, (b + block / 2) / block * block);
}
