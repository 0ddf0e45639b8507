// The one multiply-accumulate loop of the CPU kernels: a tile of R rows by NV vectors kept in
// registers, C[R][NV] += A[R][n] * W[n][NV]. Forward gates, projections and all backward products
// use it; they differ only in where A comes from. Included inside an ISA's namespace.
//
// Sums are kept short: a tile starts from zero for each block of k, and blocks are added up in
// memory. One chain over a long k would lose two to four times the accuracy.
//
//   A: element (row r, step k) at a[r * a_row + k * a_k]; broadcast to all lanes.
//   W: a packed panel, NV vectors per k, contiguous: w[k * w_k + j * kWidth]. Frozen weights
//      (frozen_forward.h) are stored in another type, K, and their vectors lie kApart from each
//      other; two vectors of bfloat16 lie in one another's gaps (../frozen.h).
//
// Where the processor multiplies pairs of bfloat16 (FUSED_LSTM_PAIRS), A is bfloat16 as stored and
// a lane of W holds two weights of consecutive k: one row of a panel stands for two k.

constexpr int kRegisters = FUSED_LSTM_REGISTERS;

// Tiles of few rows: 3x4 takes 128 bytes of W for 6 cycles of multiply-adds, which is all that an
// L2 gives. Such a set keeps a block of W in L1 while all rows pass by, and asks for what comes
// next.
constexpr bool kSmallTiles = kRegisters == 16;

// A second k in a loop's body halves the loop's own instructions. For aarch64 clang then loads so
// far ahead that full tiles go through the stack.
#if defined(__clang__) && defined(__aarch64__)
#define FUSED_LSTM_UNROLL_K _Pragma("GCC unroll 1")
#else
#define FUSED_LSTM_UNROLL_K _Pragma("GCC unroll 2")
#endif

// Rows of a full tile when NV vectors are accumulated side by side: accumulators, NV or 1 vectors
// of W and one broadcast must fit the register file. 6x4, 8x3, 12x2, 16x1 with 32 registers, 3x4,
// 4x3, 6x2, 12x1 with 16.
template <int NV>
constexpr int max_rows() {
  return kRegisters == 32 ? (NV == 4   ? 6
                             : NV == 3 ? 8
                             : NV == 2 ? 12
                                       : 16)
                          : (NV == 4   ? 3
                             : NV == 3 ? 4
                             : NV == 2 ? 6
                                       : 12);
}

// kSplits: too few chains to hide the latency, so a second set of sums takes every other k.
template <class E, int R, int NV, bool kSplits = (R * NV < 8)>
struct Tile {
  Vec<E> acc[R][NV];

