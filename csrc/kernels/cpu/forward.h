// LSTM forward for one layer. Included inside an ISA's namespace.
//
// For each step, each tile of rows and each panel of W hidden units, the four gates of those units
// are accumulated in registers over [x_t, h_{t-1}], activated there, and c and h leave as results:
// no gate buffer exists in inference. S is the stored type, E the type computed in, and A that in
// which products take x and h: as stored where the processor can, otherwise converted to E.

template <class S, class E>
class Forward {
 public:
  static constexpr int W = Vec<E>::kWidth;
  static constexpr int G = 4 * W;  // one row of a gate panel
  using A = typename Operand<S, E>::type;

  Forward(const Problem& problem, const Outputs& outputs, const Plan& plan, void* workspace)
      : q_(problem),
        out_(outputs),
        plan_(plan),
        panels_(ceil_div(problem.H, W)),
        x_rows_(plan.fused ? panel_rows<S, E>(problem.I) : 0),
        K_(x_rows_ + panel_rows<S, E>(problem.P)),
        chunk_rows_(min64(plan.chunk_steps, problem.T) * problem.B),
        projection_(problem, plan_),
        marks_(problem, outputs, plan_),
        matrix_(problem, plan_),
        streams_(plan.stream_gates && reinterpret_cast<uintptr_t>(outputs.reserve) % 64 == 0) {
    Carver carver(workspace);
    offsets_ = carver.take<int64_t>(q_.batch_sizes ? q_.T + 1 : 0);
    zeros_ = carver.take<A>(q_.P);
    barriers_ = carver.take<Barrier>(q_.D);
    const bool training = outputs.reserve != nullptr;
    for (int32_t d = 0; d < q_.D; ++d) {
      Side& side = sides_[d];
      if (!plan.dot && !plan.matrix) side.weights = carver.take<E>(panels_ * K_ * G);
      if (!plan.fused) {
        side.w_x = carver.take<E>(plan.matrix ? 0 : panels_ * panel_rows<S, E>(q_.I) * G);
        side.projected = carver.take<E>(panels_ * chunk_rows_ * G);
      }
      side.bias = carver.take<E>(panels_ * G);
      side.c = carver.take<E>(panels_ * q_.B * W);
      if (kConverts) {
        side.h = carver.take<A>(2 * q_.B * q_.P);
        side.h0 = carver.take<A>(q_.h0 ? q_.B * q_.P : 0);
        side.x = carver.take<A>(chunk_rows_ * q_.I);
      }
    }
    projection_.carve(carver);
    marks_.carve(carver);
    matrix_.carve(carver, chunk_rows_);
    const int64_t part_rows =
        (projection_.on() || goes_by_blocks(0, panels_)) && !plan.dot && !plan.matrix ? q_.B : 0;
    for (int32_t i = 0; i < plan.threads && i < kMaxParts; ++i) {
      E* part = carver.take<E>(part_rows * G);
      parts_[i] = part;
    }
    workspace_bytes_ = carver.used();
    if (workspace == nullptr) return;
    steps_ = make_steps(problem, offsets_);
    if (training) {
      Carver reserve(outputs.reserve);
      for (int32_t d = 0; d < q_.D; ++d) {
        sides_[d].reserve = Reserve<S, E>::at(reserve, q_, steps_.offset(q_.T), panels_);
      }
    }
  }

  size_t workspace_bytes() const { return workspace_bytes_; }

  void run(const Parallel& parallel) {
    for (int64_t k = 0; k < q_.P; ++k) zeros_[k] = A{};
    for (int32_t d = 0; d < q_.D; ++d) new (&barriers_[d]) Barrier();
    const bool by_rows = plan_.split == Split::kRows || !parallel.concurrent;
    prepare(parallel);
    for (int64_t first = 0; first < q_.T; first += plan_.chunk_steps) {
      const int64_t last = min64(q_.T, first + plan_.chunk_steps);
      if constexpr (kConverts) convert_x(parallel, first, last);
      if (!plan_.fused) project_x(parallel, first, last);
      if (by_rows) {
        run_tasks(parallel, plan_.threads, [&](int64_t i) {
          const Share share = share_of(static_cast<int32_t>(i), plan_.threads, q_.D);
          for (int32_t d = share.first_side; d < share.last_side; ++d) {
            const Work work{first,
                            last,
                            split_rows(steps_, share.index, share.count, plan_.row_block),
                            split_rows(steps_, share.index + 1, share.count, plan_.row_block),
                            0,
                            panels_,
                            i};
            recur(d, work, nullptr, 1, 0);
          }
        });
      } else {
        run_team(parallel, plan_.threads, [&](int32_t rank, int32_t parties) {
          const Share share = share_of(rank, parties, q_.D);
          for (int32_t d = share.first_side; d < share.last_side; ++d) {
            Barrier* barrier = share.count > 1 ? &barriers_[d] : nullptr;
            const Work work{first,
                            last,
                            0,
                            q_.B,
                            split(panels_, share.index, share.count),
                            split(panels_, share.index + 1, share.count),
                            rank};
            recur(d, work, barrier, static_cast<int32_t>(share.count), share.index);
          }
        });
      }
    }
    finish();
  }

 private:
  static constexpr bool kMatrix = has_matrix<S>();
  static constexpr bool kConverts = !std::is_same<S, A>::value;
  static constexpr int kMaxParts = 256;
  static constexpr int kCellRows = kRegisters == 32 ? 3 : 2;  // cells computed side by side

  // One direction's data.
  struct Side {
    E* weights = nullptr;    // [panel][K][4W]: rows of W_ih (if fused) then of W_hh
    E* w_x = nullptr;        // [panel][rows of I][4W] when the input is projected apart
    E* projected = nullptr;  // [panel][chunk rows][4W]
    E* bias = nullptr;       // [panel][4W]
    E* c = nullptr;          // [panel][B][W]: the cell state, or c0 in training
    A* h = nullptr;          // [2][B][P] when S must be converted
    A* h0 = nullptr;         // [B][P], likewise
    A* x = nullptr;          // [chunk rows][I], likewise
    Reserve<S, E> reserve{nullptr, nullptr, 0};
  };

