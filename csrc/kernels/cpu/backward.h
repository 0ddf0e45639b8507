// LSTM backward for one layer. Included inside an ISA's namespace.
//
// Time runs against the forward pass, a chunk of steps at a time. Within a chunk the recurrence
// turns dy and the later step's dgates into this step's dgates; then the chunk's dgates, still in
// cache, give dW and dx by products over all its rows. dgates have a buffer of their own: the
// reserve is only read, so a second backward sees the same gates.

// sums[rows][NV vectors] = dgates[rows][all panels] * a packed column block, some panels at a time.
// The same for every stored type, and so not a member of Backward.
template <class E>
struct DgatesProduct {
  const E* a;  // of the first row; panel p at a + p * a_panel
  int64_t a_panel, panels;
  const E* w;
  E* sums;
  int64_t step;  // panels at a time
  bool far;      // whether the panels to come are fetched ahead
  int64_t H;     // units of all panels
};
template <int NV, class E>
struct DgatesTile {
  static constexpr int G = 4 * Vec<E>::kWidth, kWidth = NV * Vec<E>::kWidth;
  const DgatesProduct<E>& product;
  int64_t p0, p1;
  Prefetch prefetch;
  template <int R>
  FL_INLINE void run(int64_t first) const {
    prefetch.run<R>(first);
    Tile<E, R, NV> tile;
    E* rows = product.sums + first * kWidth;
    tile.zero();
    for (int64_t p = p0; p < p1; ++p) {
      const E* a = product.a + p * product.a_panel + first * G;
      const E* w = product.w + p * G * kWidth;
      const int64_t units = product.H - p * Vec<E>::kWidth;
      if (Vec<E>::kWidth < 16 || 2 * units > Vec<E>::kWidth) {
        tile.accumulate(a, G, 1, w, kWidth, G);
      } else {  // most is padding
        for (int gate = 0; gate < 4; ++gate, a += Vec<E>::kWidth, w += Vec<E>::kWidth * kWidth) {
          tile.accumulate(a, G, 1, w, kWidth, units);
        }
      }
    }
    if (p0 > 0) tile.add(rows, kWidth);
    tile.store(rows, kWidth);
  }
};
template <int NV, class E>
void multiply_dgates(const DgatesProduct<E>& product, int64_t rows) {
  constexpr int64_t kPanel = DgatesTile<NV, E>::G * DgatesTile<NV, E>::kWidth;
  for (int64_t p = 0; p < product.panels; p += product.step) {
    const int64_t end = min64(product.panels, p + product.step);
    const int64_t ahead = min64(product.panels - end, product.step);
    for_tiles<NV>(rows, DgatesTile<NV, E>{product, p, end,
                                          Prefetch(product.far ? product.w + end * kPanel : nullptr,
                                                   ahead * kPanel * int64_t{sizeof(E)}, rows)});
  }
}

template <class S, class E>
class Backward {
 public:
  static constexpr int W = Vec<E>::kWidth;
  static constexpr int G = 4 * W;              // one row of a gate panel
  static constexpr int kTile = max_rows<4>();  // features of one packed tile of [x, h]

  Backward(const Problem& problem, const Gradients& gradients, const Plan& plan, void* workspace)
      : q_(problem),
        g_(gradients),
        plan_(plan),
        panels_(ceil_div(problem.H, W)),
        chunk_rows_(min64(plan.chunk_steps, problem.T) * problem.B),
        // Rows of different panels, or tiles, that are used together must not fall into the same
        // cache sets.
        panel_stride_((chunk_rows_ + kTile) * G),
        tile_stride_(chunk_rows_ * kTile + static_cast<int64_t>(64 / sizeof(E))),
        state_columns_(problem.P, plan.split == Split::kUnits ? plan.threads / problem.D : 1),
        input_columns_(problem.I, 1),
        projection_(problem, gradients, plan_),
        marks_(problem, gradients),
        recompute_(problem, plan_),
        matrix_(problem, gradients, plan_) {
    Carver carver(workspace);
    offsets_ = carver.take<int64_t>(q_.batch_sizes ? q_.T + 1 : 0);
    barriers_ = carver.take<Barrier>(q_.D);
    for (int32_t d = 0; d < q_.D; ++d) {
      Side& side = sides_[d];
      side.dw_ih = static_cast<S*>(g_.weights[d].dw_ih);
      side.dw_hh = static_cast<S*>(g_.weights[d].dw_hh);
      side.db = static_cast<S*>(g_.weights[d].db);
      side.f0 = side.dw_ih ? 0 : q_.I;
      side.f1 = side.dw_hh ? q_.I + q_.P : q_.I;
      side.features = ceil_div(max64(0, side.f1 - side.f0), kTile) * kTile;
      side.h_row = q_.I - side.f0;
      if constexpr (kMatrix) {
        if (plan.matrix) {
          side.features = matrix_.features(d);
          side.h_row = matrix_.first_of_h(d);
        }
      }
      if (!plan.dot && !plan.matrix) {
        side.w_hh = carver.take<E>(panels_ * G * state_columns_.vectors * W);
        if (g_.dx) side.w_ih = carver.take<E>(panels_ * G * input_columns_.vectors * W);
        side.z = carver.take<E>(side.features / kTile * tile_stride_);
      }
      if (!plan.dot) {
        side.dw = carver.take<E>(side.features * (one_chunk() ? writers() : panels_) * G);
      }
      if (!plan.matrix) {
        side.dz = carver.take<E>(panels_ * panel_stride_);
        side.dz_later = carver.take<E>(panels_ * q_.B * G);
      }
      side.c0 = carver.take<E>(panels_ * q_.B * W);
      side.dc = carver.take<E>(panels_ * q_.B * W);
    }
    projection_.carve(carver, chunk_rows_);
    marks_.carve(carver);
    recompute_.carve(carver, chunk_rows_);
    matrix_.carve(carver, state_columns_.blocks, input_columns_.blocks);
    for (int32_t i = 0; i < plan.threads && i < kMaxParts; ++i) {
      // The matrix unit writes whole tiles, two at a time.
      parts_[i].sums = carver.take<E>(ceil_div(max64(q_.B, kInputRows), 32) * 32 * 4 * W);
      parts_[i].db = carver.take<E>(q_.D * panels_ * G);
      parts_[i].db_block = carver.take<E>(projection_.on() ? panels_ * G : 0);
    }
    workspace_bytes_ = carver.used();
    if (workspace == nullptr) return;
    steps_ = make_steps(problem, offsets_);
    Carver reserve(const_cast<void*>(g_.reserve));
    for (int32_t d = 0; d < q_.D; ++d) {
      sides_[d].reserve = Reserve<S, E>::at(reserve, q_, steps_.offset(q_.T), panels_);
    }
  }

