// Forward from frozen weights (../frozen.h), for one layer. Included inside an ISA's namespace.
//
// As forward.h, cut down to what inference of few rows needs: the input is projected ahead, a chunk
// of steps at a time, so that W_ih is read once for all of them; then every step streams W_hh.
// Weights are widened to float in registers, on their way into tile.h's loop. With one row nothing
// else happens to them, with more rows a widened vector serves up to six. bfloat16 lies such that
// a shift or a mask widens a vector; loads that widen held up Zen 4. 8-bit weights are not
// widened where integers are quicker (bytes.h).
//
// Panels hold kFrozenUnits units for every processor. A vector may hold fewer: a panel is then
// walked strip by strip, W of its units each, and everything kept in the workspace is per strip.
// Strips share cache lines, so all of them take a block of k before the next comes.

template <class K>  // as stored: float, BFloat16 or int8_t
class FrozenForward {
 public:
  static constexpr int W = Vec<float>::kWidth;
  static constexpr int G = 4 * W;  // sums of one row in a strip
  static constexpr int kUnits = static_cast<int>(kFrozenUnits);
  static constexpr int kStrips = kUnits / W;         // of a panel
  static constexpr int64_t kRow = 4 * kFrozenUnits;  // elements of one k in a panel
  static_assert(kStrips * W == kUnits, "a panel is whole vectors");

  FrozenForward(const Problem& problem, const Frozen& frozen, const Outputs& outputs,
                const Plan& plan, void* workspace)
      : q_(problem),
        frozen_(frozen),
        out_(outputs),
        plan_(plan),
        panels_(ceil_div(problem.H, kFrozenUnits)),
        chunk_rows_(min64(plan.chunk_steps, problem.T) * problem.B) {
    Carver carver(workspace);
    offsets_ = carver.take<int64_t>(q_.batch_sizes ? q_.T + 1 : 0);
    zeros_ = carver.take<float>(q_.h0 ? 0 : q_.H);
    barriers_ = carver.take<Barrier>(q_.D);
    if (plan.byte_product.run != nullptr) {
      x_bytes_ = carve_bytes(carver, q_.D * chunk_rows_, q_.I);
      h_bytes_ = carve_bytes(carver, plan.threads * q_.B, q_.H);
    }
    for (int32_t d = 0; d < q_.D; ++d) {
      projected_[d] = carver.take<float>(panels_ * kStrips * chunk_rows_ * G);
    }
    workspace_bytes_ = carver.used();
    if (workspace != nullptr) steps_ = make_steps(problem, offsets_);
  }

  size_t workspace_bytes() const { return workspace_bytes_; }

  void run(const Parallel& parallel) {
    for (int32_t d = 0; d < q_.D; ++d) new (&barriers_[d]) Barrier();
    start_states();
    for (int64_t first = 0; first < q_.T; first += plan_.chunk_steps) {
      const int64_t last = min64(q_.T, first + plan_.chunk_steps);
      if (kBytes && plan_.byte_product.run != nullptr) x_to_bytes(parallel, first, last);
      const int64_t tasks = min64(plan_.threads, q_.D * panels_);
      run_tasks(parallel, tasks, [&](int64_t i) {
        for (int64_t j = split(q_.D * panels_, i, tasks); j < split(q_.D * panels_, i + 1, tasks);
             ++j) {
          project(static_cast<int32_t>(j / panels_), j % panels_, first, last);
        }
      });
      run_team(parallel, plan_.threads, [&](int32_t rank, int32_t parties) {
        const Share share = share_of(rank, parties, q_.D);
        for (int32_t d = share.first_side; d < share.last_side; ++d) {
          recur(d, first, last, split(panels_, share.index, share.count),
                split(panels_, share.index + 1, share.count), static_cast<int32_t>(share.count),
                rank);
        }
      });
    }
  }