  // Rows of one step whose previous state lies in one place.
  struct Segment {
    int64_t begin, end;
    const A* h;  // row b at h + b * h_row
    int64_t h_row;
    const E* c;  // panel p, row b at c + p * c_panel + b * W
    int64_t c_panel;
    const A* h_kept = nullptr;  // what zoneout keeps of h: h itself, without factors
    int64_t h_kept_row = 0;
  };

  // What one task of the recurrence does: steps [first, last), rows [b0, b1), panels [p0, p1).
  struct Work {
    int64_t first, last, b0, b1, p0, p1;
    int64_t task;
  };

  // Everything the tiles of one (step, segment, panel) need.
  struct Context {
    const A* x;  // row b at x + b * x_row; null when projected
    int64_t x_row;
    const Segment* segment;
    const E* weights;  // this panel's rows
    const E* start;    // row b's starting sums at start + b * start_row (stride 0: the bias)
    int64_t start_row;
    const E* c_in;
    E* c_out;
    S* gates;      // or null
    bool streams;  // gates go past the caches
    E* m;          // what is to be projected, row b at m + b * m_row; null: h itself, to y
    int64_t m_row;
    S* y;  // row b at y + b * y_row
    int64_t y_row;
    BFloat16* h_tiles = nullptr;  // matrix unit: row 0
    int64_t h_block = 0;          // and from a block of rows to the next
    E* h_copy;                    // converted types: h as stored, row b at h_copy + b * P
    int64_t P;
    int units;
    const Problem* zoneout = nullptr;  // whose units keep values, or null; and where they stand:
    int64_t t, p;
    int32_t d;
  };

  bool keeps_gates() const { return out_.reserve != nullptr && !q_.recompute; }
  int64_t time_of(int32_t d, int64_t s) const { return d == 0 ? s : q_.T - 1 - s; }
  Sequence<const S> x_sequence() const {
    return {static_cast<const S*>(q_.x), q_.x_t, q_.x_b, steps_};
  }
  Sequence<S> y_sequence(int32_t d) const {
    return {static_cast<S*>(out_.y) + d * q_.P, out_.y_t, out_.y_b, steps_};
  }
  // First time step of the chunk of processing steps [first, last).
  int64_t chunk_begin(int32_t d, int64_t first, int64_t last) const {
    return d == 0 ? first : q_.T - last;
  }

  void prepare(const Parallel& parallel) {
    for (int32_t d = 0; d < q_.D; ++d) {
      Side& side = sides_[d];
      const Weights& weights = q_.weights[d];
      pack_bias(static_cast<const S*>(weights.b_ih), static_cast<const S*>(weights.b_hh), q_.H,
                side.bias);
      const S* c0 = static_cast<const S*>(q_.c0);
      pack_state(c0 ? c0 + d * q_.B * q_.H : nullptr, q_.B, q_.H, side.c);
      if constexpr (kConverts) {
        if (q_.h0 == nullptr) continue;
        const S* h0 = static_cast<const S*>(q_.h0) + d * q_.B * q_.P;
        for (int64_t i = 0; i < q_.B * q_.P; ++i) side.h0[i] = to_float(h0[i]);
      }
    }
    projection_.pack(parallel);
    if constexpr (kMatrix) {
      if (plan_.matrix) return prepare_matrix(parallel);
    }
    if (plan_.dot && plan_.fused) return;
    const int64_t tasks = q_.D * panels_;
    run_tasks(parallel, plan_.threads, [&](int64_t i) {
      for (int64_t j = split(tasks, i, plan_.threads); j < split(tasks, i + 1, plan_.threads);
           ++j) {
        const int32_t d = static_cast<int32_t>(j / panels_);
        const int64_t p = j % panels_;
        const S* w_ih = static_cast<const S*>(q_.weights[d].w_ih);
        const S* w_hh = static_cast<const S*>(q_.weights[d].w_hh);
        pack_gate_panel(w_ih, q_.H, q_.I, p, plan_.fused ? K_ : panel_rows<S, E>(q_.I), 0,
                        plan_.fused ? sides_[d].weights : sides_[d].w_x);
        if (plan_.dot) continue;
        pack_gate_panel(w_hh, q_.H, q_.P, p, K_, x_rows_, sides_[d].weights);
        if constexpr (W >= 16) {
          const int64_t vectors = Narrow<E>::vectors(q_.H, p);
          if (vectors < 4) Narrow<E>::squeeze(sides_[d].weights + p * K_ * G, K_, vectors);
        }
      }
    });
  }

  void convert_x(const Parallel& parallel, int64_t first, int64_t last) {
    const Sequence<const S> x = x_sequence();
    const int64_t count = last - first;
    for (int32_t d = 0; d < q_.D; ++d) {
      const int64_t begin = chunk_begin(d, first, last);
      run_tasks(parallel, min64(plan_.threads, count), [&](int64_t i) {
        const int64_t n = min64(plan_.threads, count);
        for (int64_t t = begin + split(count, i, n); t < begin + split(count, i + 1, n); ++t) {
          A* dst = sides_[d].x + (steps_.offset(t) - steps_.offset(begin)) * q_.I;
          const S* src = x.step(steps_, t);
          for (int64_t b = 0; b < steps_.rows(t); ++b, dst += q_.I) {
            convert_row(src + b * x.stride_b, q_.I, dst);
          }
        }
      });
    }
  }
  static void convert_row(const S* src, int64_t n, A* dst) {
    int64_t k = 0;
    for (; k + W <= n; k += W) load_as(Tag<E>{}, src + k).store(dst + k);
    if (k < n)
      load_as(Tag<E>{}, src + k, static_cast<int>(n - k)).store(dst + k, static_cast<int>(n - k));
  }

  // Rows of x of step t as computed in, and their stride.
  const A* x_rows(int32_t d, int64_t t, int64_t chunk, int64_t& row) const {
    if constexpr (kConverts) {
      row = q_.I;
      return sides_[d].x + (steps_.offset(t) - steps_.offset(chunk)) * q_.I;
    } else {
      const Sequence<const S> x = x_sequence();
      row = x.stride_b;
      return x.step(steps_, t);
    }
  }

