// What backward keeps for the matrix unit: weights, dgates, and [x, h] as tiles. Included inside an
// ISA's namespace, before backward.h, which has the steps.
//
// A chunk's rows are counted with every step padded to whole tiles: row b of the chunk's step n is
// row n * step_rows() + b. dgates are kept twice, in two parts each: with rows as A's rows, for
// what goes to the step before and to dx, and with rows as B's k, for dW = [x, h]^T dgates.

template <class S>
struct MatrixBackward {  // for types that have none
  MatrixBackward(const Problem&, const Gradients&, const Plan&) {}
  void carve(Carver&, int64_t, int64_t) {}
  int64_t features(int32_t) const { return 0; }
};

#if FUSED_LSTM_MATRIX
template <>
class MatrixBackward<BFloat16> {
 public:
  using Columns = ColumnBlocks<float>;

  MatrixBackward(const Problem& problem, const Gradients& gradients, const Plan& plan)
      : q_(problem),
        g_(gradients),
        plan_(plan),
        panels_(ceil_div(problem.H, 16)),
        step_blocks_(ceil_div(problem.B, kTileRows)),
        row_tiles_(ceil_div(min64(plan.chunk_steps, problem.T) * step_rows(), kTileK)) {}

  void carve(Carver& carver, int64_t state_blocks, int64_t input_blocks) {
    if (!plan_.matrix) return;
    for (int32_t d = 0; d < q_.D; ++d) {
      Side& side = sides_[d];
      // A block of columns has room for four groups, whether it has as many or not.
      side.w_hh = carver.take<BFloat16>(state_blocks * block_size());
      side.w_ih = carver.take<BFloat16>(g_.dx ? input_blocks * block_size() : 0);
      side.rows = carver.take<BFloat16>((row_tiles_ * 2 + 1) * a_block());
      side.later = carver.take<BFloat16>((step_blocks_ + 1) * a_block());
      side.columns = carver.take<BFloat16>(features(d) > 0 ? panels_ * b_panel() : 0);
      side.z = carver.take<BFloat16>(features(d) * row_tiles_ * kTileK);
    }
    scaled_ = carver.take<BFloat16>(q_.h_factors ? plan_.threads * kTileK * q_.P : 0);
  }
  // Room of a task for one of 32 rows of h, multiplied by its factors.
  BFloat16* scaled_row(int64_t task, int64_t row) const {
    return scaled_ + (task * kTileK + row) * q_.P;
  }
  // What products read and nobody writes is zero.
  void start(int32_t d) const {
    const Side& side = sides_[d];
    if (features(d) == 0) return;
    std::memset(side.columns, 0, static_cast<size_t>(panels_ * b_panel()) * sizeof(BFloat16));
    std::memset(side.z, 0,
                static_cast<size_t>(features(d) * row_tiles_ * kTileK) * sizeof(BFloat16));
  }

  int64_t step_rows() const { return step_blocks_ * kTileRows; }
  // Features of [x, h] whose dW is wanted, each of the two padded to whole tiles, and to two in
  // all.
  int64_t features(int32_t d) const {
    return ceil_div(first_of_h(d) + (g_.weights[d].dw_hh ? ceil_to_tile(q_.P) : 0), 32) * 32;
  }
  int64_t first_of_h(int32_t d) const { return g_.weights[d].dw_ih ? ceil_to_tile(q_.I) : 0; }

  // Columns of a block of w [4H, n]: k runs over (panel, gate, unit).
  void pack_state_block(int32_t d, const Columns& columns, int64_t block) const {
    pack(static_cast<const BFloat16*>(q_.weights[d].w_hh), columns, block,
         sides_[d].w_hh + block * block_size());
  }
  void pack_input_block(int32_t d, const Columns& columns, int64_t block) const {
    pack(static_cast<const BFloat16*>(q_.weights[d].w_ih), columns, block,
         sides_[d].w_ih + block * block_size());
  }

  // dgates of one row of the chunk, panel p. Rows of a step come in order.
  FL_INLINE void store(int32_t d, int64_t p, int64_t row, const Gates<Vec<float>>& grad) const {
    const Side& side = sides_[d];
    BFloat16* a = side.rows + row_in_tiles(row, a_block()) + p * 4 * kTileSize;
    const Vec<float>* gates[4] = {&grad.i, &grad.f, &grad.g, &grad.o};
    BFloat16* b = side.columns + p * b_panel() + row / kTileK * 2 * kGroups * kTileSize +
                  row % kTileK / 2 * 32;
    const bool wanted = features(d) > 0;
#pragma GCC unroll 4
    for (int gate = 0; gate < 4; ++gate) {
      BFloat16* high = a + gate / 2 * 2 * kTileSize + gate % 2 * 16;
      BFloat16* low = high + kTileSize;
      store_as(*gates[gate], high);
      // Infinity has no second part.
      store_as(zero_for_nan(*gates[gate] - load_as(Tag<float>{}, high)), low);
      if (!wanted) continue;
      store_halves(high, b + gate * kTileSize, row % 2);
      store_halves(low, b + (kGroups + gate) * kTileSize, row % 2);
    }
  }
  // A's row blocks of the chunk's step n, or of the step after the chunk.
  const BFloat16* rows_of_step(int32_t d, int64_t n) const {
    return sides_[d].rows + n * step_blocks_ * a_block();
  }
  const BFloat16* later(int32_t d) const { return sides_[d].later; }
  void keep_later(int32_t d, int64_t n) const {
    std::memcpy(sides_[d].later, rows_of_step(d, n),
                static_cast<size_t>(step_blocks_ * a_block()) * sizeof(BFloat16));
  }

