// The projection of h (proj_size): h = W_hr m, where m = o * tanh(c) has H columns and h has P.
// Here are the buffers and products that it adds to the two passes; when they run, forward.h and
// backward.h say. Included inside an ISA's namespace.
//
//   forward:   h [rows, P] = m [rows, H] W_hr^T, once a step's m is there for all units of a row
//   backward:  dm [rows, H] = dh [rows, P] W_hr, which the cell takes in the place of dh;
//              dW_hr [P, H] += dh^T m, over the rows of a chunk
//
// m is never saved: backward makes it again from the saved gates and cells, where tanh(c) is at
// hand anyway.

// Columns of a matrix cut into blocks of up to four vectors: at least `parties` blocks where there
// are as many vectors.
template <class E>
struct ColumnBlocks {
  static constexpr int W = Vec<E>::kWidth;
  int64_t n, vectors, blocks;
  ColumnBlocks(int64_t columns, int64_t parties)
      : n(columns), vectors(ceil_div(columns, W)), blocks(ceil_div(vectors, 4)) {
    while (blocks < parties && blocks < vectors) ++blocks;
  }
  int64_t first(int64_t block) const { return split(vectors, block, blocks); }
};

// Elements from one row to the next of a row-major buffer: an odd number of vectors, so that the
// rows of a tile do not fall into the same cache sets.
template <class E>
int64_t padded_row(int64_t columns) {
  return (ceil_div(columns, Vec<E>::kWidth) | 1) * Vec<E>::kWidth;
}

// out[rows][nv vectors] (+)= A[rows][n] * B[n][nv vectors]: element (r, k) of A at
// a[r * a_row + k * a_k], row k of B at b + k * b_k.
template <class E>
struct Product {
  const E* a;
  int64_t a_row, a_k;
  const E* b;
  int64_t b_k, n;
  E* out;
  int64_t out_row;
  bool adds;  // to what out holds
};
template <class E, int NV>
struct PartOfProduct {
  const Product<E>& product;
  int64_t k0, k1;
  template <int R>
  FL_INLINE void run(int64_t first) const {
    const Product<E>& q = product;
    Tile<E, R, NV> tile;
    tile.zero();
    tile.accumulate(q.a + first * q.a_row + k0 * q.a_k, q.a_row, q.a_k, q.b + k0 * q.b_k, q.b_k,
                    k1 - k0);
    E* out = q.out + first * q.out_row;
    if (q.adds || k0 > 0) tile.add(out, q.out_row);
    tile.store(out, q.out_row);
  }
};
template <int NV, class E>
void multiply_vectors(const Product<E>& product, int64_t rows, int64_t k_block) {
  const int64_t blocks = ceil_div(product.n, k_block);
  for (int64_t k = 0; k < blocks; ++k) {
    for_tiles<NV>(rows, PartOfProduct<E, NV>{product, split(product.n, k, blocks),
                                             split(product.n, k + 1, blocks)});
  }
}
template <class E>
void multiply(const Product<E>& product, int64_t rows, int64_t nv, int64_t k_block) {
  switch (nv) {
    case 1:
      return multiply_vectors<1>(product, rows, k_block);
    case 2:
      return multiply_vectors<2>(product, rows, k_block);
    case 3:
      return multiply_vectors<3>(product, rows, k_block);
    default:
      return multiply_vectors<4>(product, rows, k_block);
  }
}

// Forward's share: m of the running step, and W_hr^T in blocks of P's columns.
template <class S, class E>
class ForwardProjection {
 public:
  static constexpr int W = Vec<E>::kWidth;

  ForwardProjection(const Problem& problem, const Plan& plan)
      : q_(problem),
        plan_(plan),
        on_(projects(problem)),
        columns_(on_ ? problem.P : 0,
                 plan.split == Split::kUnits ? ceil_div(plan.threads, problem.D) : 1) {}

  void carve(Carver& carver) {
    for (int32_t d = 0; on_ && d < q_.D; ++d) {
      m_[d] = carver.take<E>(q_.B * m_row());
      if (!plan_.dot) w_[d] = carver.take<E>(columns_.vectors * W * q_.H);
    }
  }
  bool on() const { return on_; }
  const ColumnBlocks<E>& columns() const { return columns_; }  // of h
  E* m(int32_t d) const { return m_[d]; }                      // [B][m_row()], or null
  int64_t m_row() const { return padded_row<E>(q_.H); }