  FL_INLINE void zero() {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[r][j] = Vec<E>::set1(0);
  }
  // Rows r at p + r * row, vectors side by side.
  FL_INLINE void add(const E* p, int64_t row) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        acc[r][j] = acc[r][j] + Vec<E>::load(p + r * row + j * Vec<E>::kWidth);
      }
  }
  FL_INLINE void store(E* p, int64_t row) const {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[r][j].store(p + r * row + j * Vec<E>::kWidth);
  }
  FL_INLINE void add_to(E* p, int64_t row) const {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        E* q = p + r * row + j * Vec<E>::kWidth;
        (Vec<E>::load(q) + acc[r][j]).store(q);
      }
  }
  // Vector j of a row of W.
  template <int kApart, class K>
  static FL_INLINE Vec<E> vector_of(const K* w, int j) {
    if constexpr (std::is_same<K, BFloat16>::value) {
      return either_of_pairs(w + j / 2 * 2 * kApart, j % 2 != 0);
    } else {
      return load_as(Tag<E>{}, w + j * kApart);
    }
  }
  // One k. Whichever operand needs fewer registers is held, the other passes by: 3x4 fills 16
  // registers to the last one, and a single vector more would spill.
  template <int kApart, class K>
  FL_INLINE void step(const E* a, int64_t a_row, const K* w) {
    if constexpr (R < NV) {
      Vec<E> x[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) x[r] = Vec<E>::set1(a[r * a_row]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        const Vec<E> b = vector_of<kApart>(w, j);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) acc[r][j] = fma(x[r], b, acc[r][j]);
      }
    } else {
      Vec<E> b[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) b[j] = vector_of<kApart>(w, j);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec<E> x = Vec<E>::set1(a[r * a_row]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[r][j] = fma(x, b[j], acc[r][j]);
      }
    }
  }
  template <int kApart = Vec<E>::kWidth, class K>
  FL_INLINE void accumulate(const E* a, int64_t a_row, int64_t a_k, const K* w, int64_t w_k,
                            int64_t n) {
    int64_t k = 0;
    if constexpr (kSplits) {
      Tile other;
      other.zero();
      for (; k + 2 <= n; k += 2) {
        step<kApart>(a + k * a_k, a_row, w + k * w_k);
        other.template step<kApart>(a + (k + 1) * a_k, a_row, w + (k + 1) * w_k);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[r][j] = acc[r][j] + other.acc[r][j];
    }
    FUSED_LSTM_UNROLL_K
    for (; k < n; ++k) step<kApart>(a + k * a_k, a_row, w + k * w_k);
  }
  // Rows of a times n rows of 8-bit weights that lie by fours (../frozen.h): vector j of a group at
  // w + j * kApart, a group at w + group * w_group.
  template <int kApart>
  FL_INLINE void accumulate_quads(const E* a, int64_t a_row, const int8_t* w, int64_t w_group,
                                  int64_t n) {
    for (; n >= 4; n -= 4, a += 4, w += w_group) {
      // Unrolled, all four are fetched at once, and NEON's full tiles go through the stack.
#pragma GCC unroll 1
      for (int k = 0; k < 4; ++k) quad_step<kApart>(a + k, a_row, w, k);
    }
    for (int k = 0; k < n; ++k) quad_step<kApart>(a + k, a_row, w, k);
  }
  template <int kApart>
  FL_INLINE void quad_step(const E* a, int64_t a_row, const int8_t* w, int k) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      const Vec<E> b = byte_of_quads(w + j * kApart, k);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][j] = fma(Vec<E>::set1(a[r * a_row]), b, acc[r][j]);
    }
  }
#if FUSED_LSTM_PAIRS
  FL_INLINE void step(const BFloat16* a, int64_t a_row, const E* w, bool whole) {
    Vec<E> b[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) b[j] = Vec<E>::load(w + j * Vec<E>::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<E> x = whole ? broadcast_pair(a + r * a_row) : broadcast_first(a + r * a_row);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[r][j] = fma_pairs(x, b[j], acc[r][j]);
    }
  }
  // The same over n elements of a, in (n + 1) / 2 rows of w.
  FL_INLINE void accumulate(const BFloat16* a, int64_t a_row, const E* w, int64_t w_k, int64_t n) {
    const int64_t pairs = n / 2;
    int64_t k = 0;
#pragma GCC unroll 2
    for (; k < pairs; ++k) step(a + 2 * k, a_row, w + k * w_k, true);
    if (n % 2 != 0) step(a + n - 1, a_row, w + k * w_k, false);
  }
#endif
};

// Calls f.template operator()<R>(first_row) over rows [0, rows) in tiles of at most max_rows<NV>(),
// balanced, so that the last tile is never a sliver.
template <int NV, int R, class F>
FL_INLINE void call_tile(int64_t rows, int64_t first, const F& f) {
  if constexpr (R > 0) {
    if (rows == R) {
      f.template run<R>(first);
    } else {
      call_tile<NV, R - 1>(rows, first, f);
    }
  }
}
template <int NV, class F>
FL_INLINE void for_tiles(int64_t rows, const F& f) {
  if (rows <= 0) return;
  const int64_t tiles = (rows + max_rows<NV>() - 1) / max_rows<NV>();
  int64_t first = 0;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t count = rows / tiles + (i < rows % tiles ? 1 : 0);
    call_tile<NV, max_rows<NV>()>(count, first, f);
    first += count;
  }
}

// Fetches a piece of memory into L2 a little with every tile, ahead of the block that will read it.
struct Prefetch {
  const char* next = nullptr;
  int64_t per_row = 0;  // bytes for each row of a tile

  Prefetch() = default;
  Prefetch(const void* memory, int64_t bytes, int64_t rows)
      : next(static_cast<const char*>(memory)), per_row(memory ? ceil_div(bytes, rows) : 0) {}
  template <int R>
  FL_INLINE void run(int64_t first) const {
    const char* end = next + (first + R) * per_row;
    for (const char* line = next + first * per_row; line < end; line += 64) {
      __builtin_prefetch(line, 0, 2);
    }
  }
};
