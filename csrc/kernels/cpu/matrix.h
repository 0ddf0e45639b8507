// Products on a matrix unit (AMX): tiles of 16 rows by 32 k times tiles of 32 k by 16 columns, of
// bfloat16, summed in float32. Included inside an ISA's namespace; FUSED_LSTM_MATRIX is 1 for the
// processor's own tiles, 2 for tiles in plain C++ that tests run anywhere, 0 for none.
//
// Each instruction sums its 32 k from zero before it adds them to the tile, so chains are short
// (Intel's manual, TDPBF16PS); subnormal numbers count as zero. Operands are bfloat16 as stored, in
// one part, except dgates: those are computed, and go in as two, x = high + low to 2^-17.
//
//   A: [row block][k block][part][16 rows][32 k]
//   B: [k block][part][4 column groups][16 pairs of k][16 columns][2]
// Whatever lies beyond an edge of A or B along k is zero; rows of A beyond its edge give rows of
// the product that nobody reads.

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileK = 32;
constexpr int64_t kTileSize = kTileRows * kTileK;  // elements of a tile of bfloat16
constexpr int kGroups = 4;                         // column groups of B: the gates, or 64 columns

// Whether products of this stored type run on a matrix unit.
template <class S>
constexpr bool has_matrix() {
  return FUSED_LSTM_MATRIX != 0 && std::is_same<S, BFloat16>::value;
}

// Where a row of A lies in the tiles of a k block; `block` elements from a row block to the next.
inline int64_t row_in_tiles(int64_t row, int64_t block) {
  return row / kTileRows * block + row % kTileRows * kTileK;
}

#if FUSED_LSTM_MATRIX == 1
// The tile registers of this thread, from construction to destruction. By hand, not by intrinsics:
// those ask for literals, and for a newer compiler.
class MatrixUnit {
 public:
  MatrixUnit() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  ~MatrixUnit() { __asm__ volatile("tilerelease"); }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;

  template <int N>
  FL_INLINE void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(N));
  }
  // Sixteen rows of 64 bytes, `row` bytes apart.
  template <int N>
  FL_INLINE void load(const void* p, int64_t row) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(N), "r"(p), "r"(row));
  }
  template <int N>
  FL_INLINE void store(void* p, int64_t row) const {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(N), "r"(p), "r"(row) : "memory");
  }
  template <int C, int A, int B>
  FL_INLINE void multiply() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
  // Loads above read memory behind the compiler's back.
  static FL_INLINE void see_memory() { __asm__ volatile("" : : : "memory"); }
};
#else
class MatrixUnit {
 public:
  template <int N>
  void zero() {
    std::memset(tiles_[N], 0, sizeof(tiles_[N]));
  }
  template <int N>
  void load(const void* p, int64_t row) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      std::memcpy(tiles_[N][r], static_cast<const char*>(p) + r * row, 64);
    }
  }
  template <int N>
  void store(void* p, int64_t row) const {
    for (int64_t r = 0; r < kTileRows; ++r) {
      std::memcpy(static_cast<char*>(p) + r * row, tiles_[N][r], 64);
    }
  }
  template <int C, int A, int B>
  void multiply() {
    for (int64_t r = 0; r < kTileRows; ++r) {
      for (int64_t n = 0; n < 16; ++n) {
        float sum = 0;
        for (int64_t k = 0; k < kTileK; ++k) {
          sum += element(A, r, k) * element(B, k / 2, 2 * n + k % 2);
        }
        float* c = reinterpret_cast<float*>(tiles_[C][r]) + n;
        *c += sum;
      }
    }
  }
  static void see_memory() {}

 private:
  float element(int tile, int64_t row, int64_t column) const {
    BFloat16 value;
    std::memcpy(&value, tiles_[tile][row] + 2 * column, sizeof(value));
    return to_float(value);
  }
  alignas(64) char tiles_[8][16][64];
};
#endif

// One term of a product: A times B.
struct MatrixOperand {
  const BFloat16* a;  // its first row block
  int64_t a_block;    // elements from a row block to the next
  const BFloat16* b;
  int64_t k_blocks;
};

// Two row blocks by two column groups, one k block: sums in tiles 0 to 3, A in 4 and 5, B in 6
// and 7. One of the operands may have a second part.
template <int kPartsA, int kPartsB>
FL_INLINE void multiply_blocks(MatrixUnit& unit, const BFloat16* a0, const BFloat16* a1,
                               const BFloat16* b) {
#pragma GCC unroll 2
  for (int part = 0; part < kPartsA * kPartsB; ++part) {
    if (part == 0 || kPartsA == 2) {
      unit.template load<4>(a0 + part * kTileSize, 64);
      unit.template load<5>(a1 + part * kTileSize, 64);
    }
    if (part == 0 || kPartsB == 2) {
      const BFloat16* groups = b + part * kGroups * kTileSize;
      unit.template load<6>(groups, 64);
      unit.template load<7>(groups + kTileSize, 64);
    }
    unit.template multiply<0, 4, 6>();
    unit.template multiply<1, 4, 7>();
    unit.template multiply<2, 5, 6>();
    unit.template multiply<3, 5, 7>();
  }
}
// One row block by all four column groups: A in 4, B passes through 5, 6 and 7.
template <int kPartsA, int kPartsB>
FL_INLINE void multiply_block(MatrixUnit& unit, const BFloat16* a, const BFloat16* b) {
#pragma GCC unroll 2
  for (int part = 0; part < kPartsA * kPartsB; ++part) {
    if (part == 0 || kPartsA == 2) unit.template load<4>(a + part * kTileSize, 64);
    const BFloat16* groups = b + (kPartsB == 2 ? part * kGroups * kTileSize : 0);
    unit.template load<5>(groups, 64);
    unit.template multiply<0, 4, 5>();
    unit.template load<6>(groups + kTileSize, 64);
    unit.template multiply<1, 4, 6>();
    unit.template load<7>(groups + 2 * kTileSize, 64);
    unit.template multiply<2, 4, 7>();
    unit.template load<5>(groups + 3 * kTileSize, 64);
    unit.template multiply<3, 4, 5>();
  }
}