  void pack(const Parallel& parallel) const {
    if (!on_ || plan_.dot) return;
    const int64_t tasks = q_.D * columns_.blocks;
    run_tasks(parallel, plan_.threads, [&](int64_t i) {
      for (int64_t j = split(tasks, i, plan_.threads); j < split(tasks, i + 1, plan_.threads);
           ++j) {
        pack_block(static_cast<int32_t>(j % q_.D), j / q_.D);
      }
    });
  }
  // sums[rows][nv vectors] = m[rows] times one column block.
  void product(int32_t d, int64_t block, const E* m, int64_t rows, E* sums) const {
    const int64_t v0 = columns_.first(block), nv = columns_.first(block + 1) - v0;
    const E* w = w_[d] + v0 * W * q_.H;
    multiply(Product<E>{m, m_row(), 1, w, nv * W, q_.H, sums, nv * W, false}, rows, nv,
             plan_.k_block);
  }

 private:
  void pack_block(int32_t d, int64_t block) const {
    const S* w_hr = static_cast<const S*>(q_.weights[d].w_hr);
    const int64_t v0 = columns_.first(block), v1 = columns_.first(block + 1);
    for (int64_t v = v0; v < v1; ++v) {
      pack_transposed(w_hr + v * W * q_.H, q_.H, static_cast<int>(min64(W, q_.P - v * W)), q_.H,
                      w_[d] + v0 * W * q_.H + (v - v0) * W, (v1 - v0) * W);
    }
  }

  const Problem& q_;
  const Plan& plan_;
  const bool on_;
  const ColumnBlocks<E> columns_;
  E* m_[2] = {};
  E* w_[2] = {};
};

// Backward's share: dh and m of a chunk of steps, W_hr in blocks of H's columns, and dW_hr.
template <class S, class E>
class BackwardProjection {
 public:
  static constexpr int W = Vec<E>::kWidth;

  BackwardProjection(const Problem& problem, const Gradients& gradients, const Plan& plan)
      : q_(problem),
        g_(gradients),
        plan_(plan),
        on_(projects(problem)),
        columns_(on_ ? problem.H : 0,
                 plan.split == Split::kUnits ? ceil_div(plan.threads, problem.D) : 1) {}

  void carve(Carver& carver, int64_t chunk_rows) {
    for (int32_t d = 0; on_ && d < q_.D; ++d) {
      Side& side = sides_[d];
      side.dh = carver.take<E>(chunk_rows * dh_row());
      if (!plan_.dot) side.w = carver.take<E>(q_.P * columns_.vectors * W);
      if (g_.weights[d].dw_hr) {
        side.m = carver.take<E>(chunk_rows * m_row());
        side.dw = carver.take<E>(q_.P * m_row());
      }
    }
  }
  bool on() const { return on_; }
  const ColumnBlocks<E>& columns() const { return columns_; }  // of m: vector v holds panel v
  // Row r of the chunk; m is null when nobody wants dW_hr.
  E* dh(int32_t d, int64_t r) const { return sides_[d].dh + r * dh_row(); }
  E* m(int32_t d, int64_t r) const { return sides_[d].m ? sides_[d].m + r * m_row() : nullptr; }
  int64_t dh_row() const { return padded_row<E>(q_.P); }
  int64_t m_row() const { return padded_row<E>(q_.H); }