  size_t workspace_bytes() const { return workspace_bytes_; }

  void run(const Parallel& parallel) {
    for (int32_t d = 0; d < q_.D; ++d) new (&barriers_[d]) Barrier();
    const bool by_rows = plan_.split == Split::kRows || !parallel.concurrent;
    prepare(parallel);
    for (int64_t last = q_.T; last > 0; last -= plan_.chunk_steps) {
      const int64_t first = max64(0, last - plan_.chunk_steps);
      if (recompute_.on()) compute_gates_again(parallel, first, last);
      if (by_rows) {
        run_tasks(parallel, plan_.threads, [&](int64_t i) {
          const Share share = share_of(static_cast<int32_t>(i), plan_.threads, q_.D);
          for (int32_t d = share.first_side; d < share.last_side; ++d) {
            recur(d, first, last, split_rows(steps_, share.index, share.count, plan_.row_block),
                  split_rows(steps_, share.index + 1, share.count, plan_.row_block), 0, 1,
                  parts_[i], nullptr);
          }
        });
      } else {
        run_team(parallel, plan_.threads, [&](int32_t rank, int32_t parties) {
          const Share share = share_of(rank, parties, q_.D);
          for (int32_t d = share.first_side; d < share.last_side; ++d) {
            recur(d, first, last, 0, q_.B, share.index, static_cast<int32_t>(share.count),
                  parts_[rank], share.count > 1 ? &barriers_[d] : nullptr);
          }
        });
      }
      weight_gradients(parallel, first, last);
      if (projection_.on()) projection_gradients(parallel, first, last);
      if (g_.dx) input_gradients(parallel, first, last);
      if (first > 0) keep_later(first, last);
    }
    finish();
  }

 private:
  static constexpr bool kMatrix = has_matrix<S>();
  static constexpr int kMaxParts = 256;
  static constexpr int64_t kInputRows = 96;  // rows of dx whose dgates stay in L2
  // With a projection nn.LSTM's peer is torch's plain path, whose sums over steps are more accurate
  // than oneDNN's: shorter chains for db and dW.
  static constexpr int64_t kShortSum = 16;
  static constexpr int64_t kBlockRows = kSmallTiles ? 48 : 64;  // whose products are one sum
  static constexpr int64_t kMostBlockRows = 2 * kBlockRows;     // fewer: 2n rows are two blocks
  static constexpr int64_t kFarBytes = 512 << 10;               // z that an L2 does not hold

  using Columns = ColumnBlocks<E>;

  struct Side {
    S *dw_ih, *dw_hh, *db;     // results, or null
    int64_t f0, f1, features;  // features of [x, h] whose weight gradient is wanted; padded count
    int64_t h_row;             // h's first row in a panel of dw
    E* w_hh = nullptr;         // column blocks of W_hh
    E* w_ih = nullptr;         // column blocks of W_ih, for dx
    E* z = nullptr;            // [feature tile][chunk rows][kTile], padded: x, h_{t-1} of the chunk
    E* dw = nullptr;           // [panel][features][4W]; a panel per writer when there is one chunk
    E* dz = nullptr;           // dgates of the chunk: [panel][chunk rows][4W], panels padded apart
    E* dz_later = nullptr;     // [panel][B][4W]: dgates of the step after the chunk
    E* c0 = nullptr;           // [panel][B][W]
    E* dc = nullptr;           // [panel][B][W]
    Reserve<S, E> reserve{nullptr, nullptr, 0};
  };
  enum Pointwise { kPlain, kProjected, kZoned };

  // One row of z, as it is written: a feature after the other, kTile of them in each tile.
  struct FeatureRow {
    E* at;
    int64_t tile_stride;
    int lane = 0;

    // n features, multiplied by factors where there are any; zeros where there is no source.
    void append(const S* source, const S* factors, int64_t n) {
      for (int64_t k = 0; k < n;) {
        if (lane == 0 && n - k >= kTile && source && !factors) {
#pragma GCC unroll 8
          for (int j = 0; j < kTile; ++j) at[j] = static_cast<E>(to_float(source[k + j]));
          at += tile_stride;
          k += kTile;
          continue;
        }
        put(source ? static_cast<E>(to_float(source[k])) : E(0), factors ? factors + k : nullptr);
        ++k;
      }
    }
    void fill() {
      while (lane > 0) put(0, nullptr);
    }
    void put(E value, const S* factor) {
      at[lane] = factor ? value * static_cast<E>(to_float(*factor)) : value;
      if (++lane < kTile) return;
      lane = 0;
      at += tile_stride;
    }
  };

  struct Part {
    E* sums;      // [rows][up to 4W]
    E* db;        // [D][panel][4W]
    E* db_block;  // [panel][4W], with a projection: db of a few steps
  };
  // dgates of one step: panel p, row b at data + p * panel + b * G.
  struct Dgates {
    const E* data;
    int64_t panel;
    const BFloat16* tiles = nullptr;  // on the matrix unit: the step's rows as tiles, and no data
  };

  bool one_chunk() const { return plan_.chunk_steps >= q_.T; }
  int64_t writers() const { return min64(plan_.threads, panels_); }  // tasks that sum dW's panels

  int64_t time_of(int32_t d, int64_t s) const { return d == 0 ? s : q_.T - 1 - s; }
  int64_t chunk_begin(int32_t d, int64_t first, int64_t last) const {
    return d == 0 ? first : q_.T - last;
  }
  int64_t rows_of(int32_t d, int64_t s) const {  // of processing step s; none outside the sequence
    return s < 0 || s >= q_.T ? 0 : steps_.rows(time_of(d, s));
  }
  E* dz_at(int32_t d, int64_t chunk, int64_t t) const {
    return sides_[d].dz + (steps_.offset(t) - steps_.offset(chunk)) * G;
  }