 private:
  int64_t time_of(int32_t d, int64_t s) const { return d == 0 ? s : q_.T - 1 - s; }
  // First time step of the chunk of processing steps [first, last).
  int64_t chunk_begin(int32_t d, int64_t first, int64_t last) const {
    return d == 0 ? first : q_.T - last;
  }
  Sequence<const float> x_sequence() const {
    return {static_cast<const float*>(q_.x), q_.x_t, q_.x_b, steps_};
  }
  Sequence<float> y_sequence(int32_t d) const {
    return {static_cast<float*>(out_.y) + d * q_.H, out_.y_t, out_.y_b, steps_};
  }
  float* c_of(int32_t d) const { return static_cast<float*>(out_.c_n) + d * q_.B * q_.H; }
  float* h_n_of(int32_t d) const { return static_cast<float*>(out_.h_n) + d * q_.B * q_.H; }
  const K* panel(int32_t d, int64_t p) const {
    return static_cast<const K*>(frozen_.weights[d].panels) +
           p * (frozen_rows(frozen_.stored, q_.I) + frozen_rows(frozen_.stored, q_.H)) * kRow;
  }
  const K* state_panel(int32_t d, int64_t p) const {
    return panel(d, p) + frozen_rows(frozen_.stored, q_.I) * kRow;
  }
  // Elements between the strips of a panel.
  static constexpr int kStrip = std::is_same<K, BFloat16>::value ? 2 * W : W;
  int strips_of(int64_t p) const {
    return static_cast<int>(ceil_div(min64(kFrozenUnits, q_.H - p * kFrozenUnits), W));
  }
  // What the sums of gate j, strip s of panel p are multiplied with: `which` is 0 for W_ih, 1 for
  // W_hh.
  Vec<float> scale(int32_t d, int which, int64_t p, int s, int j) const {
    return Vec<float>::load(frozen_.weights[d].scales +
                            ((which * panels_ + p) * 4 + j) * kFrozenUnits + s * W);
  }
  static constexpr bool kScaled = std::is_same<K, int8_t>::value;
  static constexpr bool kBytes = kScaled && W >= 8;  // may go by bytes.h

  // c lives in c_n from the first step on; h_n takes every row's h, the last one stays.
  void start_states() {
    const size_t bytes = static_cast<size_t>(q_.D * q_.B * q_.H) * sizeof(float);
    if (q_.c0 != nullptr) {
      std::memcpy(out_.c_n, q_.c0, bytes);
    } else {
      std::memset(out_.c_n, 0, bytes);
    }
    for (int64_t u = 0; q_.h0 == nullptr && u < q_.H; ++u) zeros_[u] = 0;
  }

  // Strip s of a panel: out + s * out_strip, [R][4][W] = rows of a [R][n] times n rows of it.
  template <int R>
  FL_INLINE void multiply(const float* a, int64_t a_row, const K* w, int64_t n, int strips,
                          float* out, int64_t out_strip) const {
    if constexpr (kScaled && W < 8 && R > 4) {  // widening 8 bits takes registers that NEON lacks
      multiply<R - 3>(a, a_row, w, n, strips, out, out_strip);
      const int64_t row = R - 3;
      return multiply<3>(a + row * a_row, a_row, w, n, strips, out + row * G, out_strip);
    }
    constexpr int64_t kTogether = kScaled ? 4 : 1;  // rows that lie side by side
    const int64_t blocks = ceil_div(n, plan_.k_block), groups = ceil_div(n, kTogether);
    for (int64_t k = 0; k < blocks; ++k) {
      const int64_t k0 = split(groups, k, blocks) * kTogether;
      const int64_t k1 = min64(n, split(groups, k + 1, blocks) * kTogether);
      for (int s = 0; s < strips; ++s) {
        float* sums = out + s * out_strip;
        Tile<float, R, 4> tile;
        tile.zero();
        if constexpr (kScaled) {
          tile.template accumulate_quads<4 * kUnits>(a + k0, a_row, w + k0 * kRow + s * 4 * W,
                                                     4 * kRow, k1 - k0);
        } else {
          tile.template accumulate<kUnits>(a + k0, a_row, 1, w + k0 * kRow + s * kStrip, kRow,
                                           k1 - k0);
        }
        if (k > 0) tile.add(sums, G);
        tile.store(sums, G);
      }
    }
  }