  void pack(const Parallel& parallel) const {
    if (!on_ || plan_.dot) return;
    const int64_t tasks = q_.D * columns_.blocks;
    run_tasks(parallel, plan_.threads, [&](int64_t i) {
      for (int64_t j = split(tasks, i, plan_.threads); j < split(tasks, i + 1, plan_.threads);
           ++j) {
        pack_block(static_cast<int32_t>(j % q_.D), j / q_.D);
      }
    });
  }
  // sums[rows][nv vectors] = dm: dh from row r of the chunk on, times one column block.
  void product(int32_t d, int64_t r, int64_t rows, int64_t block, E* sums) const {
    const int64_t v0 = columns_.first(block), nv = columns_.first(block + 1) - v0;
    if (plan_.dot) return product_natural(d, r, rows, v0, nv, sums);
    const E* w = sides_[d].w + v0 * W * q_.P;
    multiply(Product<E>{dh(d, r), dh_row(), 1, w, nv * W, q_.P, sums, nv * W, false}, rows, nv,
             plan_.k_block);
  }
  // Adds a chunk of `rows` rows to dW_hr; `fresh`: it is the first.
  void weight_gradient(const Parallel& parallel, int32_t d, int64_t rows, bool fresh) const {
    const Side& side = sides_[d];
    if (side.dw == nullptr) return;
    constexpr int64_t kBlock = 32;  // as in accumulate_panel
    const int64_t threads = min64(plan_.threads, columns_.blocks);
    run_tasks(parallel, threads, [&](int64_t i) {
      const int64_t end = split(columns_.blocks, i + 1, threads);
      for (int64_t block = split(columns_.blocks, i, threads); block < end; ++block) {
        const int64_t v0 = columns_.first(block), nv = columns_.first(block + 1) - v0;
        multiply(Product<E>{side.dh, 1, dh_row(), side.m + v0 * W, m_row(), rows, side.dw + v0 * W,
                            m_row(), !fresh},
                 q_.P, nv, kBlock);
      }
    });
  }
  void finish() const {
    for (int32_t d = 0; on_ && d < q_.D; ++d) {
      S* out = static_cast<S*>(g_.weights[d].dw_hr);
      for (int64_t p = 0; out && p < q_.P; ++p, out += q_.H) {
        for (int64_t k = 0; k < q_.H; k += W) {
          store_as(Vec<E>::load(sides_[d].dw + p * m_row() + k), out + k,
                   static_cast<int>(min64(W, q_.H - k)));
        }
      }
    }
  }

 private:
  struct Side {
    E* dh = nullptr;  // [chunk rows][dh_row()]
    E* m = nullptr;   // [chunk rows][m_row()]
    E* w = nullptr;   // column blocks of W_hr, [P][nv vectors] each
    E* dw = nullptr;  // [P][m_row()]
  };

  static FL_INLINE Vec<E> load_columns(const S* p, int64_t left) {
    return left >= W ? load_as(Tag<E>{}, p) : load_as(Tag<E>{}, p, static_cast<int>(left));
  }
  void pack_block(int32_t d, int64_t block) const {
    const S* w_hr = static_cast<const S*>(q_.weights[d].w_hr);
    const int64_t v0 = columns_.first(block), v1 = columns_.first(block + 1);
    E* dst = sides_[d].w + v0 * W * q_.P;
    for (int64_t p = 0; p < q_.P; ++p) {
      for (int64_t k = v0 * W; k < v1 * W; k += W, dst += W) {
        load_columns(w_hr + p * q_.H + k, q_.H - k).store(dst);
      }
    }
  }
  // From W_hr as it lies, [P, H], row by row.
  void product_natural(int32_t d, int64_t r, int64_t rows, int64_t v0, int64_t nv, E* sums) const {
    const S* w_hr = static_cast<const S*>(q_.weights[d].w_hr);
    for (int64_t end = r + rows; r < end; ++r, sums += nv * W) {
      Vec<E> acc[4] = {Vec<E>::set1(0), Vec<E>::set1(0), Vec<E>::set1(0), Vec<E>::set1(0)};
      const S* w = w_hr + v0 * W;
      for (int64_t p = 0; p < q_.P; ++p, w += q_.H) {
        const Vec<E> x = Vec<E>::set1(dh(d, r)[p]);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          if (v < nv) acc[v] = fma(x, load_columns(w + v * W, q_.H - (v0 + v) * W), acc[v]);
        }
      }
      for (int64_t v = 0; v < nv; ++v) acc[v].store(sums + v * W);
    }
  }

  const Problem& q_;
  const Gradients& g_;
  const Plan& plan_;
  const bool on_;
  const ColumnBlocks<E> columns_;
  Side sides_[2];
};
