// Gates that the reserve does not hold, computed again a chunk of steps before backward needs them.
// Included inside an ISA's namespace.
//
// All of h is known by then (y), so there is no recurrence: the chunk's rows [x_t, h_{t-1}] are
// copied side by side, and one product over all of them gives every gate. Each is formed as forward
// did it, from operands of the same type, but summed in another order: it may differ in its last
// bits.

template <class S>
struct RecomputeTiles {  // for types without a matrix unit
  RecomputeTiles(const Problem&, const Plan&) {}
  void carve(Carver&, int64_t) {}
};

#if FUSED_LSTM_MATRIX
// Weights and rows as tiles.
template <>
class RecomputeTiles<BFloat16> {
 public:
  RecomputeTiles(const Problem& problem, const Plan& plan)
      : q_(problem),
        plan_(plan),
        panels_(ceil_div(problem.H, 16)),
        x_blocks_(ceil_div(problem.I, kTileK)),
        k_blocks_(x_blocks_ + ceil_div(problem.P, kTileK)) {}

  void carve(Carver& carver, int64_t chunk_rows) {
    if (!plan_.matrix) return;
    for (int32_t d = 0; d < q_.D; ++d) {
      weights_[d] = carver.take<BFloat16>(panels_ * panel_size());
    }
    // Products take two row blocks at a time.
    rows_ = carver.take<BFloat16>((ceil_div(chunk_rows, kTileRows) + 1) * row_block());
  }
  void pack(int32_t d, int64_t p) const {
    const Weights& w = q_.weights[d];
    BFloat16* panel = weights_[d] + p * panel_size();
    pack_matrix_panel(static_cast<const BFloat16*>(w.w_ih), q_.H, q_.I, p, panel);
    pack_matrix_panel(static_cast<const BFloat16*>(w.w_hh), q_.H, q_.P, p,
                      panel + x_blocks_ * kGroups * kTileSize);
  }
  // A row [x, h]; null for zeros.
  void copy(const BFloat16* x, const BFloat16* h, const BFloat16* factors, int64_t row) const {
    put(x, q_.I, row, rows_);
    BFloat16* tiles = rows_ + x_blocks_ * kTileSize;
    if (h == nullptr || factors == nullptr) return put(h, q_.P, row, tiles);
    for (int64_t k = 0; k < q_.P; k += kTileK, tiles += kTileSize) {
      BFloat16 scaled[kTileK];
      const int64_t count = min64(kTileK, q_.P - k);
      scale_row<float>(h + k, factors + k, count, scaled);
      copy_row(scaled, count, row, k_blocks_, tiles);
    }
  }
  // sums [up to 32 rows][4 * 16]: rows from `row` on (a multiple of 16), panel p.
  void product(MatrixUnit& unit, int32_t d, int64_t p, int64_t row, int blocks, float* sums) const {
    const MatrixOperand operand{rows_ + row / kTileRows * row_block(), row_block(),
                                weights_[d] + p * panel_size(), k_blocks_};
    matrix_product<1, 1>(unit, &operand, 1, blocks, kGroups, sums, kGroups * 16);
  }

 private:
  int64_t row_block() const { return k_blocks_ * kTileSize; }
  int64_t panel_size() const { return k_blocks_ * kGroups * kTileSize; }
  void put(const BFloat16* from, int64_t n, int64_t row, BFloat16* tiles) const {
    if (from) {
      copy_row(from, n, row, k_blocks_, tiles);
    } else {
      zero_row(n, row, k_blocks_, tiles);
    }
  }

  const Problem& q_;
  const Plan& plan_;
  const int64_t panels_, x_blocks_, k_blocks_;
  BFloat16* weights_[2] = {};  // [panel][k blocks of I, then of P][B's tiles]
  BFloat16* rows_ = nullptr;   // [row block][k blocks][A's tile]
};
#endif

template <class S, class E>
class Recompute {
 public:
  static constexpr int W = Vec<E>::kWidth;
  static constexpr int G = 4 * W;
  using A = typename Operand<S, E>::type;