  // The same by bytes.h for rows that it holds, each by itself where others are not: what a row
  // gives does not depend on its neighbours.
  template <int R>
  FL_INLINE void multiply_any(const ByteRows& bytes, const float* a, int64_t a_row, const K* w,
                              int64_t n, int strips, float* out, int64_t out_strip) const {
    if (kBytes && plan_.byte_product.run != nullptr) {
      return multiply_bytes(bytes, a, a_row, w, n, R, strips, out, out_strip);
    }
    multiply<R>(a, a_row, w, n, strips, out, out_strip);
  }
  __attribute__((noinline)) void multiply_bytes(const ByteRows& bytes, const float* a,
                                                int64_t a_row, const K* w, int64_t n, int64_t rows,
                                                int strips, float* out, int64_t out_strip) const {
    const uint8_t* weights = reinterpret_cast<const uint8_t*>(w);
    int64_t held = 0;
    while (held < rows && bytes.units[held] != 0) ++held;
    if (held == rows) {
      return plan_.byte_product.run(weights, ceil_div(n, 4), bytes, rows, out, out_strip);
    }
    for (int64_t r = 0; r < rows; ++r) {
      if (bytes.units[r] != 0) {
        plan_.byte_product.run(weights, ceil_div(n, 4), bytes.from(r), 1, out + r * G, out_strip);
      } else {
        multiply<1>(a + r * a_row, a_row, w, n, strips, out + r * G, out_strip);
      }
    }
  }

  // bias + x W_ih^T for a tile of rows of one panel.
  struct ProjectTile {
    const FrozenForward& f;
    const float* x;
    int64_t x_row;
    int32_t d;
    int64_t p;
    float* out;      // of its first strip
    ByteRows bytes;  // of x, where there are any
    template <int R>
    FL_INLINE void run(int64_t row) const {
      const int strips = f.strips_of(p);
      const int64_t out_strip = f.chunk_rows_ * G;
      f.multiply_any<R>(bytes.from(row), x + row * x_row, x_row, f.panel(d, p), f.q_.I, strips,
                        out + row * G, out_strip);
      for (int s = 0; s < strips; ++s) add_bias(out + s * out_strip + row * G, s, R);
    }
    __attribute__((noinline)) void add_bias(float* sums, int s, int64_t rows) const {
      for (int j = 0; j < 4; ++j) {
        const Vec<float> bias =
            Vec<float>::load(f.frozen_.weights[d].bias + (p * 4 + j) * kFrozenUnits + s * W);
        for (int64_t r = 0; r < rows; ++r) {
          float* at = sums + r * G + j * W;
          const Vec<float> sum = Vec<float>::load(at);
          if constexpr (kScaled) {
            fma(sum, f.scale(d, 0, p, s, j), bias).store(at);
          } else {
            (sum + bias).store(at);
          }
        }
      }
    }
  };

  float* projected(int32_t d, int64_t p, int s) const {
    return projected_[d] + (p * kStrips + s) * chunk_rows_ * G;
  }

