// What forward keeps for the matrix unit: weights, x and h as tiles. Included inside an ISA's
// namespace, before forward.h, which has the steps.

template <class S>
struct MatrixForward {  // for types that have none
  MatrixForward(const Problem&, const Plan&) {}
  void carve(Carver&, int64_t) {}
};

#if FUSED_LSTM_MATRIX
template <>
class MatrixForward<BFloat16> {
 public:
  MatrixForward(const Problem& problem, const Plan& plan)
      : q_(problem),
        plan_(plan),
        panels_(ceil_div(problem.H, 16)),
        x_blocks_(ceil_div(problem.I, kTileK)),
        h_blocks_(ceil_div(problem.H, kTileK)),
        row_blocks_(ceil_div(problem.B, kTileRows) + 1) {}  // products take two at a time

  void carve(Carver& carver, int64_t chunk_rows) {
    if (!plan_.matrix) return;
    for (int32_t d = 0; d < q_.D; ++d) {
      Side& side = sides_[d];
      side.weights = carver.take<BFloat16>(panels_ * panel_size());
      for (BFloat16*& h : side.h) h = carver.take<BFloat16>(row_blocks_ * h_blocks_ * kTileSize);
      if (plan_.fused) continue;
      side.w_x = carver.take<BFloat16>(panels_ * input_size());
      side.x = carver.take<BFloat16>((ceil_div(chunk_rows, kTileRows) + 1) * x_blocks_ * kTileSize);
    }
    const int32_t steps = plan_.split == Split::kRows ? q_.D : plan_.threads;
    for (int32_t i = 0; plan_.fused && i < steps; ++i) {
      x_steps_[i] = carver.take<BFloat16>(row_blocks_ * x_blocks_ * kTileSize);
    }
    const bool changes_h = q_.marks != nullptr || q_.h_factors != nullptr;
    for (int32_t i = 0; changes_h && i < steps; ++i) {
      h_steps_[i] = carver.take<BFloat16>(row_blocks_ * h_blocks_ * kTileSize);
    }
  }

  // Packs panel p of direction d.
  void pack(int32_t d, int64_t p) const {
    const Weights& w = q_.weights[d];
    const Side& side = sides_[d];
    BFloat16* panel = side.weights + p * panel_size();
    pack_matrix_panel(static_cast<const BFloat16*>(w.w_ih), q_.H, q_.I, p,
                      plan_.fused ? panel : side.w_x + p * input_size());
    pack_matrix_panel(static_cast<const BFloat16*>(w.w_hh), q_.H, q_.H, p,
                      panel + (plan_.fused ? input_size() : 0));
  }
  // Both buffers of h begin as h0: rows of packed input that start late find it in either.
  void start(int32_t d) const {
    for (BFloat16* h : sides_[d].h) {
      std::memset(h, 0, static_cast<size_t>(row_blocks_ * h_blocks_ * kTileSize) * sizeof(*h));
      for (int64_t b = 0; q_.h0 && b < q_.B; ++b) {
        copy_row(static_cast<const BFloat16*>(q_.h0) + (d * q_.B + b) * q_.H, q_.H, b, h_blocks_,
                 h);
      }
    }
  }

  // A row of x: of the running step, for a task; or of the chunk that is projected ahead.
  void copy_step_row(int32_t d, int64_t task, const BFloat16* x, int64_t b) const {
    copy_row(x, q_.I, b, x_blocks_, x_step(d, task));
  }
  // A row of h where a step takes another than the step before left (marks.h).
  void copy_step_h(int32_t d, int64_t task, const BFloat16* h, int64_t b) const {
    copy_row(h, q_.H, b, h_blocks_, h_step(d, task));
  }
  void copy_chunk_row(int32_t d, const BFloat16* x, int64_t row) const {
    copy_row(x, q_.I, row, x_blocks_, sides_[d].x);
  }

  // sums [up to 32 rows][4 * 16]: rows from b on (a multiple of 16) of processing step s, panel p.
  // `changed`: of h as copy_step_h() left it.
  void step_product(MatrixUnit& unit, int32_t d, int64_t task, int64_t s, int64_t p, int64_t b,
                    int blocks, bool changed, float* sums) const {
    const Side& side = sides_[d];
    const BFloat16* panel = side.weights + p * panel_size();
    const int64_t x_row = x_blocks_ * kTileSize, h_row = h_blocks_ * kTileSize;
    MatrixOperand operands[2];
    int count = 0;
    if (plan_.fused) {
      operands[count++] = {x_step(d, task) + b / kTileRows * x_row, x_row, panel, x_blocks_};
      panel += input_size();
    }
    const BFloat16* h = changed ? h_step(d, task) : side.h[(s + 1) & 1];
    operands[count++] = {h + b / kTileRows * h_row, h_row, panel, h_blocks_};
    matrix_product<1, 1>(unit, operands, count, blocks, kGroups, sums, kGroups * 16);
  }
  // The same for rows of the chunk, x W_ih^T.
  void input_product(MatrixUnit& unit, int32_t d, int64_t p, int64_t row, int blocks,
                     float* sums) const {
    const int64_t x_row = x_blocks_ * kTileSize;
    const MatrixOperand operand{sides_[d].x + row / kTileRows * x_row, x_row,
                                sides_[d].w_x + p * input_size(), x_blocks_};
    matrix_product<1, 1>(unit, &operand, 1, blocks, kGroups, sums, kGroups * 16);
  }
  // Where h of panel p goes in processing step s: row b at + row_in_tiles(b, h_block()).
  BFloat16* h_at(int32_t d, int64_t s, int64_t p) const {
    return sides_[d].h[s & 1] + p / 2 * kTileSize + p % 2 * 16;
  }
  int64_t h_block() const { return h_blocks_ * kTileSize; }

 private:
  struct Side {
    BFloat16* weights = nullptr;  // [panel][k blocks of I (if fused), then of H][B's tiles]
    BFloat16* h[2] = {};          // rows of a step as A's tiles, for even and odd steps
    BFloat16* w_x = nullptr;      // [panel][k blocks of I] when x is projected ahead
    BFloat16* x = nullptr;        // rows of the chunk as A's tiles, likewise
  };
  // Tasks that split rows share one: theirs are whole tiles.
  BFloat16* x_step(int32_t d, int64_t task) const {
    return x_steps_[plan_.split == Split::kRows ? d : task];
  }
  BFloat16* h_step(int32_t d, int64_t task) const {
    return h_steps_[plan_.split == Split::kRows ? d : task];
  }
  int64_t input_size() const { return x_blocks_ * kGroups * kTileSize; }
  int64_t panel_size() const {
    return ((plan_.fused ? x_blocks_ : 0) + h_blocks_) * kGroups * kTileSize;
  }

  const Problem& q_;
  const Plan& plan_;
  const int64_t panels_, x_blocks_, h_blocks_, row_blocks_;
  Side sides_[2];
  BFloat16* x_steps_[256] = {};  // when x is fused: rows of the running step
  BFloat16* h_steps_[256] = {};  // where h may change between steps: rows that the step takes
};
#endif