  // bias + x W_ih^T for a block of rows, one panel, one k-block.
  struct ProjectTile {
    const A* x;
    const E *w, *bias;
    E* out;
    int64_t x_row, k0, k1, n;
    template <int R>
    FL_INLINE void run(int64_t first) const {
      Tile<E, R, 4> tile;
      E* rows = out + first * G;
      tile.zero();
      multiply_panel<E>(tile, x + first * x_row, x_row, w, k0, k1, n);
      tile.add(bias ? bias : rows, bias ? 0 : G);
      tile.store(rows, G);
    }
  };

  void project_x(const Parallel& parallel, int64_t first, int64_t last) {
    if constexpr (kMatrix) {
      if (plan_.matrix) return project_x_matrix(parallel, first, last);
    }
    const int64_t tasks = q_.D * panels_;
    run_tasks(parallel, plan_.threads, [&](int64_t i) {
      for (int64_t j = split(tasks, i, plan_.threads); j < split(tasks, i + 1, plan_.threads);
           ++j) {
        project_panel(static_cast<int32_t>(j / panels_), j % panels_, first, last);
      }
    });
  }
  void project_panel(int32_t d, int64_t p, int64_t first, int64_t last) {
    const Side& side = sides_[d];
    const int64_t begin = chunk_begin(d, first, last), end = begin + last - first;
    const bool uniform = kConverts || x_sequence().uniform(steps_);
    const int64_t features = panel_rows<S, E>(q_.I), blocks = ceil_div(features, plan_.k_block);
    // Rows that stay in L2 while the k-blocks of the panel pass over them.
    const int64_t row_block = 240;
    for (int64_t t = begin; t < end; ++t) {
      int64_t row;
      const A* x = x_rows(d, t, begin, row);
      int64_t rows = steps_.rows(t);
      E* out = side.projected + (p * chunk_rows_ + steps_.offset(t) - steps_.offset(begin)) * G;
      if (uniform) {
        if constexpr (!kConverts) row = x_sequence().uniform_stride(steps_);
        rows = steps_.offset(end) - steps_.offset(begin);
        t = end;
      }
      for (int64_t r = 0; r < rows; r += row_block) {
        for (int64_t k = 0; k < blocks; ++k) {
          const int64_t k0 = split(features, k, blocks), k1 = split(features, k + 1, blocks);
          for_tiles<4>(
              min64(row_block, rows - r),
              ProjectTile{x + r * row, side.w_x + p * features * G,
                          k == 0 ? side.bias + p * G : nullptr, out + r * G, row, k0, k1, q_.I});
        }
      }
    }
  }