  void prepare(const Parallel& parallel) {
    for (int32_t d = 0; d < q_.D; ++d) {
      const Side& side = sides_[d];
      const S* c0 = static_cast<const S*>(q_.c0);
      const S* dc_n = static_cast<const S*>(g_.dc_n);
      pack_state(c0 ? c0 + d * q_.B * q_.H : nullptr, q_.B, q_.H, side.c0);
      pack_state(dc_n ? dc_n + d * q_.B * q_.H : nullptr, q_.B, q_.H, side.dc);
    }
    for (int32_t i = 0; i < plan_.threads; ++i) {
      for (int64_t k = 0; k < q_.D * panels_ * G; ++k) parts_[i].db[k] = 0;
      for (int64_t k = 0; projection_.on() && k < panels_ * G; ++k) parts_[i].db_block[k] = 0;
    }
    if (g_.dx && q_.D == 2) {
      std::memset(g_.dx, 0, static_cast<size_t>(steps_.offset(q_.T) * q_.I) * sizeof(S));
    }
    projection_.pack(parallel);
    recompute_.pack(parallel);
    if (plan_.dot) return;
    if constexpr (kMatrix) {
      for (int32_t d = 0; plan_.matrix && d < q_.D; ++d) matrix_.start(d);
    }
    const int64_t inputs = g_.dx ? input_columns_.blocks : 0;
    const int64_t blocks = state_columns_.blocks + inputs, tasks = q_.D * blocks;
    run_tasks(parallel, plan_.threads, [&](int64_t i) {
      int64_t j = split(tasks, i, plan_.threads);
      for (const int64_t end = split(tasks, i + 1, plan_.threads); j < end;) {
        const int32_t d = static_cast<int32_t>(j / blocks);
        const int64_t block = j % blocks;
        if constexpr (kMatrix) {
          if (plan_.matrix) {
            pack_matrix_block(d, block);
            ++j;
            continue;
          }
        }
        const bool state = block < state_columns_.blocks;
        const Weights& w = q_.weights[d];
        const int64_t first = state ? block : block - state_columns_.blocks;
        const int64_t last =
            min64(first + end - j, (state ? state_columns_ : input_columns_).blocks);
        pack_blocks(static_cast<const S*>(state ? w.w_hh : w.w_ih),
                    state ? state_columns_ : input_columns_, first, last,
                    state ? sides_[d].w_hh : sides_[d].w_ih);
        j += last - first;
      }
    });
  }
  void pack_matrix_block(int32_t d, int64_t block) const {
    if (block < state_columns_.blocks) {
      matrix_.pack_state_block(d, state_columns_, block);
    } else {
      matrix_.pack_input_block(d, input_columns_, block - state_columns_.blocks);
    }
  }
  // Blocks [first, last) of columns, row by row: one block's part of a row alone is too short to be
  // fetched ahead. Rows of a packed block are in the order of dgates: (panel, gate, unit).
  void pack_blocks(const S* w, const Columns& columns, int64_t first, int64_t last, E* dst) const {
    for (int64_t k = 0; k < panels_ * G; ++k) {
      const int64_t unit = k / G * W + k % W, row = k % G / W * q_.H + unit;
      for (int64_t block = first; block < last; ++block) {
        const int64_t v0 = columns.first(block), width = (columns.first(block + 1) - v0) * W;
        pack_columns(unit < q_.H ? w : nullptr, row, columns.n, v0 * W, width,
                     dst + v0 * W * panels_ * G + k * width);
      }
    }
  }