  Recompute(const Problem& problem, const Plan& plan)
      : q_(problem),
        plan_(plan),
        panels_(ceil_div(problem.H, W)),
        x_rows_(panel_rows<S, E>(problem.I)),
        K_(x_rows_ + panel_rows<S, E>(problem.P)),
        tiles_(problem, plan) {}

  bool on() const { return q_.recompute; }

  void carve(Carver& carver, int64_t chunk_rows) {
    if (!on()) return;
    chunk_rows_ = chunk_rows;
    for (int32_t d = 0; d < q_.D; ++d) {
      Side& side = sides_[d];
      side.weights = carver.take<E>(plan_.matrix ? 0 : panels_ * K_ * G);
      side.bias = carver.take<E>(panels_ * G);
      side.gates = carver.take<S>(panels_ * chunk_rows * G);
    }
    rows_ = carver.take<A>(plan_.matrix ? 0 : chunk_rows * (q_.I + q_.P));
    tiles_.carve(carver, chunk_rows);
  }

  void pack(const Parallel& parallel) const {
    if (!on()) return;
    const int64_t tasks = q_.D * panels_;
    for (int32_t d = 0; d < q_.D; ++d) {
      pack_bias(static_cast<const S*>(q_.weights[d].b_ih),
                static_cast<const S*>(q_.weights[d].b_hh), q_.H, sides_[d].bias);
    }
    run_tasks(parallel, plan_.threads, [&](int64_t i) {
      for (int64_t j = split(tasks, i, plan_.threads); j < split(tasks, i + 1, plan_.threads);
           ++j) {
        const int32_t d = static_cast<int32_t>(j / panels_);
        const Weights& weights = q_.weights[d];
        if constexpr (has_matrix<S>()) {
          if (plan_.matrix) {
            tiles_.pack(d, j % panels_);
            continue;
          }
        }
        pack_gate_panel(static_cast<const S*>(weights.w_ih), q_.H, q_.I, j % panels_, K_, 0,
                        sides_[d].weights);
        pack_gate_panel(static_cast<const S*>(weights.w_hh), q_.H, q_.P, j % panels_, K_, x_rows_,
                        sides_[d].weights);
      }
    });
  }

  // The gates of panel p, [row][4W], from row `first` of the chunk on.
  const S* gates(int32_t d, int64_t p, int64_t first) const {
    return sides_[d].gates + (p * chunk_rows_ + first) * G;
  }

  // Time steps [begin, end) of direction d. x(t, b) and h(t, b): what row b of step t takes, null
  // for zeros.
  template <class X, class H>
  void run(const Parallel& parallel, int32_t d, const Steps& steps, int64_t begin, int64_t end,
           const X& x, const H& h) const {
    const int64_t count = end - begin, copiers = min64(plan_.threads, count);
    const int64_t rows = steps.offset(end) - steps.offset(begin);
    run_tasks(parallel, copiers, [&](int64_t i) {
      for (int64_t t = begin + split(count, i, copiers); t < begin + split(count, i + 1, copiers);
           ++t) {
        const int64_t row = steps.offset(t) - steps.offset(begin);
        if constexpr (has_matrix<S>()) {
          for (int64_t b = 0; plan_.matrix && b < steps.rows(t); ++b) {
            tiles_.copy(x(t, b), h(t, b), h_factors_of<S>(q_, d, b), row + b);
          }
          if (plan_.matrix) continue;
        }
        A* dst = rows_ + row * (q_.I + q_.P);
        for (int64_t b = 0; b < steps.rows(t); ++b, dst += q_.I + q_.P) {
          copy(x(t, b), nullptr, q_.I, dst);
          copy(h(t, b), h_factors_of<S>(q_, d, b), q_.P, dst + q_.I);
        }
      }
    });
    run_tasks(parallel, plan_.threads, [&](int64_t i) {
      for (int64_t p = split(panels_, i, plan_.threads); p < split(panels_, i + 1, plan_.threads);
           ++p) {
        if constexpr (has_matrix<S>()) {
          if (plan_.matrix) {
            matrix_panel(d, p, rows);
            continue;
          }
        }
        for (int64_t row = 0; row < rows; row += kRowBlock) {
          panel(d, p, row, min64(kRowBlock, rows - row));
        }
      }
    });
  }

