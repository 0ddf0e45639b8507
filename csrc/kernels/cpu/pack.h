// Moves weights between torch's layout and the panels that tile.h reads. Included inside an ISA's
// namespace. With W = Vec<E>::kWidth:
//
//   gate panel p:  units p*W .. p*W+W-1, [k][gate][W]: all four gates of a unit meet in one tile.
//   column panel:  NV*W consecutive columns of a matrix whose rows are gate rows, [k][NV*W], with k
//                  running over (panel, gate, unit) as dgates are laid out.
// Units and columns beyond the edge are zero.

// dst[k * dst_k + j] = src[j * src_row + k] for j < units (zero up to W), k < n.
template <class S, class E>
FL_INLINE void pack_transposed(const S* src, int64_t src_row, int units, int64_t n, E* dst,
                               int64_t dst_k) {
  constexpr int W = Vec<E>::kWidth;
  int64_t k = 0;
#if FUSED_LSTM_SIMD >= 2
  if constexpr (std::is_same<S, float>::value) {
    if (units == W) {
      for (; k + 16 <= n; k += 16) {
        for (int j = 0; j < W; j += 8) {
          transpose_8x8(src + j * src_row + k, src_row, dst + k * dst_k + j, dst_k);
          transpose_8x8(src + j * src_row + k + 8, src_row, dst + (k + 8) * dst_k + j, dst_k);
        }
      }
    }
  } else if constexpr (std::is_same<E, float>::value) {
    if (units == W) {
      alignas(64) float block[W * W];  // halves as float, before they change places
      for (; k + W <= n; k += W) {
        for (int j = 0; j < W; ++j) load_as(Tag<E>{}, src + j * src_row + k).store(block + j * W);
        for (int j = 0; j < W; j += 8) {
          for (int i = 0; i < W; i += 8) {
            transpose_8x8(block + j * W + i, W, dst + (k + i) * dst_k + j, dst_k);
          }
        }
      }
    }
  }
#endif
  for (; k < n; ++k) {
    for (int j = 0; j < units; ++j) dst[k * dst_k + j] = to_float(src[j * src_row + k]);
    for (int j = units; j < W; ++j) dst[k * dst_k + j] = 0;
  }
}

// A last panel of few units is narrow: a vector of it holds W/4 units of each gate,
// [k][units / (W/4)][gate][W/4], so that 4 units of 16 take one vector of products instead of four.
// Where vectors are short there is little to gain.
template <class E>
struct Narrow {
  static constexpr int W = Vec<E>::kWidth, kUnits = W / 4;
  static_assert(W >= 16, "whole panels elsewhere");

  // Vectors of a row of panel p: 4 where it is not narrow.
  static int64_t vectors(int64_t H, int64_t p) { return min64(4, ceil_div(H - p * W, kUnits)); }
  // Rows [gate][W] of a panel to nv vectors each, in place, and back: quarters of gates and of
  // vectors change places.
  static void squeeze(E* panel, int64_t rows, int64_t nv) {
    for (int64_t k = 0; k < rows; ++k) squeeze_row(panel + k * 4 * W, nv, panel + k * nv * W);
  }
  static void spread(E* panel, int64_t rows, int64_t nv) {
    for (int64_t k = rows - 1; k >= 0; --k) spread_row(panel + k * nv * W, nv, panel + k * 4 * W);
  }
  static FL_INLINE void squeeze_row(const E* from, int64_t nv, E* to) {
    Vec<E> v[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) v[k] = Vec<E>::load(from + k * W);
    transpose_quarters(v);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      if (k < nv) v[k].store(to + k * W);
    }
  }
  static FL_INLINE void spread_row(const E* from, int64_t nv, E* to) {
    Vec<E> v[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) v[k] = k < nv ? Vec<E>::load(from + k * W) : Vec<E>::set1(0);
    transpose_quarters(v);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) v[k].store(to + k * W);
  }
};

// Rows of a panel that n features take.
template <class S, class E>
constexpr int64_t panel_rows(int64_t n) {
  return std::is_same<typename Operand<S, E>::type, E>::value ? n : (n + 1) / 2;
}

// tile += rows of a, whose features are n, times rows k0 .. k1 of a gate panel that holds them all,
// each of NV vectors.
template <class E, int NV = 4, class T, class A>
FL_INLINE void multiply_panel(T& tile, const A* a, int64_t a_row, const E* panel, int64_t k0,
                              int64_t k1, int64_t n) {
  constexpr int G = NV * Vec<E>::kWidth;
  if constexpr (std::is_same<A, E>::value) {
    (void)n;
    tile.accumulate(a + k0, a_row, 1, panel + k0 * G, G, k1 - k0);
  } else {
    tile.accumulate(a + 2 * k0, a_row, panel + k0 * G, G, min64(2 * k1, n) - 2 * k0);
  }
}

