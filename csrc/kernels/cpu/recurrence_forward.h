// The recurrence forward: rows are cut into blocks, and each task takes one block through all
// steps, so that no task waits for another. A step is the products of the block's rows with W_hh,
// panel by panel, then the cells, a few rows side by side. Included inside an ISA's namespace.

template <class E, int G, bool kNorm>
class RecurrenceForward {
 public:
  static constexpr int W = Vec<E>::kWidth;
  static constexpr int kGroup = G * W;  // one row of a gate panel

  RecurrenceForward(const Recurrence& q, const RecurrenceOutputs& outputs,
                    const RecurrencePlan& plan, void* workspace)
      : q_(q),
        out_(outputs),
        plan_(plan),
        panels_(ceil_div(q.H, W)),
        z_row_(padded_row<E>(panels_ * kGroup)),
        records_(outputs.reserve, q) {
    Carver carver(workspace);
    weights_ = carver.take<E>(panels_ * q.H * kGroup);
    small_.carve(carver, panels_);
    z_ = carver.take<E>(q.B * z_row_);
    c_ = carver.take<E>(q.B * records_.units);
    workspace_bytes_ = carver.used();
  }
  size_t workspace_bytes() const { return workspace_bytes_; }

  void run(const Parallel& parallel) {
    small_.pack(q_);
    run_tasks(parallel, plan_.threads, [&](int64_t i) {
      for (int64_t p = split(panels_, i, plan_.threads); p < split(panels_, i + 1, plan_.threads);
           ++p) {
        pack_panel(p);
      }
    });
    run_tasks(parallel, plan_.tasks, [&](int64_t i) {
      recur(split(q_.B, i, plan_.tasks), split(q_.B, i + 1, plan_.tasks));
    });
  }

 private:
  static constexpr int kCellRows = kRegisters == 32 ? 3 : 2;  // cells computed side by side

  void pack_panel(int64_t p) const {
    const E* w = static_cast<const E*>(q_.w_hh);
    const int units = static_cast<int>(min64(W, q_.H - p * W));
    for (int gate = 0; gate < G; ++gate) {
      pack_transposed(w + (gate * q_.H + p * W) * q_.H, q_.H, units, q_.H,
                      weights_ + p * q_.H * kGroup + gate * W, kGroup);
    }
  }

  int64_t time_of(int64_t s) const { return q_.reverse ? q_.T - 1 - s : s; }
  E* y_row(int64_t t, int64_t b) const { return static_cast<E*>(out_.y) + (t * q_.B + b) * q_.H; }
  E* c_row(int64_t b) const { return c_ + b * records_.units; }
  // c after processing step s, or before the first.
  E* c_after(int64_t s, int64_t b) const {
    return out_.reserve == nullptr || s < 0 ? c_row(b) : records_.c(time_of(s), b);
  }

  void recur(int64_t b0, int64_t b1) const {
    const E* h0 = static_cast<const E*>(q_.h0);
    const E* c0 = static_cast<const E*>(q_.c0);
    for (int64_t b = b0; b < b1; ++b) {
      for (int64_t p = 0; p < panels_; ++p) {
        const int units = static_cast<int>(min64(W, q_.H - p * W));
        const Vec<E> c = c0 ? load_units(c0 + b * q_.H + p * W, units) : Vec<E>::set1(0);
        c.store(c_row(b) + p * W);
      }
    }
    for (int64_t s = 0; s < q_.T; ++s) {
      products(s > 0 ? y_row(time_of(s - 1), b0) : h0 ? h0 + b0 * q_.H : nullptr, b0, b1);
      int64_t b = b0;
      for (; b + kCellRows <= b1; b += kCellRows) cells<kCellRows>(s, b);
      for (; b < b1; ++b) cells<1>(s, b);
    }
    for (int64_t b = b0; b < b1; ++b) {
      const E* h = y_row(time_of(q_.T - 1), b);
      const E* c = c_after(q_.T - 1, b);
      std::memcpy(static_cast<E*>(out_.h_n) + b * q_.H, h, static_cast<size_t>(q_.H) * sizeof(E));
      std::memcpy(static_cast<E*>(out_.c_n) + b * q_.H, c, static_cast<size_t>(q_.H) * sizeof(E));
    }
  }

  // z = h W_hh^T for rows [b0, b1); h null: zeros.
  void products(const E* h, int64_t b0, int64_t b1) const {
    E* z = z_ + b0 * z_row_;
    if (h == nullptr) {
      std::memset(z, 0, static_cast<size_t>((b1 - b0) * z_row_) * sizeof(E));
      return;
    }
    for (int64_t p = 0; p < panels_; ++p) {
      const Product<E> product{
          h, q_.H, 1, weights_ + p * q_.H * kGroup, kGroup, q_.H, z + p * kGroup, z_row_, false};
      multiply_vectors<G>(product, b1 - b0, products_per_block(q_.H));
    }
  }