  // The cells of `rows` rows whose pre-activations are sums [rows][gate][W] -> c, h, and what
  // training keeps. kStarted: the sums hold their starting sums already. A function of its own: one
  // in every size of tile would be most of the code there is.
  template <bool kStarted = true>
  static __attribute__((noinline)) void finish_tile(const Context& at, const E* sums, int64_t row,
                                                    int64_t rows) {
    if (at.zoneout) return finish_zoneout<kStarted>(at, sums, row, rows);
    finish_each<kStarted, false>(at, sums, row, rows);
  }
  template <bool kStarted>
  static __attribute__((noinline)) void finish_zoneout(const Context& at, const E* sums,
                                                       int64_t row, int64_t rows) {
    finish_each<kStarted, true>(at, sums, row, rows);
  }
  template <bool kStarted, bool kZoneout>
  static FL_INLINE void finish_each(const Context& at, const E* sums, int64_t row, int64_t rows) {
    int64_t r = 0;
#pragma GCC unroll 1
    for (; r + kCellRows <= rows; r += kCellRows) {
      finish_rows<kCellRows, kStarted, kZoneout>(at, sums + r * G, row + r);
    }
#pragma GCC unroll 1
    for (; r < rows; ++r) finish_rows<1, kStarted, kZoneout>(at, sums + r * G, row + r);
  }
  template <int N, bool kStarted, bool kZoneout>
  static FL_INLINE void finish_rows(const Context& at, const E* sums, int64_t row) {
    Gates<Rows<E, N>> gate;
    Rows<E, N> c_prev, c, h;
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      const E* z = sums + i * G;
      gate.i.v[i] = Vec<E>::load(z);
      gate.f.v[i] = Vec<E>::load(z + W);
      gate.g.v[i] = Vec<E>::load(z + 2 * W);
      gate.o.v[i] = Vec<E>::load(z + 3 * W);
      if constexpr (!kStarted) {
        const E* start = at.start + (row + i) * at.start_row;
        gate.i.v[i] = gate.i.v[i] + Vec<E>::load(start);
        gate.f.v[i] = gate.f.v[i] + Vec<E>::load(start + W);
        gate.g.v[i] = gate.g.v[i] + Vec<E>::load(start + 2 * W);
        gate.o.v[i] = gate.o.v[i] + Vec<E>::load(start + 3 * W);
      }
      c_prev.v[i] = Vec<E>::load(at.c_in + (row + i) * W);
    }
    cell_forward(gate, c_prev, c, h);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      const int64_t b = row + i;
      if constexpr (kZoneout) {
        const A* h_prev = at.segment->h_kept + b * at.segment->h_kept_row + at.p * W;
        const Kept<E> kept(*at.zoneout, at.d, at.t, b, at.p);
        h.v[i] = kept.mix_h(
            at.units == W ? load_as(Tag<E>{}, h_prev) : load_as(Tag<E>{}, h_prev, at.units),
            h.v[i]);
        c.v[i] = kept.mix_c(Vec<E>::load(at.c_in + b * W), c.v[i]);
      }
      c.v[i].store(at.c_out + b * W);
      if (at.gates) {
        S* saved = at.gates + b * G;
        const Vec<E> values[4] = {gate.i.v[i], gate.f.v[i], gate.g.v[i], gate.o.v[i]};
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          if (at.streams) {
            stream_as(values[j], saved + j * W);
          } else {
            store_as(values[j], saved + j * W);
          }
        }
      }
      if (at.m) {
        h.v[i].store(at.m + b * at.m_row);
        continue;
      }
      if constexpr (!kStarted) {
        const Vec<E> known = at.units == W ? h.v[i] : first_lanes(h.v[i], at.units);
        store_as(known, at.h_tiles + row_in_tiles(b, at.h_block));
      }
      S* y = at.y + b * at.y_row;
      if (at.units == W) {
        store_as(h.v[i], y);
        if constexpr (kConverts) load_as(Tag<E>{}, y).store(at.h_copy + b * at.P);
      } else {
        store_as(h.v[i], y, at.units);
        if constexpr (kConverts) {
          load_as(Tag<E>{}, y, at.units).store(at.h_copy + b * at.P, at.units);
        }
      }
    }
  }

  // Asks for the lines that the cells of R rows will write: stores leave in order, and one that
  // waits for its line holds up all behind it. Lines of a single row follow each other.
  template <int R>
  static FL_INLINE void expect_results(const Context& at, int64_t row) {
    if constexpr (R == 1) return;
#pragma GCC unroll 1
    for (int64_t b = row; b < row + R; ++b) {
      __builtin_prefetch(at.m ? static_cast<const void*>(at.m + b * at.m_row)
                              : static_cast<const void*>(at.y + b * at.y_row),
                         1, 3);
      __builtin_prefetch(at.c_out + b * W, 1, 3);
    }
  }

  // tile = [x, h] of its rows times rows k0 .. k1 of the panel, of which x_rows are W_ih's.
  template <int NV = 4, class T>
  static FL_INLINE void multiply_block(const Context& at, int64_t row, int64_t x_rows, int64_t k0,
                                       int64_t k1, int64_t I, int64_t P, T& tile) {
    tile.zero();
    if (k0 < x_rows) {
      multiply_panel<E, NV>(tile, at.x + row * at.x_row, at.x_row, at.weights, k0,
                            min64(k1, x_rows), I);
    }
    if (k1 > x_rows) {
      multiply_panel<E, NV>(tile, at.segment->h + row * at.segment->h_row, at.segment->h_row,
                            at.weights + x_rows * NV * W, max64(k0, x_rows) - x_rows, k1 - x_rows,
                            P);
    }
  }

  // All of k for one tile of rows: blocks are added up in `sums`, which stays in L1, while the
  // panel's weights pass by from L2. The cells follow at once.
  struct GateTile {
    const Context& at;
    int64_t row0;  // first row of the segment
    int64_t K, x_rows, k_blocks;
    int64_t I, P;  // features of x and of h
    Prefetch prefetch;
    template <int R>
    FL_INLINE void run(int64_t offset) const {
      const int64_t row = row0 + offset;
      prefetch.run<R>(offset);
      // Through memory: indexing a tile by a running row would keep it out of registers all along.
      alignas(64) E sums[R * G];
      for (int64_t k = 0; k < k_blocks; ++k) {
        const int64_t k0 = split(K, k, k_blocks), k1 = split(K, k + 1, k_blocks);
        if (k + 1 == k_blocks) expect_results<R>(at, row);
        Tile<E, R, 4> tile;
        multiply_block(at, row, x_rows, k0, k1, I, P, tile);
        tile.add(k == 0 ? at.start + row * at.start_row : sums, k == 0 ? at.start_row : G);
        tile.store(sums, G);
      }
      finish_tile(at, sums, row, R);
    }
  };

  // The same of a narrow panel. Its sums are split in two for a single row alone, as a wide one's:
  // those of more rows must not depend on how many share a tile.
  template <int NV>
  struct NarrowTile {
    const Context& at;
    int64_t row0, K, x_rows, k_blocks, I, P;
    template <int R>
    FL_INLINE void run(int64_t offset) const {
      const int64_t row = row0 + offset;
      alignas(64) E narrow[R * NV * W];
      for (int64_t k = 0; k < k_blocks; ++k) {
        Tile<E, R, NV, R == 1> tile;
        multiply_block<NV>(at, row, x_rows, split(K, k, k_blocks), split(K, k + 1, k_blocks), I, P,
                           tile);
        if (k > 0) tile.add(narrow, NV * W);
        tile.store(narrow, NV * W);
      }
      finish_narrow<NV>(at, narrow, row, R);
    }
  };
  template <int NV>
  static __attribute__((noinline)) void finish_narrow(const Context& at, const E* narrow,
                                                      int64_t row, int64_t rows) {
    alignas(64) E sums[max_rows<1>() * G];
    for (int64_t r = 0; r < rows; ++r) {
      const E* start = at.start + (row + r) * at.start_row;
      Vec<E> z[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        z[k] = k < NV ? Vec<E>::load(narrow + (r * NV + k) * W) : Vec<E>::set1(0);
      }
      transpose_quarters(z);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) (Vec<E>::load(start + k * W) + z[k]).store(sums + r * G + k * W);
    }
    finish_tile(at, sums, row, rows);
  }
  template <int NV>
  void narrow_panel(const Context& at, int64_t k_blocks) const {
    for_tiles<NV>(at.segment->end - at.segment->begin,
                  NarrowTile<NV>{at, at.segment->begin, K_, x_rows_, k_blocks, q_.I, q_.P});
  }

  // One block of k for one tile of rows, where tiles are small or weights far: all rows pass by
  // before the next block, and their sums wait in memory.
  struct BlockTile {
    const Context& at;
    int64_t x_rows, k0, k1;
    int64_t I, P;
    E* sums;  // the segment's first row
    Prefetch prefetch;
    template <int R>
    FL_INLINE void run(int64_t offset) const {
      const int64_t row = at.segment->begin + offset;
      prefetch.run<R>(offset);
      Tile<E, R, 4> tile;
      multiply_block(at, row, x_rows, k0, k1, I, P, tile);
      E* out = sums + offset * G;
      tile.add(k0 == 0 ? at.start + row * at.start_row : out, k0 == 0 ? at.start_row : G);
      tile.store(out, G);
    }
  };
  // A panel for all rows of a segment; `next` is the panel to come, or null where it is near.
  void panel_by_blocks(const Context& at, int64_t k_blocks, const E* next, E* sums) const {
    const int64_t rows = at.segment->end - at.segment->begin;
    const auto bytes = [&](int64_t k) {
      return (split(K_, k + 1, k_blocks) - split(K_, k, k_blocks)) * G * int64_t{sizeof(E)};
    };
    for (int64_t k = 0; k < k_blocks; ++k) {
      const int64_t k0 = split(K_, k, k_blocks), k1 = split(K_, k + 1, k_blocks);
      const bool last = k + 1 == k_blocks;
      const E* ahead = last || next == nullptr ? next : at.weights + k1 * G;
      for_tiles<4>(rows, BlockTile{at, x_rows_, k0, k1, q_.I, q_.P, sums,
                                   Prefetch(ahead, bytes(last ? 0 : k + 1), rows)});
    }
    finish_tile(at, sums, at.segment->begin, rows);
  }