#if FUSED_LSTM_PAIRS
// The same for pairs: row k of dst holds elements 2k and 2k + 1 of each source row in one lane.
template <class E>
void pack_transposed_pairs(const BFloat16* src, int64_t src_row, int units, int64_t n, E* dst,
                           int64_t dst_k) {
  constexpr int W = Vec<E>::kWidth;
  if (src_row % 2 == 0 && n % 2 == 0 && reinterpret_cast<uintptr_t>(src) % sizeof(float) == 0) {
    return pack_transposed(reinterpret_cast<const float*>(src), src_row / 2, units, n / 2, dst,
                           dst_k);
  }
  for (int64_t k = 0; k < n; k += 2) {
    for (int j = 0; j < W; ++j) {
      uint32_t bits = 0;
      if (j < units) {
        const BFloat16* pair = src + j * src_row + k;
        bits = pair[0].bits | (k + 1 < n ? static_cast<uint32_t>(pair[1].bits) << 16 : 0);
      }
      std::memcpy(dst + k / 2 * dst_k + j, &bits, sizeof(bits));
    }
  }
}
#endif

// w [4H, n] -> rows k0 .. k0 + panel_rows(n) of gate panel p, which holds K rows.
template <class S, class E>
void pack_gate_panel(const S* w, int64_t H, int64_t n, int64_t p, int64_t K, int64_t k0,
                     E* panels) {
  constexpr int W = Vec<E>::kWidth;
  const int units = static_cast<int>(min64(W, H - p * W));
  for (int gate = 0; gate < 4; ++gate) {
    const S* src = w + (gate * H + p * W) * n;
    E* dst = panels + (p * K + k0) * 4 * W + gate * W;
    if constexpr (std::is_same<typename Operand<S, E>::type, E>::value) {
      pack_transposed(src, n, units, n, dst, 4 * W);
    } else {
      pack_transposed_pairs(src, n, units, n, dst, 4 * W);
    }
  }
}

// b_ih + b_hh -> [panel][gate][W]
template <class S, class E>
void pack_bias(const S* b_ih, const S* b_hh, int64_t H, E* bias) {
  constexpr int W = Vec<E>::kWidth;
  for (int64_t p = 0; p * W < H; ++p) {
    for (int gate = 0; gate < 4; ++gate) {
      for (int j = 0; j < W; ++j) {
        const int64_t u = p * W + j;
        E value = 0;
        if (u < H && b_ih) value += to_float(b_ih[gate * H + u]);
        if (u < H && b_hh) value += to_float(b_hh[gate * H + u]);
        bias[(p * 4 + gate) * W + j] = value;
      }
    }
  }
}

// Columns n0 .. n0+width of row `row` of w [*, n] -> dst [width]. width is a multiple of W; columns
// beyond n, or all of them where there is no such row (w is null), are zero.
template <class S, class E>
FL_INLINE void pack_columns(const S* w, int64_t row, int64_t n, int64_t n0, int64_t width, E* dst) {
  constexpr int W = Vec<E>::kWidth;
  for (int64_t c = 0; c < width; c += W) {
    const int count = static_cast<int>(max64(0, min64(W, n - n0 - c)));
    Vec<E> value = Vec<E>::set1(0);
    if (w != nullptr && count > 0) {
      const S* src = w + row * n + n0 + c;
      value = count == W ? load_as(Tag<E>{}, src) : load_as(Tag<E>{}, src, count);
    }
    value.store(dst + c);
  }
}

// Gradient panel [n][4*W] of panel p -> dw [4H, n], overwriting.
template <class S, class E>
void unpack_gate_panel(const E* panel, int64_t H, int64_t n, int64_t p, S* dw) {
  constexpr int W = Vec<E>::kWidth;
  const int units = static_cast<int>(min64(W, H - p * W));
  for (int gate = 0; gate < 4; ++gate) {
    const E* src = panel + gate * W;
    S* dst = dw + (gate * H + p * W) * n;
    int64_t k = 0;
#if FUSED_LSTM_SIMD >= 2
    if constexpr (std::is_same<S, float>::value) {
      if (units == W) {
        for (; k + 8 <= n; k += 8) {
          for (int j = 0; j < W; j += 8) {
            transpose_8x8(src + k * 4 * W + j, 4 * W, dst + j * n + k, n);
          }
        }
      }
    } else if constexpr (std::is_same<E, float>::value) {
      if (units == W) {
        alignas(64) float block[W * W];
        for (; k + W <= n; k += W) {
          for (int i = 0; i < W; i += 8) {
            for (int j = 0; j < W; j += 8) {
              transpose_8x8(src + (k + i) * 4 * W + j, 4 * W, block + j * W + i, W);
            }
          }
          for (int j = 0; j < W; ++j) store_as(Vec<E>::load(block + j * W), dst + j * n + k);
        }
      }
    }
#endif
    for (; k < n; ++k) {
      for (int j = 0; j < units; ++j) {
        dst[j * n + k] = from_float<S, E>(src[k * 4 * W + j]);
      }
    }
  }
}