  // Processing step s of N rows from row b on.
  template <int N>
  void cells(int64_t s, int64_t b) const {
    using Number = Rows<E, N>;
    const auto same = [](Vec<E> x) {
      Number r;
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) r.v[i] = x;
      return r;
    };
    const int64_t t = time_of(s);
    const bool keeps = out_.reserve != nullptr;
    const E *zx[N], *c_in[N];
    E *z[N], *c_out[N], *y[N];
    E mean[N], scale[N];
    for (int i = 0; i < N; ++i) {
      zx[i] = static_cast<const E*>(q_.zx) + t * q_.zx_t + (b + i) * q_.zx_b;
      z[i] = z_ + (b + i) * z_row_;
      c_in[i] = c_after(s - 1, b + i);
      c_out[i] = c_after(s, b + i);
      y[i] = y_row(t, b + i);
      if constexpr (kNorm) {
        moments<G>(z[i], q_.H, mean[i], scale[i]);
        if (keeps) records_.keep_scale(c_out[i], scale[i]);
      }
    }
    for (int64_t p = 0; p < panels_; ++p) {
      const int units = static_cast<int>(min64(W, q_.H - p * W));
      Number gates[G], c_prev, c;
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
#pragma GCC unroll 4
        for (int k = 0; k < G; ++k) {
          const Vec<E> x = load_units(zx[i] + k * q_.H + p * W, units);
          Vec<E> product = Vec<E>::load(z[i] + p * kGroup + k * W);
          if constexpr (kNorm) {
            product = (product - Vec<E>::set1(mean[i])) * Vec<E>::set1(scale[i]);
            if (keeps) product.store(records_.normalised(c_out[i]) + p * kGroup + k * W);
            gates[k].v[i] = fma(Vec<E>::load(small_.ln_hh + p * kGroup + k * W), product, x);
          } else {
            gates[k].v[i] = product + x;
          }
        }
        c_prev.v[i] = Vec<E>::load(c_in[i] + p * W);
      }
      const CellVariant<Number> variant = small_.template cell<Number>(q_, p, same);
      Gates<Number> gate{gates[0], gates[1], gates[G - 2], gates[G - 1]};
      variant_state(gate, c_prev, variant, c);
      Number h;
      if constexpr (!kNorm) h = variant_output(gate.o, c, variant);
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        c.v[i].store(c_out[i] + p * W);
        if (keeps) {
          E* kept = records_.gates_of(c_out[i]) + p * kGroup;
          gate.i.v[i].store(kept);
          if constexpr (G == 4) gate.f.v[i].store(kept + W);
          gate.g.v[i].store(kept + (G - 2) * W);
          gate.o.v[i].store(kept + (G - 1) * W);
        }
        if constexpr (kNorm) {
          gate.o.v[i].store(z[i] + p * kGroup);  // where the products were
        } else {
          store_units(h.v[i], y[i] + p * W, units);
        }
      }
    }
    if constexpr (kNorm) normalised_outputs<N>(c_out, z, y, same);
  }

  // h of N rows from all of their c [panel][W] and o [panel][kGroup].
  template <int N, class Same>
  FL_INLINE void normalised_outputs(E* const* c, E* const* o, E* const* y, const Same& same) const {
    using Number = Rows<E, N>;
    E mean[N], scale[N];
    for (int i = 0; i < N; ++i) {
      moments<1>(c[i], q_.H, mean[i], scale[i]);
      if (out_.reserve != nullptr) {
        records_.moments(c[i])[kMeanOfCell] = mean[i];
        records_.moments(c[i])[kScaleOfCell] = scale[i];
      }
    }
    for (int64_t p = 0; p < panels_; ++p) {
      const int units = static_cast<int>(min64(W, q_.H - p * W));
      const Vec<E> gain = Vec<E>::load(small_.ln_c + p * W);
      const Vec<E> bias = Vec<E>::load(small_.ln_c_bias + p * W);
      Number state, gate;
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        const Vec<E> own = Vec<E>::load(c[i] + p * W) - Vec<E>::set1(mean[i]);
        state.v[i] = fma(gain, own * Vec<E>::set1(scale[i]), bias);
        gate.v[i] = Vec<E>::load(o[i] + p * kGroup);
      }
      const Number h = variant_output(gate, state, small_.template cell<Number>(q_, p, same));
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) store_units(h.v[i], y[i] + p * W, units);
    }
  }

  const Recurrence& q_;
  const RecurrenceOutputs& out_;
  const RecurrencePlan plan_;
  const int64_t panels_, z_row_;
  const Records<E> records_;
  CellWeights<E, G> small_;
  E* weights_ = nullptr;  // [panel][H][G*W]: W_hh
  E* z_ = nullptr;        // [B][z_row_]: products of the running step
  E* c_ = nullptr;        // [B][units]: c0; in inference the running c
  size_t workspace_bytes_ = 0;
};