 private:
  static constexpr int64_t kRowBlock = 240;  // rows that stay in L2 while a panel passes over them

  struct Side {
    E* weights = nullptr;  // [panel][K][4W]: rows of W_ih, then of W_hh
    E* bias = nullptr;     // [panel][4W]
    S* gates = nullptr;    // [panel][chunk rows][4W]
  };

  static void copy(const S* from, const S* factors, int64_t n, A* to) {
    for (int64_t k = 0; k < n; k += W) {
      const int count = static_cast<int>(min64(W, n - k));
      Vec<E> value = from ? load_as(Tag<E>{}, from + k, count) : Vec<E>::set1(0);
      if (factors) value = value * load_as(Tag<E>{}, factors + k, count);
      store_as(value, to + k, count);
    }
  }

  void panel(int32_t d, int64_t p, int64_t first, int64_t rows) const {
    const Side& side = sides_[d];
    for_tiles<4>(rows, GateTile{rows_ + first * (q_.I + q_.P), side.weights + p * K_ * G,
                                side.bias + p * G, side.gates + (p * chunk_rows_ + first) * G, q_.I,
                                q_.P, x_rows_, plan_.k_block});
  }
  // The same on the matrix unit, all rows of the chunk.
  void matrix_panel(int32_t d, int64_t p, int64_t rows) const {
    const Side& side = sides_[d];
    MatrixUnit unit;
    alignas(64) E sums[2 * kTileRows * G];
    for (int64_t row = 0; row < rows; row += 2 * kTileRows) {
      const int64_t count = min64(2 * kTileRows, rows - row);
      tiles_.product(unit, d, p, row, count > kTileRows ? 2 : 1, sums);
      for (int64_t r = 0; r < count; ++r) {
        store_gates(sums + r * G, side.bias + p * G, side.gates + (p * chunk_rows_ + row + r) * G);
      }
    }
  }
  static FL_INLINE void store_gates(const E* sums, const E* bias, S* out) {
    const auto z = [&](int gate) {
      return Vec<E>::load(sums + gate * W) + Vec<E>::load(bias + gate * W);
    };
    Gates<Vec<E>> gate{z(0), z(1), z(2), z(3)};
    activate(gate);
    store_as(gate.i, out);
    store_as(gate.f, out + W);
    store_as(gate.g, out + 2 * W);
    store_as(gate.o, out + 3 * W);
  }
  struct GateTile {
    const A* a;  // [rows][I + P]
    const E *w, *bias;
    S* gates;
    int64_t I, P, x_rows, k_block;
    template <int R>
    FL_INLINE void run(int64_t first) const {
      alignas(64) E sums[R * G];
      const A* rows = a + first * (I + P);
      add<R>(sums, rows, w, I, true);
      add<R>(sums, rows + I, w + x_rows * G, P, false);
#pragma GCC unroll 1
      for (int r = 0; r < R; ++r) store_gates(sums + r * G, bias, gates + (first + r) * G);
    }
    // sums = or += n features of each row times their rows of a panel, in blocks. A function of its
    // own, so that nothing else takes registers from its loop.
    template <int R>
    __attribute__((noinline)) void add(E* sums, const A* rows, const E* panel, int64_t n,
                                       bool fresh) const {
      const int64_t features = panel_rows<S, E>(n);
      for (int64_t k = 0; k < features; k += k_block) {
        Tile<E, R, 4> tile;
        tile.zero();
        multiply_panel<E>(tile, rows, I + P, panel, k, min64(k + k_block, features), n);
        if (!fresh || k > 0) tile.add(sums, G);
        tile.store(sums, G);
      }
    }
  };

  const Problem& q_;
  const Plan& plan_;
  const int64_t panels_, x_rows_, K_;
  int64_t chunk_rows_ = 0;
  Side sides_[2];
  A* rows_ = nullptr;  // [chunk rows][I + P]
  RecomputeTiles<S> tiles_;
};