  void product(const Dgates& a, int64_t row, int64_t rows, const E* packed, const Columns& columns,
               int64_t block, E* sums) const {
    const int64_t v0 = columns.first(block), nv = columns.first(block + 1) - v0;
    // Judged by W_hh, whose blocks come by in every step; dx's product is read in the same way.
    const bool far = plan_.distant && panels_ * G * q_.P * int64_t{sizeof(E)} > plan_.near_bytes;
    const DgatesProduct<E> it{a.data + row * G,
                              a.panel,
                              panels_,
                              packed + v0 * W * panels_ * G,
                              sums,
                              max64(1, plan_.k_block / G),
                              far,
                              q_.H};
    switch (nv) {
      case 1:
        return multiply_dgates<1>(it, rows);
      case 2:
        return multiply_dgates<2>(it, rows);
      case 3:
        return multiply_dgates<3>(it, rows);
      default:
        return multiply_dgates<4>(it, rows);
    }
  }
  // The same from the weights as they lie, w [4H, n]: columns c0.. of up to 4 vectors, row by row.
  void product_natural(const Dgates& a, int64_t row, int64_t rows, const S* w,
                       const Columns& columns, int64_t block, E* sums) const {
    const int64_t v0 = columns.first(block), nv = columns.first(block + 1) - v0;
    const int64_t width = nv * W, count = min64(width, columns.n - v0 * W);
    for (int64_t r = 0; r < rows; ++r, sums += width) {
      Vec<E> acc[4] = {Vec<E>::set1(0), Vec<E>::set1(0), Vec<E>::set1(0), Vec<E>::set1(0)};
      for (int64_t p = 0; p < panels_; ++p) {
        const int units = static_cast<int>(min64(W, q_.H - p * W));
        for (int gate = 0; gate < 4; ++gate) {
          const E* dz = a.data + p * a.panel + (row + r) * G + gate * W;
          const S* src = w + (gate * q_.H + p * W) * columns.n + v0 * W;
          for (int j = 0; j < units; ++j, src += columns.n) {
            const Vec<E> x = Vec<E>::set1(dz[j]);
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
              const int64_t left = count - v * W;
              if (left >= W) {
                acc[v] = fma(x, load_as(Tag<E>{}, src + v * W), acc[v]);
              } else if (left > 0) {
                acc[v] = fma(x, load_as(Tag<E>{}, src + v * W, static_cast<int>(left)), acc[v]);
              }
            }
          }
        }
      }
      for (int64_t v = 0; v < nv; ++v) acc[v].store(sums + v * W);
    }
  }
  void state_product(int32_t d, const Dgates& a, int64_t row, int64_t rows, int64_t block,
                     E* sums) const {
    if (rows <= 0) return;
    if constexpr (kMatrix) {
      if (plan_.matrix) {
        const int64_t groups = state_columns_.first(block + 1) - state_columns_.first(block);
        return matrix_.state_product(d, a.tiles, row, rows, block, static_cast<int>(groups), sums);
      }
    }
    if (plan_.dot) {
      product_natural(a, row, rows, static_cast<const S*>(q_.weights[d].w_hh), state_columns_,
                      block, sums);
    } else {
      product(a, row, rows, sides_[d].w_hh, state_columns_, block, sums);
    }
  }

  // dgates of the step after processing step s, which begins a chunk or belongs to this one.
  Dgates dgates_after(int32_t d, int64_t s, int64_t last, int64_t chunk) const {
    if constexpr (kMatrix) {
      if (plan_.matrix && s + 1 == last) return {nullptr, 0, matrix_.later(d)};
    }
    if (s + 1 < last) return dgates_of(d, s + 1, chunk);
    return {sides_[d].dz_later, q_.B * G};
  }
  // dgates of processing step s of this chunk.
  Dgates dgates_of(int32_t d, int64_t s, int64_t chunk) const {
    const int64_t t = time_of(d, s);
    if constexpr (kMatrix) {
      if (plan_.matrix) return {nullptr, 0, matrix_.rows_of_step(d, t - chunk)};
    }
    return {dz_at(d, chunk, t), panel_stride_};
  }

  // Steps [first, last) of direction d, backwards, for rows [b0, b1) and this party's columns.
  void recur(int32_t d, int64_t first, int64_t last, int64_t b0, int64_t b1, int64_t index,
             int32_t parties, const Part& part, Barrier* barrier) {
    if (projection_.on()) {
      return recur_projected(d, first, last, b0, b1, index, parties, part, barrier);
    }
    const int64_t chunk = chunk_begin(d, first, last);
    const int64_t q0 = split(state_columns_.blocks, index, parties);
    const int64_t q1 = split(state_columns_.blocks, index + 1, parties);
    for (int64_t s = last - 1; s >= first; --s) {
      const Dgates later = dgates_after(d, s, last, chunk);
      const int64_t later_rows = rows_of(d, s + 1);
      for (int64_t block = q0; block < q1; ++block) {
        state_product(d, later, b0, min64(b1, later_rows) - b0, block, part.sums);
        const int64_t v0 = state_columns_.first(block), v1 = state_columns_.first(block + 1);
        if (marks_.on()) marks_.hand_back(d, s, v0, v1, b0, b1, part.sums);
        for (int64_t p = v0; p < v1; ++p) {
          const E* sums = part.sums + (p - v0) * W;
          E* db = part.db + (d * panels_ + p) * G;
          if (marks_.on()) {
            pointwise_marked(d, s, chunk, p, b0, b1, sums, (v1 - v0) * W, db);
          } else {
            pointwise<kPlain>(d, s, chunk, p, b0, b1, sums, (v1 - v0) * W, db);
          }
        }
        leave(d, s, block, b0, b1, part.sums);
      }
      if (barrier) barrier->wait(parties);
    }
    if (first > 0 || (!g_.dh0 && !g_.dc0)) return;
    // What is left belongs to the state before the first step.
    const Dgates start = dgates_of(d, 0, chunk);
    const int64_t rows = min64(b1, rows_of(d, 0));
    for (int64_t block = q0; block < q1; ++block) {
      if (g_.dh0) state_product(d, start, b0, rows - b0, block, part.sums);
      if (marks_.hands_back()) {
        const int64_t v0 = state_columns_.first(block), v1 = state_columns_.first(block + 1);
        if (g_.dh0) marks_.hand_back(d, -1, v0, v1, b0, b1, part.sums);
        write_dc0(d, v0, v1, b0, rows);
        continue;
      }
      write_initial(d, block, b0, b0, rows, part.sums);
    }
  }

  // The same with a projection: dh of all P columns first, then dm of this party's units.
  void recur_projected(int32_t d, int64_t first, int64_t last, int64_t b0, int64_t b1,
                       int64_t index, int32_t parties, const Part& part, Barrier* barrier) {
    const int64_t chunk = chunk_begin(d, first, last);
    const Columns& units = projection_.columns();
    const int64_t q0 = split(state_columns_.blocks, index, parties);
    const int64_t q1 = split(state_columns_.blocks, index + 1, parties);
    const int64_t u0 = split(units.blocks, index, parties);
    const int64_t u1 = split(units.blocks, index + 1, parties);
    for (int64_t s = last - 1; s >= first; --s) {
      const Dgates later = dgates_after(d, s, last, chunk);
      const int64_t t = time_of(d, s), rows = min64(b1, steps_.rows(t)) - b0;
      const int64_t later_end = min64(b1, rows_of(d, s + 1));
      for (int64_t block = q0; block < q1; ++block) {
        state_product(d, later, b0, later_end - b0, block, part.sums);
        collect_dh(d, s, chunk, block, b0, b1, part.sums);
        write_dh0(d, block, b0, max64(b0, steps_.rows(t)), later_end, part.sums);
      }
      write_dc0(d, units.first(u0), units.first(u1), max64(b0, steps_.rows(t)), later_end);
      if (barrier) barrier->wait(parties);  // dh of all columns is there
      for (int64_t block = u0; rows > 0 && block < u1; ++block) {
        projection_.product(d, steps_.offset(t) - steps_.offset(chunk) + b0, rows, block,
                            part.sums);
        const int64_t v0 = units.first(block), v1 = units.first(block + 1);
        for (int64_t p = v0; p < v1; ++p) {
          pointwise<kProjected>(d, s, chunk, p, b0, b1, part.sums + (p - v0) * W, (v1 - v0) * W,
                                part.db_block + p * G);
        }
      }
      if (s % kShortSum == 0 || s == first) {
        add_db_block(d, units.first(u0), units.first(u1), part);
      }
      if (barrier) barrier->wait(parties);
    }
    if (first > 0) return;
    const Dgates start{dz_at(d, chunk, time_of(d, 0)), panel_stride_};
    const int64_t end = min64(b1, rows_of(d, 0));
    for (int64_t block = q0; g_.dh0 && block < q1; ++block) {
      state_product(d, start, b0, end - b0, block, part.sums);
      write_dh0(d, block, b0, b0, end, part.sums);
    }
    write_dc0(d, units.first(u0), units.first(u1), b0, end);
  }

  // Adds db of the last steps of panels [p0, p1) to that of all before, and begins anew.
  void add_db_block(int32_t d, int64_t p0, int64_t p1, const Part& part) const {
    for (int64_t k = p0 * G; k < p1 * G; k += W) {
      E* db = part.db + d * panels_ * G + k;
      (Vec<E>::load(db) + Vec<E>::load(part.db_block + k)).store(db);
      Vec<E>::set1(0).store(part.db_block + k);
    }
  }

  // dh of processing step s, one column block, rows [b0, b1): what the later step hands back (sums,
  // row b at sums + (b - b0) * the block's width) or dh_n where none is, and dy.
  void collect_dh(int32_t d, int64_t s, int64_t chunk, int64_t block, int64_t b0, int64_t b1,
                  const E* sums) const {
    const int64_t t = time_of(d, s), rows = min64(b1, steps_.rows(t));
    const int64_t later_rows = rows_of(d, s + 1);
    const int64_t v0 = state_columns_.first(block), v1 = state_columns_.first(block + 1);
    const Sequence<const S> dy(static_cast<const S*>(g_.dy), g_.dy_t, g_.dy_b, steps_);
    for (int64_t b = b0; b < rows; ++b) {
      E* out = projection_.dh(d, steps_.offset(t) - steps_.offset(chunk) + b);
      for (int64_t v = v0; v < v1; ++v) {
        const int units = static_cast<int>(min64(W, q_.P - v * W));
        Vec<E> dh = Vec<E>::set1(0);
        if (b < later_rows) {
          dh = Vec<E>::load(sums + ((b - b0) * (v1 - v0) + v - v0) * W);
        } else if (g_.dh_n) {
          dh = load_units(static_cast<const S*>(g_.dh_n) + (d * q_.B + b) * q_.P + v * W, units);
        }
        if (g_.dy) {
          dh = dh + load_units(dy.step(steps_, t) + b * dy.stride_b + d * q_.P + v * W, units);
        }
        dh.store(out + v * W);
      }
    }
  }

  // dgates of processing step s, panel p (units p*W..), rows [b0, b1); sums holds the part of dh
  // that comes from the later step, row b at sums + (b - b0) * sums_row. Projected: all of dm, in
  // dh's place; m is left for dW_hr. Zoned: units keep shares of h and c, and what the cell itself
  // made of c follows from its gates. c_previous: c before the step, [B][W], where it is not simply
  // what the step before left.
  template <Pointwise kHow>
  void pointwise(int32_t d, int64_t s, int64_t chunk, int64_t p, int64_t b0, int64_t b1,
                 const E* sums, int64_t sums_row, E* db, const E* c_previous = nullptr) const {
    constexpr bool kToDm = kHow == kProjected, kKeeps = kHow == kZoned;
    const Side& side = sides_[d];
    const int64_t t = time_of(d, s);
    const int64_t rows = min64(b1, steps_.rows(t));
    const int64_t later_rows = kToDm ? rows : rows_of(d, s + 1);
    const int64_t before_rows = c_previous ? rows : rows_of(d, s - 1);
    const int units = static_cast<int>(min64(W, q_.H - p * W));
    const S* gates = recompute_.on()
                         ? recompute_.gates(d, p, steps_.offset(t) - steps_.offset(chunk))
                         : side.reserve.gates_at(steps_, t, p);
    const E* c = side.reserve.cells_at(steps_, t, p);
    const E* c_before = c_previous ? c_previous : cells_before(d, s, p);
    const E* c0 = side.c0 + p * q_.B * W;
    E* dc = side.dc + p * q_.B * W;
    E* dz = plan_.matrix ? nullptr : dz_at(d, chunk, t) + p * panel_stride_;
    const S* dy = nullptr;
    int64_t dy_row = 0;
    if (!kToDm && g_.dy) {
      const Sequence<const S> sequence(static_cast<const S*>(g_.dy) + d * q_.P, g_.dy_t, g_.dy_b,
                                       steps_);
      dy = sequence.step(steps_, t) + p * W;
      dy_row = sequence.stride_b;
    }
    const S* dh_n = g_.dh_n ? static_cast<const S*>(g_.dh_n) + d * q_.B * q_.P + p * W : nullptr;
    E* m = kToDm ? projection_.m(d, steps_.offset(t) - steps_.offset(chunk)) : nullptr;
    Vec<E> total[4] = {Vec<E>::set1(0), Vec<E>::set1(0), Vec<E>::set1(0), Vec<E>::set1(0)};
    for (int64_t b = b0; b < rows; ++b) {
      Vec<E> dh = Vec<E>::set1(0);
      if (b < later_rows) {
        dh = Vec<E>::load(sums + (b - b0) * sums_row);
      } else if (dh_n) {
        dh = load_units(dh_n + b * q_.P, units);
      }
      if (dy) dh = dh + load_units(dy + b * dy_row, units);
      const S* saved = gates + b * G;
      const Gates<Vec<E>> gate{load_as(Tag<E>{}, saved), load_as(Tag<E>{}, saved + W),
                               load_as(Tag<E>{}, saved + 2 * W), load_as(Tag<E>{}, saved + 3 * W)};
      const E* previous = b < before_rows ? c_before : c0;
      const Vec<E> c_prev = Vec<E>::load(previous + b * W);
      Vec<E> c_now = Vec<E>::load(c + b * W), carry = Vec<E>::load(dc + b * W), passed{};
      if constexpr (kKeeps) {
        const Kept<E> kept(q_, d, t, b, p);
        const Vec<E> dh_kept = kept.part_of_h(dh);
        dh_kept.store(marks_.dh_kept(d, p, b));
        dh = dh - dh_kept;
        passed = kept.part_of_c(carry);
        carry = carry - passed;
        c_now = cell_state(gate, c_prev);
      }
      Gates<Vec<E>> grad = cell_backward(gate, c_prev, c_now, dh, carry);
      if constexpr (kKeeps) carry = carry + passed;
      carry.store(dc + b * W);
      if (kToDm && m) {
        cell_output(gate.o, Vec<E>::load(c + b * W)).store(m + b * projection_.m_row() + p * W);
      }
      if (units < W) {  // 0 * Inf of an infinite input must not leave the padding
        grad = {first_lanes(grad.i, units), first_lanes(grad.f, units), first_lanes(grad.g, units),
                first_lanes(grad.o, units)};
      }
      store_dgates(d, p, (t - chunk), b, grad, dz);
      total[0] = total[0] + grad.i;
      total[1] = total[1] + grad.f;
      total[2] = total[2] + grad.g;
      total[3] = total[3] + grad.o;
    }
    for (int gate = 0; gate < 4; ++gate) {
      (Vec<E>::load(db + gate * W) + total[gate]).store(db + gate * W);
    }
  }
  const E* cells_before(int32_t d, int64_t s, int64_t p) const {
    return s > 0 ? sides_[d].reserve.cells_at(steps_, time_of(d, s - 1), p) : nullptr;
  }
  // The same with the options of marks.h.
  void pointwise_marked(int32_t d, int64_t s, int64_t chunk, int64_t p, int64_t b0, int64_t b1,
                        const E* sums, int64_t sums_row, E* db) const {
    const Marks& marks = marks_.marks();
    const int64_t panel = p * q_.B * W;
    E* dc = sides_[d].dc + panel;
    marks_.add_dcells(d, s, p, b0, b1, dc);
    const auto run = [&](int64_t begin, int64_t end, const E* c) {
      const E* row = sums + (begin - b0) * sums_row;
      if (q_.zoneout.on()) {
        pointwise<kZoned>(d, s, chunk, p, begin, end, row, sums_row, db, c);
      } else {
        pointwise<kPlain>(d, s, chunk, p, begin, end, row, sums_row, db, c);
      }
    };
    if (!marks.on() || marks.ordinary(d, s, b0, b1)) return run(b0, b1, nullptr);
    const E* c = marks_.cells_before(d, s, p, b0, b1, cells_before(d, s, p), sides_[d].c0 + panel);
    // Before the others: of two rows that share words the first clears what the second may add to.
    for (int64_t b = b0; plan_.matrix && b < b1; ++b) {
      const Vec<E> zero = Vec<E>::set1(0);
      if (!marks.ended(d, s, b)) continue;
      store_dgates(d, p, time_of(d, s) - chunk, b, Gates<Vec<E>>{zero, zero, zero, zero}, nullptr);
    }
    for (int64_t begin = b0, end; begin < b1; begin = end) {  // rows side by side that all run
      for (end = begin; end < b1 && !marks.ended(d, s, end);) ++end;
      if (begin < end) run(begin, end, c);
      while (end < b1 && marks.ended(d, s, end)) ++end;
    }
    marks_.clear(d, s, b0, b1, dc,
                 plan_.matrix ? nullptr : dz_at(d, chunk, time_of(d, s)) + p * panel_stride_);
  }
  FL_INLINE void store_dgates(int32_t d, int64_t p, int64_t step, int64_t b,
                              const Gates<Vec<E>>& grad, E* dz) const {
    if constexpr (kMatrix) {
      if (plan_.matrix) return matrix_.store(d, p, step * matrix_.step_rows() + b, grad);
    }
    E* out = dz + b * G;
    grad.i.store(out);
    grad.f.store(out + W);
    grad.g.store(out + 2 * W);
    grad.o.store(out + 3 * W);
  }
  // Most often all of a vector, which needs no mask: stores by mask are slow on Zen 3 (NOTES.md).
  static FL_INLINE Vec<E> load_units(const S* p, int units) {
    return units == W ? load_as(Tag<E>{}, p) : load_as(Tag<E>{}, p, units);
  }
  static FL_INLINE void store_units(Vec<E> x, S* p, int units) {
    if (units == W) return store_as(x, p);
    store_as(x, p, units);
  }

  // Rows whose first step was the later one (reverse direction of packed input): what reaches
  // beyond it is the gradient of their initial state.
  void leave(int32_t d, int64_t s, int64_t block, int64_t b0, int64_t b1, const E* sums) const {
    const int64_t begin = max64(b0, rows_of(d, s)), end = min64(b1, rows_of(d, s + 1));
    if (begin < end) write_initial(d, block, b0, begin, end, sums);
  }
  void write_initial(int32_t d, int64_t block, int64_t b0, int64_t begin, int64_t end,
                     const E* sums) const {
    write_dh0(d, block, b0, begin, end, sums);
    write_dc0(d, state_columns_.first(block), state_columns_.first(block + 1), begin, end);
  }
  void write_dh0(int32_t d, int64_t block, int64_t b0, int64_t begin, int64_t end,
                 const E* sums) const {
    const int64_t v0 = state_columns_.first(block), v1 = state_columns_.first(block + 1);
    for (int64_t v = v0; g_.dh0 && v < v1; ++v) {
      const int units = static_cast<int>(min64(W, q_.P - v * W));
      for (int64_t b = begin; b < end; ++b) {
        store_as(Vec<E>::load(sums + (b - b0) * (v1 - v0) * W + (v - v0) * W),
                 static_cast<S*>(g_.dh0) + (d * q_.B + b) * q_.P + v * W, units);
      }
    }
  }
  void write_dc0(int32_t d, int64_t p0, int64_t p1, int64_t begin, int64_t end) const {
    for (int64_t p = p0; g_.dc0 && p < p1; ++p) {
      const int units = static_cast<int>(min64(W, q_.H - p * W));
      for (int64_t b = begin; b < end; ++b) {
        store_as(Vec<E>::load(sides_[d].dc + (p * q_.B + b) * W),
                 static_cast<S*>(g_.dc0) + (d * q_.B + b) * q_.H + p * W, units);
      }
    }
  }

  // The chunk's first processed step becomes the "later" step of the chunk before it.
  void keep_later(int64_t first, int64_t last) {
    for (int32_t d = 0; d < q_.D; ++d) {
      const int64_t chunk = chunk_begin(d, first, last), t = time_of(d, first);
      if constexpr (kMatrix) {
        if (plan_.matrix) {
          matrix_.keep_later(d, t - chunk);
          continue;
        }
      }
      for (int64_t p = 0; p < panels_; ++p) {
        std::memcpy(sides_[d].dz_later + p * q_.B * G, dz_at(d, chunk, t) + p * panel_stride_,
                    static_cast<size_t>(steps_.rows(t) * G) * sizeof(E));
      }
    }
  }

  // x of row b of time step t; null where the row has ended.
  const S* x_row(const Sequence<const S>& x, int64_t t, int64_t b) const {
    if (marks_.marks().on() && marks_.marks().ended(0, t, b)) return nullptr;
    return x.step(steps_, t) + b * x.stride_b;
  }
  // h_{t-1} of row b of time step t, as stored; null for a zero initial state.
  const S* h_before(int32_t d, int64_t t, int64_t b) const {
    const int64_t s = time_of(d, t);  // its own inverse
    const Marks& marks = marks_.marks();
    const Marks::From from = marks.on() ? marks.from(d, s, b) : Marks::From::kStepBefore;
    if (from == Marks::From::kZeros || from == Marks::From::kNoStep) return nullptr;
    if (b < rows_of(d, s - 1) && from == Marks::From::kStepBefore) {
      const Sequence<const S> y(static_cast<const S*>(g_.y) + d * q_.P, g_.y_t, g_.y_b, steps_);
      return y.step(steps_, time_of(d, s - 1)) + b * y.stride_b;
    }
    return q_.h0 ? static_cast<const S*>(q_.h0) + (d * q_.B + b) * q_.P : nullptr;
  }

  void compute_gates_again(const Parallel& parallel, int64_t first, int64_t last) {
    const Sequence<const S> x(static_cast<const S*>(q_.x), q_.x_t, q_.x_b, steps_);
    for (int32_t d = 0; d < q_.D; ++d) {
      const int64_t begin = chunk_begin(d, first, last), end = begin + last - first;
      recompute_.run(
          parallel, d, steps_, begin, end, [&](int64_t t, int64_t b) { return x_row(x, t, b); },
          [&](int64_t t, int64_t b) { return h_before(d, t, b); });
    }
  }

  void weight_gradients(const Parallel& parallel, int64_t first, int64_t last) {
    for (int32_t d = 0; d < q_.D; ++d) {
      const Side& side = sides_[d];
      if (side.features == 0) continue;
      const int64_t begin = chunk_begin(d, first, last), end = begin + last - first;
      const int64_t rows = steps_.offset(end) - steps_.offset(begin);
      if (plan_.dot) {
        weight_gradients_natural(d, begin, end, last == q_.T);
        continue;
      }
      if constexpr (kMatrix) {
        if (plan_.matrix) {
          matrix_weight_gradients(parallel, d, first, last);
          continue;
        }
      }
      const int64_t threads = plan_.threads;
      run_tasks(parallel, min64(threads, last - first), [&](int64_t i) {
        const int64_t n = min64(threads, last - first);
        for (int64_t t = begin + split(end - begin, i, n); t < begin + split(end - begin, i + 1, n);
             ++t) {
          pack_features(d, t, begin);
        }
      });
      run_tasks(parallel, writers(), [&](int64_t i) {
        const int64_t n = writers();
        for (int64_t p = split(panels_, i, n); p < split(panels_, i + 1, n); ++p) {
          E* panel = side.dw + (one_chunk() ? i : p) * side.features * G;
          accumulate_panel(d, p, rows, last == q_.T, panel);
          if (first > 0) continue;
          if constexpr (W >= 16) {
            const int64_t vectors = Narrow<E>::vectors(q_.H, p);
            if (vectors < 4) Narrow<E>::spread(panel, side.features, vectors);
          }
          write_weight_gradients(side, p, panel);
        }
      });
    }
  }
  void matrix_weight_gradients(const Parallel& parallel, int32_t d, int64_t first, int64_t last) {
    const Side& side = sides_[d];
    const Sequence<const S> x(static_cast<const S*>(q_.x), q_.x_t, q_.x_b, steps_);
    const int64_t begin = chunk_begin(d, first, last), step_rows = matrix_.step_rows();
    const int64_t tiles = ceil_div((last - first) * step_rows, kTileK);
    const int64_t packers = min64(plan_.threads, tiles);
    run_tasks(parallel, packers, [&](int64_t i) {
      const auto source = [&](int part, int64_t row) -> const S* {
        const int64_t t = begin + row / step_rows, b = row % step_rows;
        if (row / step_rows >= last - first || b >= steps_.rows(t)) return nullptr;
        if (part == 0) return x_row(x, t, b);
        const S* h = h_before(d, t, b);
        if (h == nullptr || q_.h_factors == nullptr) return h;
        S* scaled = matrix_.scaled_row(i, row % kTileK);
        scale_row<E>(h, h_factors_of<S>(q_, d, b), q_.P, scaled);
        return scaled;
      };
      for (int64_t k = split(tiles, i, packers); k < split(tiles, i + 1, packers); ++k) {
        matrix_.pack_features(d, k, source);
      }
    });
    run_tasks(parallel, writers(), [&](int64_t i) {
      const int64_t n = writers();
      for (int64_t p = split(panels_, i, n); p < split(panels_, i + 1, n); ++p) {
        E* panel = side.dw + (one_chunk() ? i : p) * side.features * G;
        matrix_.accumulate_panel(d, p, tiles, last == q_.T, panel);
        if (first > 0) continue;
        write_weight_gradients(side, p, panel);
      }
    });
  }
  void pack_features(int32_t d, int64_t t, int64_t chunk) const {
    const Side& side = sides_[d];
    const Sequence<const S> x(static_cast<const S*>(q_.x), q_.x_t, q_.x_b, steps_);
    const int64_t row0 = steps_.offset(t) - steps_.offset(chunk);
    for (int64_t b = 0; b < steps_.rows(t); ++b) {
      FeatureRow row{side.z + (row0 + b) * kTile, tile_stride_};
      if (side.dw_ih) row.append(x_row(x, t, b), nullptr, q_.I);
      if (side.dw_hh) row.append(h_before(d, t, b), h_factors_of<S>(q_, d, b), q_.P);
      row.fill();
    }
  }
  void accumulate_panel(int32_t d, int64_t p, int64_t rows, bool fresh, E* panel) const {
    if constexpr (W >= 16) {
      switch (Narrow<E>::vectors(q_.H, p)) {
        case 1:
          return accumulate_panel<1>(d, p, rows, fresh, panel);
        case 2:
          return accumulate_panel<2>(d, p, rows, fresh, panel);
        case 3:
          return accumulate_panel<3>(d, p, rows, fresh, panel);
      }
    }
    accumulate_panel<4>(d, p, rows, fresh, panel);
  }
  // By rows of NV vectors: a narrow panel's dgates are brought together first, its gradient stays
  // so until it is written.
  template <int NV>
  void accumulate_panel(int32_t d, int64_t p, int64_t rows, bool fresh, E* panel) const {
    constexpr int kWidth = NV * W;
    const Side& side = sides_[d];
    const int64_t block = projection_.on() ? 2 * kShortSum : kBlockRows;
    const int64_t blocks = projection_.on() ? ceil_div(rows, block) : max64(1, rows / block);
    // Tiles of z lie apart, so that nothing but us knows which is next.
    const bool far = plan_.distant && side.features * chunk_rows_ * int64_t{sizeof(E)} > kFarBytes;
    for (int64_t k = 0; k < blocks; ++k) {
      const int64_t r0 = split(rows, k, blocks), r1 = split(rows, k + 1, blocks);
      const E* dz = side.dz + p * panel_stride_ + r0 * G;
      alignas(64) E narrow[NV < 4 ? kMostBlockRows * kWidth : 1];
      if constexpr (NV < 4) {
        for (int64_t r = 0; r < r1 - r0; ++r) {
          Narrow<E>::squeeze_row(dz + r * G, NV, narrow + r * kWidth);
        }
        dz = narrow;
      }
      for (int64_t f = 0; f < side.features; f += kTile) {
        const E* z = side.z + f / kTile * tile_stride_ + r0 * kTile;
        if (far && f + kTile < side.features) {
          Prefetch(z + tile_stride_, (r1 - r0) * kTile * int64_t{sizeof(E)}, 1).template run<1>(0);
        }
        Tile<E, kTile, NV> tile;
        tile.zero();
        tile.accumulate(z, 1, kTile, dz, kWidth, r1 - r0);
        E* out = panel + f * kWidth;
        if (fresh && k == 0) {
          tile.store(out, kWidth);
        } else {
          tile.add_to(out, kWidth);
        }
      }
    }
  }
  void write_weight_gradients(const Side& side, int64_t p, const E* panel) const {
    if (side.dw_ih) unpack_gate_panel(panel, q_.H, q_.I, p, side.dw_ih);
    if (side.dw_hh) {
      unpack_gate_panel(panel + side.h_row * G, q_.H, q_.P, p, side.dw_hh);
    }
  }
  // Few rows: dW row by row in torch's layout.
  void weight_gradients_natural(int32_t d, int64_t begin, int64_t end, bool fresh) const {
    const Side& side = sides_[d];
    const Sequence<const S> x(static_cast<const S*>(q_.x), q_.x_t, q_.x_b, steps_);
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t b = 0; b < steps_.rows(t); ++b) {
        const E* dz = dz_at(d, begin, t) + b * G;
        const bool first = fresh && t == begin && b == 0;
        outer(dz, x_row(x, t, b), q_.I, first, side.dw_ih);
        outer(dz, h_before(d, t, b), q_.P, first, side.dw_hh);
      }
    }
  }
  void outer(const E* dz, const S* v, int64_t n, bool first, S* dw) const {
    if (dw == nullptr || (v == nullptr && !first)) return;
    for (int64_t p = 0; p < panels_; ++p) {
      const int units = static_cast<int>(min64(W, q_.H - p * W));
      for (int gate = 0; gate < 4; ++gate) {
        for (int j = 0; j < units; ++j) {
          const Vec<E> scale = Vec<E>::set1(dz[p * panel_stride_ + gate * W + j]);
          S* row = dw + (gate * q_.H + p * W + j) * n;
          for (int64_t k = 0; k < n; k += W) {
            const int count = static_cast<int>(min64(W, n - k));
            const Vec<E> value = v ? load_units(v + k, count) : Vec<E>::set1(0);
            const Vec<E> sum =
                first ? scale * value : fma(scale, value, load_units(row + k, count));
            store_units(sum, row + k, count);
          }
        }
      }
    }
  }

  void projection_gradients(const Parallel& parallel, int64_t first, int64_t last) const {
    for (int32_t d = 0; d < q_.D; ++d) {
      const int64_t begin = chunk_begin(d, first, last), end = begin + last - first;
      projection_.weight_gradient(parallel, d, steps_.offset(end) - steps_.offset(begin),
                                  last == q_.T);
    }
  }

  void matrix_input_gradients(const Parallel& parallel, int32_t d, int64_t first, int64_t last) {
    constexpr int64_t kRows = 2 * kTileRows;
    const int64_t begin = chunk_begin(d, first, last), pieces = ceil_div(q_.B, kRows);
    const int64_t work = (last - first) * pieces, threads = min64(plan_.threads, work);
    run_tasks(parallel, threads, [&](int64_t i) {
      for (int64_t block = 0; block < input_columns_.blocks; ++block) {
        const int64_t groups = input_columns_.first(block + 1) - input_columns_.first(block);
        for (int64_t k = split(work, i, threads); k < split(work, i + 1, threads); ++k) {
          const int64_t step = k / pieces, t = begin + step, row = k % pieces * kRows;
          const int64_t rows = min64(kRows, steps_.rows(t) - row);
          if (rows <= 0) continue;
          matrix_.input_product(d, matrix_.rows_of_step(d, step), row, rows, block,
                                static_cast<int>(groups), parts_[i].sums);
          write_input_block(block, rows, parts_[i].sums,
                            static_cast<S*>(g_.dx) + (steps_.offset(t) + row) * q_.I);
        }
      }
    });
  }
  void input_gradients(const Parallel& parallel, int64_t first, int64_t last) {
    for (int32_t d = 0; d < q_.D; ++d) {
      if constexpr (kMatrix) {
        if (plan_.matrix) {
          matrix_input_gradients(parallel, d, first, last);
          continue;
        }
      }
      const int64_t begin = chunk_begin(d, first, last), end = begin + last - first;
      const int64_t rows = steps_.offset(end) - steps_.offset(begin);
      const Dgates dz{sides_[d].dz, panel_stride_};
      S* dx = static_cast<S*>(g_.dx) + steps_.offset(begin) * q_.I;
      const int64_t threads = min64(plan_.threads, rows);
      run_tasks(parallel, threads, [&](int64_t i) {
        const int64_t end_row = split(rows, i + 1, threads);
        for (int64_t r = split(rows, i, threads); r < end_row; r += kInputRows) {
          const int64_t count = min64(kInputRows, end_row - r);
          for (int64_t block = 0; block < input_columns_.blocks; ++block) {
            if (plan_.dot) {
              product_natural(dz, r, count, static_cast<const S*>(q_.weights[d].w_ih),
                              input_columns_, block, parts_[i].sums);
            } else {
              product(dz, r, count, sides_[d].w_ih, input_columns_, block, parts_[i].sums);
            }
            write_input_block(block, count, parts_[i].sums, dx + r * q_.I);
          }
        }
      });
    }
  }
  // Two directions meet in dx, in no fixed order of rows: both add to zeros (prepare() wrote them).
  void write_input_block(int64_t block, int64_t rows, const E* sums, S* dx) const {
    const int64_t v0 = input_columns_.first(block), v1 = input_columns_.first(block + 1);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t v = v0; v < v1; ++v, sums += W) {
        const int count = static_cast<int>(min64(W, q_.I - v * W));
        S* out = dx + r * q_.I + v * W;
        Vec<E> value = Vec<E>::load(sums);
        if (q_.D == 2) value = value + load_units(out, count);
        store_units(value, out, count);
      }
    }
  }

  void finish() {
    projection_.finish();
    for (int32_t d = 0; d < q_.D; ++d) {
      if (sides_[d].db == nullptr) continue;
      for (int64_t p = 0; p < panels_; ++p) {
        for (int gate = 0; gate < 4; ++gate) {
          Vec<E> total = Vec<E>::set1(0);
          for (int32_t i = 0; i < plan_.threads; ++i) {
            total = total + Vec<E>::load(parts_[i].db + (d * panels_ + p) * G + gate * W);
          }
          store_as(total, sides_[d].db + gate * q_.H + p * W,
                   static_cast<int>(min64(W, q_.H - p * W)));
        }
      }
    }
  }

  const Problem& q_;
  const Gradients& g_;
  const Plan plan_;
  const int64_t panels_, chunk_rows_, panel_stride_, tile_stride_;
  const Columns state_columns_, input_columns_;
  BackwardProjection<S, E> projection_;
  BackwardMarks<S, E> marks_;
  Recompute<S, E> recompute_;
  MatrixBackward<S> matrix_;
  Steps steps_{0, 0, nullptr, nullptr};
  int64_t* offsets_ = nullptr;
  Barrier* barriers_ = nullptr;
  Side sides_[2];
  Part parts_[kMaxParts];
  size_t workspace_bytes_ = 0;
};