  // sums [rows, and up to 31 more][groups * 16] = dgates times a block of W_hh's or W_ih's columns;
  // rows from `row` on (a multiple of 16) of a step's.
  void state_product(int32_t d, const BFloat16* step, int64_t row, int64_t rows, int64_t block,
                     int groups, float* sums) const {
    product(step, row, rows, sides_[d].w_hh + block * block_size(), groups, sums);
  }
  void input_product(int32_t d, const BFloat16* step, int64_t row, int64_t rows, int64_t block,
                     int groups, float* sums) const {
    product(step, row, rows, sides_[d].w_ih + block * block_size(), groups, sums);
  }

  // [x, h] of 32 rows of the chunk, turned: source(part, row) is a row of x (part 0) or of the h
  // before it, or null for zeros.
  template <class F>
  void pack_features(int32_t d, int64_t tile, const F& source) const {
    for (int part = 0; part < 2; ++part) {
      if (part == 0 ? !g_.weights[d].dw_ih : !g_.weights[d].dw_hh) continue;
      const BFloat16* rows[kTileK];
      for (int64_t r = 0; r < kTileK; ++r) rows[r] = source(part, tile * kTileK + r);
      const int64_t n = part == 0 ? q_.I : q_.P;
      const int64_t first = part == 0 ? 0 : first_of_h(d);
      for (int64_t k = 0; k < n; k += 16) {
        alignas(64) BFloat16 pairs[kTileSize];  // [pair of rows][feature][2]
        for (int64_t r = 0; r < kTileK; ++r) {
          const BFloat16* src = rows[r] ? rows[r] + k : nullptr;
          alignas(32) BFloat16 edge[16] = {};
          if (src == nullptr || n - k < 16) {
            if (src) std::memcpy(edge, src, static_cast<size_t>(n - k) * sizeof(BFloat16));
            src = edge;
          }
          store_halves(src, pairs + r / 2 * 32, r % 2);
        }
        transpose_words(pairs, sides_[d].z + ((first + k) / 16 * row_tiles_ + tile) * kTileSize);
      }
    }
  }
  // panel [features][4 * 16] (+)= [x, h]^T dgates of panel p, over the first `tiles` * 32 rows.
  void accumulate_panel(int32_t d, int64_t p, int64_t tiles, bool fresh, float* panel) const {
    const Side& side = sides_[d];
    MatrixUnit unit;
    alignas(64) float sums[2 * kTileRows * 64];
    for (int64_t f = 0; f < features(d); f += 2 * kTileRows) {
      const MatrixOperand operand{side.z + f / 16 * row_tiles_ * kTileSize, row_tiles_ * kTileSize,
                                  side.columns + p * b_panel(), tiles};
      float* out = panel + f * 64;
      matrix_product<1, 2>(unit, &operand, 1, 2, kGroups, fresh ? out : sums, 64);
      if (fresh) continue;
      for (int64_t k = 0; k < 2 * kTileRows * 64; k += 16) {
        (Vec<float>::load(out + k) + Vec<float>::load(sums + k)).store(out + k);
      }
    }
  }

 private:
  struct Side {
    BFloat16* w_hh = nullptr;     // [column block][k blocks of 4H][B's tiles]
    BFloat16* w_ih = nullptr;     // likewise, for dx
    BFloat16* rows = nullptr;     // dgates of the chunk as A
    BFloat16* later = nullptr;    // of the step after the chunk, as A
    BFloat16* columns = nullptr;  // of the chunk as B: [panel][32 rows][part][gate][tile]
    BFloat16* z = nullptr;        // [x, h] of the chunk as A, features as its rows
  };
  static int64_t ceil_to_tile(int64_t n) { return ceil_div(n, kTileRows) * kTileRows; }
  int64_t a_block() const { return 4 * panels_ * kTileSize; }  // two k blocks in two parts a panel
  int64_t b_panel() const { return row_tiles_ * 2 * kGroups * kTileSize; }
  int64_t block_size() const { return 2 * panels_ * kGroups * kTileSize; }

  void pack(const BFloat16* w, const Columns& columns, int64_t block, BFloat16* dst) const {
    const int64_t v0 = columns.first(block), groups = columns.first(block + 1) - v0;
    std::memset(dst, 0, static_cast<size_t>(block_size()) * sizeof(BFloat16));
    for (int64_t p = 0; p < panels_; ++p) {
      const int64_t units = min64(16, q_.H - p * 16);
      for (int gate = 0; gate < 4; ++gate) {
        BFloat16* tiles = dst + (2 * p + gate / 2) * kGroups * kTileSize + gate % 2 * 8 * 32;
        for (int64_t u = 0; u < units; ++u) {
          const BFloat16* src = w + (gate * q_.H + p * 16 + u) * columns.n;
          for (int64_t g = 0; g < groups; ++g) {
            const int64_t c = (v0 + g) * 16, count = min64(16, columns.n - c);
            BFloat16* out = tiles + g * kTileSize + u / 2 * 32 + u % 2;
            for (int64_t j = 0; j < count; ++j) out[2 * j] = src[c + j];
          }
        }
      }
    }
  }
  void product(const BFloat16* step, int64_t row, int64_t rows, const BFloat16* w, int groups,
               float* sums) const {
    MatrixUnit unit;
    for (int64_t r = 0; r < rows; r += 2 * kTileRows) {
      const MatrixOperand operand{step + (row + r) / kTileRows * a_block(), a_block(), w,
                                  2 * panels_};
      matrix_product<2, 1>(unit, &operand, 1, rows - r > kTileRows ? 2 : 1, groups,
                           sums + r * groups * 16, groups * 16);
    }
  }

  const Problem& q_;
  const Gradients& g_;
  const Plan& plan_;
  const int64_t panels_, step_blocks_, row_tiles_;
  Side sides_[2];
  BFloat16* scaled_ = nullptr;
};
#endif