// sums [blocks * 16 rows, row floats apart][groups * 16] = the sum of `count` products. blocks is 1
// or 2; of B's four column groups the first `groups` are wanted.
template <int kPartsA, int kPartsB>
void matrix_product(MatrixUnit& unit, const MatrixOperand* operands, int count, int blocks,
                    int groups, float* sums, int64_t row) {
  static_assert(kPartsA * kPartsB <= 2, "one operand in two parts");
  constexpr int64_t kA = kPartsA * kTileSize, kB = kPartsB * kGroups * kTileSize;
  const int64_t row_bytes = row * static_cast<int64_t>(sizeof(float));
  MatrixUnit::see_memory();
  for (int group = 0; group < groups; group += blocks == 2 ? 2 : kGroups) {
    unit.template zero<0>();
    unit.template zero<1>();
    unit.template zero<2>();
    unit.template zero<3>();
    for (int i = 0; i < count; ++i) {
      const BFloat16* a = operands[i].a;
      const BFloat16* b = operands[i].b + group * kTileSize;
      for (int64_t k = 0; k < operands[i].k_blocks; ++k, a += kA, b += kB) {
        if (blocks == 2) {
          multiply_blocks<kPartsA, kPartsB>(unit, a, a + operands[i].a_block, b);
        } else {
          multiply_block<kPartsA, kPartsB>(unit, a, b);
        }
      }
    }
    float* out = sums + group * 16;
    unit.template store<0>(out, row_bytes);
    if (group + 1 < groups) unit.template store<1>(out + 16, row_bytes);
    if (blocks == 2) {
      unit.template store<2>(out + kTileRows * row, row_bytes);
      if (group + 1 < groups) unit.template store<3>(out + kTileRows * row + 16, row_bytes);
    } else {
      if (groups > 2) unit.template store<2>(out + 32, row_bytes);
      if (groups > 3) unit.template store<3>(out + 48, row_bytes);
    }
  }
}

FL_INLINE Vec<float> zero_for_nan(Vec<float> x) {
#if FUSED_LSTM_SIMD == 3
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, x.v, _CMP_ORD_Q), x.v)};
#else
  float lanes[Vec<float>::kWidth];
  x.store(lanes);
  for (float& lane : lanes) lane = lane == lane ? lane : 0;
  return Vec<float>::load(lanes);
#endif
}

// 16 values into the low (or, with `odd`, the high) halves of 16 words. Low halves come first and
// clear the high ones.
FL_INLINE void store_halves(const BFloat16* src, BFloat16* words, bool odd) {
#if FUSED_LSTM_SIMD == 3
  __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(src)));
  if (odd) bits = _mm512_or_si512(_mm512_slli_epi32(bits, 16), _mm512_loadu_si512(words));
  _mm512_storeu_si512(words, bits);
#else
  for (int k = 0; k < 16; ++k) {
    words[2 * k + odd] = src[k];
    if (!odd) words[2 * k + 1] = BFloat16{0};
  }
#endif
}

// A row of n values -> row `row` of A's tiles, zeros up to the last k block's end.
inline void copy_row(const BFloat16* src, int64_t n, int64_t row, int64_t k_blocks,
                     BFloat16* tiles) {
  BFloat16* dst = tiles + row_in_tiles(row, k_blocks * kTileSize);
  for (; n >= kTileK; n -= kTileK, src += kTileK, dst += kTileSize) std::memcpy(dst, src, 64);
  if (n <= 0) return;
  std::memset(dst, 0, 64);
  std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(BFloat16));
}

// The same of zeros.
inline void zero_row(int64_t n, int64_t row, int64_t k_blocks, BFloat16* tiles) {
  BFloat16* dst = tiles + row_in_tiles(row, k_blocks * kTileSize);
  for (; n > 0; n -= kTileK, dst += kTileSize) std::memset(dst, 0, 64);
}

// w [4H, n], panel p -> the k blocks of n features, all four gates of 16 units.
inline void pack_matrix_panel(const BFloat16* w, int64_t H, int64_t n, int64_t p, BFloat16* panel) {
  const int64_t units = min64(16, H - p * 16);
  alignas(64) BFloat16 rows[kTileSize];  // [unit][32 k]
  std::memset(rows, 0, sizeof(rows));
  for (int gate = 0; gate < kGroups; ++gate) {
    const BFloat16* src = w + (gate * H + p * 16) * n;
    BFloat16* dst = panel + gate * kTileSize;
    for (int64_t k = 0; k < n; k += kTileK, dst += kGroups * kTileSize) {
      for (int64_t j = 0; j < units; ++j)
        copy_row(src + j * n + k, min64(kTileK, n - k), j, 1, rows);
      transpose_words(rows, dst);
    }
  }
}