  void project(int32_t d, int64_t p, int64_t first, int64_t last) const {
    const Sequence<const float> x = x_sequence();
    const int64_t begin = chunk_begin(d, first, last), end = begin + last - first;
    const bool uniform = x.uniform(steps_);
    float* out = projected(d, p, 0);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t next = uniform ? end : t + 1;
      const int64_t row = steps_.offset(t) - steps_.offset(begin);
      for_tiles<4>(
          steps_.offset(next) - steps_.offset(t),
          ProjectTile{*this, x.step(steps_, t), uniform ? x.uniform_stride(steps_) : x.stride_b, d,
                      p, out + row * G, x_bytes_.from(d * chunk_rows_ + row)});
      t = next - 1;
    }
  }

  // Rows [begin, end) of one step, whose previous h lies in one place.
  struct Segment {
    int64_t begin, end;
    const float* h;  // row b at h + b * h_row
    int64_t h_row;
  };

  // First the rows that had a step before processing step s, then those that start here.
  int segments_of(int32_t d, int64_t s, Segment* segments) const {
    const int64_t end = steps_.rows(time_of(d, s));
    const int64_t running = s == 0 ? 0 : min64(end, steps_.rows(time_of(d, s - 1)));
    int count = 0;
    if (running > 0) {
      const Sequence<float> y = y_sequence(d);
      segments[count++] = {0, running, y.step(steps_, time_of(d, s - 1)), y.stride_b};
    }
    if (running < end) {
      const float* h0 = static_cast<const float*>(q_.h0);
      segments[count++] = {running, end, h0 ? h0 + d * q_.B * q_.H : zeros_, h0 ? q_.H : 0};
    }
    return count;
  }

  // A tile of rows of one panel at one step: products with W_hh, and the cells at once.
  struct GateTile {
    const FrozenForward& f;
    const Segment& segment;
    int32_t d;
    int64_t p;
    int64_t start;  // rows of the chunk before this step's
    float* y;       // row b's h of the panel at y + b * y_row
    int64_t y_row;
    ByteRows bytes;  // of h, where there are any
    template <int R>
    FL_INLINE void run(int64_t offset) const {
      const int64_t b = segment.begin + offset;
      alignas(64) float sums[kStrips * R * G];
      const int strips = f.strips_of(p);
      f.multiply_any<R>(bytes.from(b), segment.h + b * segment.h_row, segment.h_row,
                        f.state_panel(d, p), f.q_.H, strips, sums, R * G);
      for (int s = 0; s < strips; ++s) cells(sums + s * R * G, s, b, R);
    }
    // A function of its own: one in every size of tile would be most of the code there is.
    __attribute__((noinline)) void cells(const float* sums, int s, int64_t b, int64_t rows) const {
      const float* begun = f.projected(d, p, s) + (start + b) * G;
#pragma GCC unroll 1
      for (int64_t r = 0; r < rows; ++r) cell(sums + r * G, begun + r * G, s, b + r);
    }
    FL_INLINE Vec<float> sum_of(const float* sums, const float* projected, int s, int j) const {
      const Vec<float> sum = Vec<float>::load(sums + j * W);
      const Vec<float> begun = Vec<float>::load(projected + j * W);
      if constexpr (kScaled) return fma(sum, f.scale(d, 1, p, s, j), begun);
      return sum + begun;
    }
    FL_INLINE void cell(const float* sums, const float* projected, int s, int64_t b) const {
      Gates<Vec<float>> gate{sum_of(sums, projected, s, 0), sum_of(sums, projected, s, 1),
                             sum_of(sums, projected, s, 2), sum_of(sums, projected, s, 3)};
      const int64_t unit = p * kFrozenUnits + s * W;
      const int units = static_cast<int>(min64(W, f.q_.H - unit));
      float* y_at = y + b * y_row + s * W;
      float* c_at = f.c_of(d) + b * f.q_.H + unit;
      float* h_at = f.h_n_of(d) + b * f.q_.H + unit;
      Vec<float> c, h;
      if (units == W) {
        cell_forward(gate, Vec<float>::load(c_at), c, h);
        c.store(c_at);
        h.store(h_at);
        h.store(y_at);
      } else {
        cell_forward(gate, Vec<float>::load(c_at, units), c, h);
        c.store(c_at, units);
        h.store(h_at, units);
        h.store(y_at, units);
      }
    }
  };

  static ByteRows carve_bytes(Carver& carver, int64_t rows, int64_t n) {
    ByteRows bytes;
    bytes.row = ceil_div(n, kByteBlock) * 2 * kByteBlock;
    bytes.data = carver.take<int8_t>(rows * bytes.row);
    bytes.starts = carver.take<int32_t>(rows * 2);
    bytes.units = carver.take<float>(rows);
    return bytes;
  }
  void x_to_bytes(const Parallel& parallel, int64_t first, int64_t last) const {
    const Sequence<const float> x = x_sequence();
    const int64_t steps = last - first, tasks = min64(plan_.threads, q_.D * steps);
    run_tasks(parallel, tasks, [&](int64_t i) {
      for (int64_t j = split(q_.D * steps, i, tasks); j < split(q_.D * steps, i + 1, tasks); ++j) {
        const int32_t d = static_cast<int32_t>(j / steps);
        const int64_t begin = chunk_begin(d, first, last), t = begin + j % steps;
        const int64_t row = d * chunk_rows_ + steps_.offset(t) - steps_.offset(begin);
        for (int64_t b = 0; b < steps_.rows(t); ++b) {
          row_to_bytes(x.step(steps_, t) + b * x.stride_b, q_.I, q_.I / 4, x_bytes_.from(row + b));
        }
      }
    });
  }
  // Every thread for itself: quicker than to wait for another.
  ByteRows h_to_bytes(const Segment& segment, int32_t rank) const {
    const ByteRows rows = h_bytes_.from(rank * q_.B);
    for (int64_t b = segment.begin; b < segment.end; ++b) {
      row_to_bytes(segment.h + b * segment.h_row, q_.H, q_.H, rows.from(b));
    }
    return rows;
  }
  // most_small: elements that may lie below a 256th of the largest; any number of h, whose largest
  // is no outlier but near 1.
  void row_to_bytes(const float* a, int64_t n, int64_t most_small, const ByteRows& row) const {
    if constexpr (kBytes) {
      typedef float Floats __attribute__((vector_size(4 * W)));
      typedef int32_t Ints __attribute__((vector_size(4 * W)));
      typedef int16_t Halves __attribute__((vector_size(2 * W)));
      typedef int8_t Bytes __attribute__((vector_size(W)));
      constexpr float kLeast = 1e-30f, kMost = 1e30f;
      constexpr float kMagic = 12582912;  // 1.5 * 2^23: its last place is 1
      const auto some = [&](int64_t k) {
        return n - k >= W ? Vec<float>::load(a + k)
                          : Vec<float>::load(a + k, static_cast<int>(n - k));
      };
      Ints finite = Ints{} - 1;
      Vec<float> most = Vec<float>::set1(0);
      for (int64_t k = 0; k < n; k += W) {
        const Vec<float> x = absolute(some(k));
        finite &= reinterpret_cast<Ints>(reinterpret_cast<Floats>(x.v) <= kMost);
        most = vmax(most, x);
      }
      int32_t all = -1;
      float largest = 0;
      alignas(64) float lanes[W];
      most.store(lanes);
      for (int i = 0; i < W; ++i) {
        all &= finite[i];
        largest = lanes[i] > largest ? lanes[i] : largest;
      }
      row.units[0] = 0;
      if (all == 0 || (largest > 0 && largest < kLeast)) return;
      row.units[0] = largest > 0 ? largest / kByteOne : 1;
      const Vec<float> scale = Vec<float>::set1(largest > 0 ? kByteOne / largest : 0);
      Ints high_sum{}, low_sum{}, small{};
      int8_t* out = row.data;
      if (n % kByteBlock != 0) std::memset(out + (row.row - 2 * kByteBlock), 0, 2 * kByteBlock);
      for (int64_t k = 0; k < n; k += W, out += 2 * W) {
        const Vec<float> x = some(k);
        const Vec<float> scaled = fma(x, scale, Vec<float>::set1(kMagic));
        const Ints q = reinterpret_cast<Ints>(scaled.v) - 0x4b400000;
        const Ints is_small = reinterpret_cast<Ints>((q < 127) & (q > -127));
        small -= is_small & reinterpret_cast<Ints>(reinterpret_cast<Floats>(x.v) != 0);
        if (plan_.byte_product.halves) {
          const Halves halves = __builtin_convertvector(q, Halves);
          std::memcpy(out, &halves, sizeof(halves));
          continue;
        }
        const Ints high = (q + 128) >> 8, low = q - (high << 8);
        high_sum += high;
        low_sum += low;
        const Bytes bytes[2] = {__builtin_convertvector(high, Bytes),
                                __builtin_convertvector(low, Bytes)};
        std::memcpy(out, bytes, sizeof(bytes));
      }
      int64_t small_count = 0;
      for (int i = 0; i < W; ++i) small_count += small[i];
      if (small_count > most_small) row.units[0] = 0;
      row.starts[0] = row.starts[1] = 0;
      for (int i = 0; i < W; ++i) {
        row.starts[0] -= 128 * high_sum[i];
        row.starts[1] -= 128 * low_sum[i];
      }
    }
  }

  void recur(int32_t d, int64_t first, int64_t last, int64_t p0, int64_t p1, int32_t parties,
             int32_t rank) {
    const int64_t begin = chunk_begin(d, first, last);
    const Sequence<float> y = y_sequence(d);
    for (int64_t step = first; step < last; ++step) {
      const int64_t t = time_of(d, step);
      Segment segments[2];
      const int count = segments_of(d, step, segments);
      ByteRows bytes[2];
      for (int k = 0; kBytes && plan_.byte_product.run && k < count; ++k) {
        bytes[k] = h_to_bytes(segments[k], rank);
      }
      const bool backwards = step & 1;  // zigzag: what the last step left in cache is used first
      for (int64_t i = p0; i < p1; ++i) {
        const int64_t p = backwards ? p1 - 1 - (i - p0) : i;
        for (int k = 0; k < count; ++k) {
          for_tiles<4>(segments[k].end - segments[k].begin,
                       GateTile{*this, segments[k], d, p, steps_.offset(t) - steps_.offset(begin),
                                y.step(steps_, t) + p * kFrozenUnits, y.stride_b, bytes[k]});
        }
      }
      barriers_[d].wait(parties);
    }
  }

  const Problem& q_;
  const Frozen& frozen_;
  const Outputs& out_;
  const Plan plan_;
  const int64_t panels_, chunk_rows_;
  Steps steps_{0, 0, nullptr, nullptr};
  int64_t* offsets_ = nullptr;
  float* zeros_ = nullptr;
  Barrier* barriers_ = nullptr;
  ByteRows x_bytes_;          // of a chunk
  ByteRows h_bytes_;          // of a step, for each thread
  float* projected_[2] = {};  // [strip][chunk rows][4W]: where the sums of a step begin
  size_t workspace_bytes_ = 0;
};

template <class F>
auto with_stored(Stored stored, const F& f) {
  switch (stored) {
    case Stored::kBFloat16:
      return f(BFloat16{});
    case Stored::kInt8:
      return f(int8_t{});
    default:
      return f(float{});
  }
}

inline size_t frozen_workspace(const Problem& problem, const Plan& plan) {
  return FrozenForward<float>(problem, Frozen{}, Outputs{}, plan, nullptr).workspace_bytes();
}

inline void run_frozen(const Problem& problem, const Frozen& frozen, const Outputs& outputs,
                       const Plan& plan, void* workspace, const Parallel& parallel) {
  with_stored(frozen.stored, [&](auto k) {
    FrozenForward<decltype(k)>(problem, frozen, outputs, plan, workspace).run(parallel);
  });
}