#if FUSED_LSTM_PAIRS
  // The same with both as stored.
  static FL_INLINE Vec<E> dot_rows(const BFloat16* w, int64_t w_row, int units, const BFloat16* v,
                                   int64_t n) {
    Vec<E> acc[W];
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j) acc[j] = Vec<E>::set1(0);
    int64_t k = 0;
    if (units == W) {
      for (; k + 2 * W <= n; k += 2 * W) {
        const Vec<E> x = load_pairs(v + k);
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) acc[j] = fma_pairs(x, load_pairs(w + j * w_row + k), acc[j]);
      }
    }
    for (; k < n; k += 2 * W) {
      const int count = static_cast<int>(min64(2 * W, n - k));
      const Vec<E> x = load_pairs(v + k, count);
      for (int j = 0; j < units; ++j) {
        acc[j] = fma_pairs(x, load_pairs(w + j * w_row + k, count), acc[j]);
      }
    }
    return sum_each(acc);
  }
#endif

  // Sums of W rows of a matrix, rows[j] . v, as one vector. Of whole rows a few at a time: more lie
  // too far apart for what fetches ahead.
  static FL_INLINE Vec<E> dot_rows(const S* w, int64_t w_row, int units, const E* v, int64_t n) {
    constexpr int kRows = W < 8 ? W : 8;
    Vec<E> acc[W];
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j) acc[j] = Vec<E>::set1(0);
    int64_t k = 0;
    if (units == W) {
#pragma GCC unroll 4
      for (int first = 0; first < W; first += kRows) {
        for (k = 0; k + W <= n; k += W) {
          const Vec<E> x = Vec<E>::load(v + k);
#pragma GCC unroll 8
          for (int j = first; j < first + kRows; ++j) {
            acc[j] = fma(x, load_as(Tag<E>{}, w + j * w_row + k), acc[j]);
          }
        }
      }
    } else {
      for (; k + W <= n; k += W) {
        const Vec<E> x = Vec<E>::load(v + k);
        for (int j = 0; j < units; ++j) {
          acc[j] = fma(x, load_as(Tag<E>{}, w + j * w_row + k), acc[j]);
        }
      }
    }
    if (k < n) {
      const int tail = static_cast<int>(n - k);
      const Vec<E> x = Vec<E>::load(v + k, tail);
      for (int j = 0; j < units; ++j) {
        acc[j] = fma(x, load_as(Tag<E>{}, w + j * w_row + k, tail), acc[j]);
      }
    }
    return sum_each(acc);
  }

  // What a dot product takes at a time of a vector and of the weights, all of it or the first n.
  static constexpr bool kDotPairs = !std::is_same<A, E>::value;
  static constexpr int64_t kDotStep = kDotPairs ? 2 * W : W;
  template <class... N>
  static FL_INLINE Vec<E> dot_vector(const A* v, N... n) {
    if constexpr (kDotPairs) {
      return load_pairs(v, n...);
    } else {
      return Vec<E>::load(v, n...);
    }
  }
  template <class... N>
  static FL_INLINE Vec<E> dot_weights(const S* w, N... n) {
    if constexpr (kDotPairs) {
      return load_pairs(w, n...);
    } else {
      return load_as(Tag<E>{}, w, n...);
    }
  }
  static FL_INLINE Vec<E> dot_fma(Vec<E> x, Vec<E> weights, Vec<E> acc) {
    if constexpr (kDotPairs) {
      return fma_pairs(x, weights, acc);
    } else {
      return fma(x, weights, acc);
    }
  }

  // dot_rows of whole rows with R vectors, added to sums [R][G]. A weight that is loaded serves all
  // of them; every sum is formed in dot_rows' own order.
  template <int R>
  static FL_INLINE void add_dot_rows(const S* w, int64_t w_row, const A* const (&v)[R], int64_t n,
                                     E* sums) {
    constexpr int kRows = W / R;
#pragma GCC unroll 1
    for (int first = 0; first < W; first += kRows) {
      Vec<E> acc[W];  // of vector r and row first + j at r * kRows + j
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) acc[j] = Vec<E>::set1(0);
      const auto multiply = [&](int64_t k, auto... count) {
        Vec<E> x[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) x[r] = dot_vector(v[r] + k, count...);
#pragma GCC unroll 8
        for (int j = 0; j < kRows; ++j) {
          const Vec<E> weights = dot_weights(w + (first + j) * w_row + k, count...);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            acc[r * kRows + j] = dot_fma(x[r], weights, acc[r * kRows + j]);
          }
        }
      };
      int64_t k = 0;
      for (; k + kDotStep <= n; k += kDotStep) multiply(k);
      if (k < n) multiply(k, static_cast<int>(n - k));
      alignas(64) E totals[W];
      sum_each(acc).store(totals);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        for (int j = 0; j < kRows; ++j) sums[r * G + first + j] += totals[r * kRows + j];
      }
    }
  }

  // One panel of one step from the weights as they lie.
  void dot_panel(const Context& at, int32_t d, int64_t p) {
    int64_t b = at.segment->begin;
    const int64_t end = at.segment->end;
    if constexpr (W >= 4) {
      if (at.units == W) {
        for (; b + 2 < end; b += 4) dot_panel_rows<4>(at, d, p, b, min64(4, end - b));
        if (b + 2 == end) {
          dot_panel_rows<2>(at, d, p, b, 2);
          b = end;
        }
      }
    }
    for (; b < end; ++b) dot_panel_row(at, d, p, b);
  }
  // Up to R rows: what is beyond them repeats the last one.
  template <int R>
  void dot_panel_rows(const Context& at, int32_t d, int64_t p, int64_t b, int64_t rows) {
    const S* w_ih = static_cast<const S*>(q_.weights[d].w_ih);
    const S* w_hh = static_cast<const S*>(q_.weights[d].w_hh);
    const A *x[R], *h[R];
    alignas(64) E z[R * G];
    for (int r = 0; r < R; ++r) {
      const int64_t row = b + min64(r, rows - 1);
      h[r] = at.segment->h + row * at.segment->h_row;
      x[r] = plan_.fused ? at.x + row * at.x_row : nullptr;
      for (int k = 0; k < G; k += W) {
        Vec<E>::load(at.start + row * at.start_row + k).store(z + r * G + k);
      }
    }
#pragma GCC unroll 1
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t unit = gate * q_.H + p * W;
      add_dot_rows(w_hh + unit * q_.P, q_.P, h, q_.P, z + gate * W);
      if (plan_.fused) add_dot_rows(w_ih + unit * q_.I, q_.I, x, q_.I, z + gate * W);
    }
    finish_tile(at, z, b, rows);
  }
  void dot_panel_row(const Context& at, int32_t d, int64_t p, int64_t b) {
    const S* w_ih = static_cast<const S*>(q_.weights[d].w_ih);
    const S* w_hh = static_cast<const S*>(q_.weights[d].w_hh);
    const Segment& segment = *at.segment;
    alignas(64) E z[G];
#pragma GCC unroll 1
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t unit = gate * q_.H + p * W;
      Vec<E> total =
          Vec<E>::load(at.start + b * at.start_row + gate * W) +
          dot_rows(w_hh + unit * q_.P, q_.P, at.units, segment.h + b * segment.h_row, q_.P);
      if (plan_.fused) {
        total = total + dot_rows(w_ih + unit * q_.I, q_.I, at.units, at.x + b * at.x_row, q_.I);
      }
      total.store(z + gate * W);
    }
    finish_tile(at, z, b, 1);
  }

  // The context of processing step s; panel() fills in the rest.
  Context context_of(int32_t d, int64_t s, int64_t chunk) const {
    Context at;
    at.x = x_rows(d, time_of(d, s), chunk, at.x_row);
    at.y_row = y_sequence(d).stride_b;
    at.h_copy = nullptr;
    at.P = q_.P;
    at.m_row = projection_.m_row();
    at.zoneout = q_.zoneout.on() ? &q_ : nullptr;
    at.d = d;
    at.t = time_of(d, s);
    return at;
  }
  void set_panel(Context& at, int32_t d, int64_t s, int64_t chunk, int64_t p) const {
    const Side& side = sides_[d];
    const int64_t t = time_of(d, s);
    const bool training = out_.reserve != nullptr;
    at.units = static_cast<int>(min64(W, q_.H - p * W));
    at.p = p;
    at.weights = side.weights + p * K_ * G;
    at.y = y_sequence(d).step(steps_, t) + p * W;
    at.m = projection_.on() ? projection_.m(d) + p * W : nullptr;
    if constexpr (kConverts) at.h_copy = side.h + (s & 1) * q_.B * q_.P + p * W;
    if (plan_.fused) {
      at.start = side.bias + p * G;
      at.start_row = 0;
    } else {
      at.start = side.projected + (p * chunk_rows_ + steps_.offset(t) - steps_.offset(chunk)) * G;
      at.start_row = G;
    }
    at.gates = keeps_gates() ? side.reserve.gates_at(steps_, t, p) : nullptr;
    at.streams = streams_;
    at.c_out = training ? side.reserve.cells_at(steps_, t, p) : side.c + p * q_.B * W;
  }

  // What marks.h does once a step's cells are done.
  void leave_step(int32_t d, int64_t s, const Work& work) {
    const int64_t t = time_of(d, s);
    const bool training = out_.reserve != nullptr;
    const Sequence<S> y = y_sequence(d);
    E* c = training ? sides_[d].reserve.cells_at(steps_, t, 0) : sides_[d].c;
    S* gates = keeps_gates() ? sides_[d].reserve.gates_at(steps_, t, 0) : nullptr;
    marks_.leave(d, s, work.b0, work.b1, work.p0, work.p1, y.step(steps_, t), y.stride_b, c, gates);
  }

  // Whether the weights of panels [p0, p1) have to be fetched ahead; whether all rows pass by a
  // block of them before the next.
  bool is_far(int64_t p0, int64_t p1) const {
    return (p1 - p0) * K_ * G * static_cast<int64_t>(sizeof(E)) > plan_.near_bytes;
  }
  bool goes_by_blocks(int64_t p0, int64_t p1) const {
    return kSmallTiles || (plan_.distant && is_far(p0, p1));
  }

  void recur(int32_t d, const Work& work, Barrier* barrier, int32_t parties, int64_t index) {
    if constexpr (kMatrix) {
      if (plan_.matrix) return recur_matrix(d, work, barrier, parties, index);
    }
    const int64_t b0 = work.b0, b1 = work.b1, p0 = work.p0, p1 = work.p1;
    const int64_t chunk = chunk_begin(d, work.first, work.last);
    const int64_t k_blocks = ceil_div(K_, plan_.k_block);
    const bool prefetch = is_far(p0, p1), by_blocks = goes_by_blocks(p0, p1);
    for (int64_t s = work.first; s < work.last; ++s) {
      Segment segments[2];
      int count = segments_of(d, s, b0, b1, segments);
      if (marks_.on() && count > 0) {
        count = marks_.enter(d, s, p0, p1, index, initial_h(d), segments[0]);
      }
      Context at = context_of(d, s, chunk);
      const bool backwards = s & 1;  // zigzag: what the last step left in cache is used first
      for (int64_t i = p0; i < p1; ++i) {
        const int64_t p = backwards ? p1 - 1 - (i - p0) : i;
        set_panel(at, d, s, chunk, p);
        for (int j = 0; j < count; ++j) {
          at.segment = &segments[j];
          at.c_in = segments[j].c + p * segments[j].c_panel;
          if (plan_.dot) {
            dot_panel(at, d, p);
            continue;
          }
          const int64_t rows = segments[j].end - segments[j].begin;
          const E* next =
              prefetch && i + 1 < p1 ? at.weights + (backwards ? -K_ * G : K_ * G) : nullptr;
          if constexpr (W >= 16) {
            const int64_t vectors = Narrow<E>::vectors(q_.H, p);
            if (vectors < 4) {
              vectors == 1   ? narrow_panel<1>(at, k_blocks)
              : vectors == 2 ? narrow_panel<2>(at, k_blocks)
                             : narrow_panel<3>(at, k_blocks);
              continue;
            }
          }
          if (by_blocks) {
            panel_by_blocks(at, k_blocks, next, parts_[work.task]);
          } else {
            for_tiles<4>(rows, GateTile{at, segments[j].begin, K_, x_rows_, k_blocks, q_.I, q_.P,
                                        Prefetch(next, K_ * G * sizeof(E), rows)});
          }
        }
      }
      if (projection_.on()) {
        const int64_t columns = projection_.columns().blocks;
        if (barrier != nullptr) barrier->wait(parties);  // m of all units is there
        project_h(d, s, b0, b1, split(columns, index, parties), split(columns, index + 1, parties),
                  parts_[work.task]);
      }
      if (marks_.on()) leave_step(d, s, work);
      if (barrier) barrier->wait(parties);
    }
    if (streams_) finish_streams();
  }

  void prepare_matrix(const Parallel& parallel) {
    for (int32_t d = 0; d < q_.D; ++d) matrix_.start(d);
    const int64_t tasks = q_.D * panels_;
    run_tasks(parallel, plan_.threads, [&](int64_t i) {
      for (int64_t j = split(tasks, i, plan_.threads); j < split(tasks, i + 1, plan_.threads);
           ++j) {
        matrix_.pack(static_cast<int32_t>(j / panels_), j % panels_);
      }
    });
  }

  // bias + x W_ih^T of a chunk: its rows as tiles first, then panel by panel.
  void project_x_matrix(const Parallel& parallel, int64_t first, int64_t last) {
    const Sequence<const S> x = x_sequence();
    const int64_t count = last - first, n = min64(plan_.threads, count);
    for (int32_t d = 0; d < q_.D; ++d) {
      const int64_t begin = chunk_begin(d, first, last);
      run_tasks(parallel, n, [&](int64_t i) {
        for (int64_t t = begin + split(count, i, n); t < begin + split(count, i + 1, n); ++t) {
          const int64_t row = steps_.offset(t) - steps_.offset(begin);
          for (int64_t b = 0; b < steps_.rows(t); ++b) {
            matrix_.copy_chunk_row(d, x.step(steps_, t) + b * x.stride_b, row + b);
          }
        }
      });
    }
    const int64_t tasks = q_.D * panels_;
    run_tasks(parallel, plan_.threads, [&](int64_t i) {
      MatrixUnit unit;
      for (int64_t j = split(tasks, i, plan_.threads); j < split(tasks, i + 1, plan_.threads);
           ++j) {
        const int32_t d = static_cast<int32_t>(j / panels_);
        const int64_t begin = chunk_begin(d, first, last);
        project_panel_matrix(unit, d, j % panels_,
                             steps_.offset(begin + count) - steps_.offset(begin));
      }
    });
  }
  void project_panel_matrix(MatrixUnit& unit, int32_t d, int64_t p, int64_t rows) const {
    const E* bias = sides_[d].bias + p * G;
    E* out = sides_[d].projected + p * chunk_rows_ * G;
    alignas(64) E sums[2 * kTileRows * G];
    for (int64_t row = 0; row < rows; row += 2 * kTileRows) {
      const int64_t count = min64(2 * kTileRows, rows - row);
      matrix_.input_product(unit, d, p, row, count > kTileRows ? 2 : 1, sums);
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t k = 0; k < G; k += W) {
          (Vec<E>::load(sums + r * G + k) + Vec<E>::load(bias + k)).store(out + (row + r) * G + k);
        }
      }
    }
  }

  void recur_matrix(int32_t d, const Work& work, Barrier* barrier, int32_t parties, int64_t index) {
    const int64_t chunk = chunk_begin(d, work.first, work.last);
    const Sequence<const S> x = x_sequence();
    MatrixUnit unit;
    for (int64_t s = work.first; s < work.last; ++s) {
      const int64_t t = time_of(d, s), end = min64(work.b1, steps_.rows(t));
      Segment segments[2];
      int count = segments_of(d, s, work.b0, work.b1, segments);
      bool changed = false;  // h, against what the step before left
      if (marks_.on() && count > 0) {
        const A* left = segments[0].h;
        count = marks_.enter(d, s, work.p0, work.p1, index, initial_h(d), segments[0]);
        changed = count > 0 && segments[0].h != left;
        for (int64_t b = segments[0].begin; changed && b < segments[0].end; ++b) {
          matrix_.copy_step_h(d, work.task, segments[0].h + b * segments[0].h_row, b);
        }
      }
      for (int64_t b = work.b0; plan_.fused && b < end; ++b) {
        matrix_.copy_step_row(d, work.task, x.step(steps_, t) + b * x.stride_b, b);
      }
      Context at = context_of(d, s, chunk);
      at.h_block = matrix_.h_block();
      const bool backwards = s & 1;  // zigzag: what the last step left in cache is used first
      for (int64_t i = work.p0; count > 0 && i < work.p1; ++i) {
        const int64_t p = backwards ? work.p1 - 1 - (i - work.p0) : i;
        set_panel(at, d, s, chunk, p);
        at.h_tiles = matrix_.h_at(d, s, p);
        for (int64_t b = work.b0; b < end; b += 2 * kTileRows) {
          alignas(64) E sums[2 * kTileRows * G];
          const int64_t last = min64(end, b + 2 * kTileRows);
          matrix_.step_product(unit, d, work.task, s, p, b, last - b > kTileRows ? 2 : 1, changed,
                               sums);
          for (int j = 0; j < count; ++j) {
            at.c_in = segments[j].c + p * segments[j].c_panel;
            at.segment = &segments[j];
            const int64_t begin = max64(b, segments[j].begin);
            finish_tile<false>(at, sums + (begin - b) * G, begin,
                               min64(last, segments[j].end) - begin);
          }
        }
      }
      if (marks_.on()) leave_step(d, s, work);
      if (parties > 1) barrier->wait(parties);
    }
  }
  // h of processing step s for rows [b0, b1) and column blocks [q0, q1), from the m of its cells.
  void project_h(int32_t d, int64_t s, int64_t b0, int64_t b1, int64_t q0, int64_t q1, E* sums) {
    const int64_t t = time_of(d, s), rows = min64(b1, steps_.rows(t)) - b0;
    if (rows <= 0) return;
    const Sequence<S> y = y_sequence(d);
    const E* m = projection_.m(d) + b0 * projection_.m_row();
    const S* w_hr = static_cast<const S*>(q_.weights[d].w_hr);
    for (int64_t block = q0; block < q1; ++block) {
      const int64_t v0 = projection_.columns().first(block);
      const int64_t nv = projection_.columns().first(block + 1) - v0;
      if (!plan_.dot) projection_.product(d, block, m, rows, sums);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t v = v0; v < v0 + nv; ++v) {
          const int units = static_cast<int>(min64(W, q_.P - v * W));
          const Vec<E> h = plan_.dot ? dot_rows(w_hr + v * W * q_.H, q_.H, units,
                                                m + r * projection_.m_row(), q_.H)
                                     : Vec<E>::load(sums + (r * nv + v - v0) * W);
          S* out = y.step(steps_, t) + (b0 + r) * y.stride_b + v * W;
          store_as(h, out, units);
          if constexpr (kConverts) {
            load_as(Tag<E>{}, out, units)
                .store(sides_[d].h + (((s & 1) * q_.B + b0 + r) * q_.P + v * W), units);
          }
        }
      }
    }
  }

  const A* initial_h(int32_t d) const {  // [B][P], or null for zeros
    if (q_.h0 == nullptr) return nullptr;
    if constexpr (kConverts) {
      return sides_[d].h0;
    } else {
      return static_cast<const A*>(q_.h0) + d * q_.B * q_.P;
    }
  }

  // Where h and c of the step before processing step s lie, for rows [b0, b1): first the rows that
  // had such a step, then those that start here.
  int segments_of(int32_t d, int64_t s, int64_t b0, int64_t b1, Segment* segments) const {
    const Side& side = sides_[d];
    const int64_t t = time_of(d, s);
    const int64_t end = min64(b1, steps_.rows(t));
    const int64_t running = s == 0 ? 0 : min64(end, steps_.rows(time_of(d, s - 1)));
    int count = 0;
    const bool training = out_.reserve != nullptr;
    if (running > b0) {
      const int64_t before = time_of(d, s - 1);
      Segment segment{b0, running, nullptr, 0, side.c, q_.B * W};
      if constexpr (kConverts) {
        segment.h = side.h + ((s - 1) & 1) * q_.B * q_.P;
        segment.h_row = q_.P;
      } else {
        const Sequence<S> y = y_sequence(d);
        segment.h = y.step(steps_, before);
        segment.h_row = y.stride_b;
      }
      if (training) {
        segment.c = side.reserve.cells_at(steps_, before, 0);
        segment.c_panel = steps_.rows(before) * W;
      }
      segment.h_kept = segment.h;
      segment.h_kept_row = segment.h_row;
      segments[count++] = segment;
    }
    const int64_t begin = max64(b0, running);
    if (begin < end) {
      Segment segment{begin, end, zeros_, 0, side.c, q_.B * W};
      if (q_.h0) {
        segment.h_row = q_.P;
        segment.h = initial_h(d);
      }
      segment.h_kept = segment.h;
      segment.h_kept_row = segment.h_row;
      segments[count++] = segment;
    }
    return count;
  }

  // Copies the last state of every row to h_n and c_n.
  void finish() {
    if (marks_.writes_last_states()) return marks_.finish();
    const bool training = out_.reserve != nullptr;
    for (int32_t d = 0; d < q_.D; ++d) {
      const Side& side = sides_[d];
      const Sequence<S> y = y_sequence(d);
      S* h_n = static_cast<S*>(out_.h_n) + d * q_.B * q_.P;
      S* c_n = static_cast<S*>(out_.c_n) + d * q_.B * q_.H;
      for (int64_t s = q_.T - 1; s >= 0; --s) {
        const int64_t t = time_of(d, s), rows = steps_.rows(t);
        const int64_t later = s + 1 < q_.T ? steps_.rows(time_of(d, s + 1)) : 0;
        if (later >= q_.B) break;
        const S* h = y.step(steps_, t);
        for (int64_t b = later; b < rows; ++b) {
          std::memcpy(h_n + b * q_.P, h + b * y.stride_b, static_cast<size_t>(q_.P) * sizeof(S));
        }
        for (int64_t p = 0; p < panels_; ++p) {
          const int units = static_cast<int>(min64(W, q_.H - p * W));
          const E* c = training ? side.reserve.cells_at(steps_, t, p) : side.c + p * q_.B * W;
          for (int64_t b = later; b < rows; ++b) {
            store_as(Vec<E>::load(c + b * W), c_n + b * q_.H + p * W, units);
          }
        }
      }
    }
  }

  const Problem& q_;
  const Outputs& out_;
  const Plan plan_;
  const int64_t panels_, x_rows_, K_, chunk_rows_;
  ForwardProjection<S, E> projection_;
  ForwardMarks<S, E> marks_;
  MatrixForward<S> matrix_;
  const bool streams_;
  Steps steps_{0, 0, nullptr, nullptr};
  int64_t* offsets_ = nullptr;
  A* zeros_ = nullptr;
  Barrier* barriers_ = nullptr;
  Side sides_[2];
  E* parts_[kMaxParts] = {};
  size_t workspace_bytes_ = 0;
};
