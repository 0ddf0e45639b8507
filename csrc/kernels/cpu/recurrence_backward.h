// The recurrence backward: each task takes its block of rows from the last step to the first. A
// step is dh = dy + dzh W_hh of the later step, then the cells of each row, whose dz leave as
// results and are read again by the step before. Sums over rows (of peepholes and of LayerNorm's
// weights) are kept per task, first within a step, then over steps: short chains. Included inside
// an ISA's namespace.

template <class E, int G, bool kNorm>
class RecurrenceBackward {
 public:
  static constexpr int W = Vec<E>::kWidth;
  static constexpr int kGroup = G * W;

  RecurrenceBackward(const Recurrence& q, const RecurrenceGradients& gradients,
                     const RecurrencePlan& plan, void* workspace)
      : q_(q),
        g_(gradients),
        plan_(plan),
        panels_(ceil_div(q.H, W)),
        dh_row_(padded_row<E>(q.H)),
        columns_(q.H, 1),
        records_(const_cast<void*>(gradients.reserve), q),
        sums_(panels_ * ((G - 1) * W + (kNorm ? kGroup + 2 * W : 0))) {
    Carver carver(workspace);
    weights_ = carver.take<E>(G * q.H * columns_.vectors * W);
    small_.carve(carver, panels_);
    dh_ = carver.take<E>(q.B * dh_row_);
    dc_ = carver.take<E>(q.B * records_.units);
    c0_ = carver.take<E>(q.B * records_.units);
    tasks_ = carver.take<E>(plan.tasks * task_elements());
    workspace_bytes_ = carver.used();
  }
  size_t workspace_bytes() const { return workspace_bytes_; }

  void run(const Parallel& parallel) {
    small_.pack(q_);
    const int64_t blocks = columns_.blocks;
    run_tasks(parallel, plan_.threads, [&](int64_t i) {
      for (int64_t j = split(blocks, i, plan_.threads); j < split(blocks, i + 1, plan_.threads);
           ++j) {
        pack_columns_of(j);
      }
    });
    run_tasks(parallel, plan_.tasks, [&](int64_t i) {
      recur(task(i), split(q_.B, i, plan_.tasks), split(q_.B, i + 1, plan_.tasks));
    });
    finish();
  }

 private:
  // The scratch of one task.
  struct Task {
    E* sums;  // over its rows and steps: peepholes [panel][G-1][W], and with LayerNorm the gain of
              // the products [panel][G][W], gain and bias of the cell [panel][W]
    E* step;  // the same within a step
    E* dz;    // [panel][G][W]: of one row; with LayerNorm dz * gain
    E* ds;    // [panel][W]: with LayerNorm, ds * gain of one row
  };
  int64_t task_elements() const { return 2 * sums_ + panels_ * (kGroup + W); }
  Task task(int64_t i) const {
    E* own = tasks_ + i * task_elements();
    return {own, own + sums_, own + 2 * sums_, own + 2 * sums_ + panels_ * kGroup};
  }
  static E* peepholes_of(E* sums) { return sums; }
  E* ln_hh_of(E* sums) const { return sums + panels_ * (G - 1) * W; }
  E* ln_c_of(E* sums) const { return ln_hh_of(sums) + panels_ * kGroup; }
  E* ln_c_bias_of(E* sums) const { return ln_c_of(sums) + panels_ * W; }
  static FL_INLINE void add(E* sum, Vec<E> x) { (Vec<E>::load(sum) + x).store(sum); }
  static FL_INLINE void add_product(E* sum, Vec<E> x, Vec<E> y) {
    fma(x, y, Vec<E>::load(sum)).store(sum);
  }

  // W_hh [G*H, H] -> blocks of up to four vectors of columns, [G*H][columns], zero beyond H.
  void pack_columns_of(int64_t block) const {
    const E* w = static_cast<const E*>(q_.w_hh);
    const int64_t v0 = columns_.first(block), v1 = columns_.first(block + 1);
    E* dst = weights_ + v0 * W * G * q_.H;
    for (int64_t k = 0; k < G * q_.H; ++k) {
      for (int64_t v = v0; v < v1; ++v, dst += W) {
        const int units = static_cast<int>(min64(W, q_.H - v * W));
        load_units(w + k * q_.H + v * W, units).store(dst);
      }
    }
  }

  int64_t time_of(int64_t s) const { return q_.reverse ? q_.T - 1 - s : s; }
  E* dz_rows(void* dz, int64_t t, int64_t b) const {
    return static_cast<E*>(dz) + (t * q_.B + b) * G * q_.H;
  }

  void recur(const Task& own, int64_t b0, int64_t b1) const {
    for (int64_t k = 0; k < 2 * sums_; ++k) own.sums[k] = 0;
    for (int64_t b = b0; b < b1; ++b) {
      spread_row(q_.c0, b, c0_ + b * records_.units);
      spread_row(g_.dc_n, b, dc_ + b * records_.units);
      spread_row(g_.dh_n, b, dh_ + b * dh_row_);
    }
    for (int64_t s = q_.T - 1; s >= 0; --s) {
      if (s + 1 < q_.T) products(s + 1, b0, b1);
      for (int64_t b = b0; b < b1; ++b) row(own, s, b);
      for (int64_t k = 0; k < sums_; k += W) {
        add(own.sums + k, Vec<E>::load(own.step + k));
        Vec<E>::set1(0).store(own.step + k);
      }
    }
    if (g_.dh0) products(0, b0, b1);
    for (int64_t b = b0; b < b1; ++b) {
      if (g_.dh0) copy_row(dh_ + b * dh_row_, g_.dh0, b);
      if (g_.dc0) copy_row(dc_ + b * records_.units, g_.dc0, b);
    }
  }
  // Row b of [B, H] -> whole vectors; zeros for null.
  void spread_row(const void* src, int64_t b, E* dst) const {
    for (int64_t p = 0; p < panels_; ++p) {
      const int units = static_cast<int>(min64(W, q_.H - p * W));
      const Vec<E> x =
          src ? load_units(static_cast<const E*>(src) + b * q_.H + p * W, units) : Vec<E>::set1(0);
      x.store(dst + p * W);
    }
  }
  void copy_row(const E* src, void* dst, int64_t b) const {
    std::memcpy(static_cast<E*>(dst) + b * q_.H, src, static_cast<size_t>(q_.H) * sizeof(E));
  }

  // dh of the step before processing step s, from its dzh.
  void products(int64_t s, int64_t b0, int64_t b1) const {
    const E* dz = dz_rows(kNorm ? g_.dzh : g_.dzx, time_of(s), b0);
    for (int64_t block = 0; block < columns_.blocks; ++block) {
      const int64_t v0 = columns_.first(block), nv = columns_.first(block + 1) - v0;
      const Product<E> product{dz,
                               G * q_.H,
                               1,
                               weights_ + v0 * W * G * q_.H,
                               nv * W,
                               G * q_.H,
                               dh_ + b0 * dh_row_ + v0 * W,
                               dh_row_,
                               false};
      multiply(product, b1 - b0, nv, products_per_block(G * q_.H));
    }
  }

  // One row of processing step s: dh and dc of it -> dzx, dzh, and dc of the step before.
  void row(const Task& own, int64_t s, int64_t b) const {
    const auto same = [](Vec<E> x) { return x; };
    const int64_t t = time_of(s);
    E* const c = records_.c(t, b);
    const E* const c_prev = s > 0 ? records_.c(time_of(s - 1), b) : c0_ + b * records_.units;
    const E* const gates = records_.gates_of(c);
    const E* const dh = dh_ + b * dh_row_;
    const E* const dy = g_.dy ? static_cast<const E*>(g_.dy) + t * g_.dy_t + b * g_.dy_b : nullptr;
    E* const dc = dc_ + b * records_.units;
    E* const dzx = dz_rows(g_.dzx, t, b);
    Vec<E> mean = Vec<E>::set1(0), scale = mean, mean_ds = mean, mean_ds_c = mean;
    if constexpr (kNorm) {
      mean = Vec<E>::set1(records_.moments(c)[kMeanOfCell]);
      scale = Vec<E>::set1(records_.moments(c)[kScaleOfCell]);
      for (int64_t p = 0; p < panels_; ++p) {
        const CellVariant<Vec<E>> variant = small_.template cell<Vec<E>>(q_, p, same);
        const Vec<E> gain = Vec<E>::load(small_.ln_c + p * W);
        const Vec<E> normalised = (Vec<E>::load(c + p * W) - mean) * scale;
        const Vec<E> state = fma(gain, normalised, Vec<E>::load(small_.ln_c_bias + p * W));
        const Vec<E> o = Vec<E>::load(gates + p * kGroup + (G - 1) * W);
        Vec<E> dz_o;
        const Vec<E> ds =
            variant_output_backward(o, state, gradient_of_h(dh, dy, p), variant, dz_o);
        const Vec<E> scaled = ds * gain;
        dz_o.store(own.dz + p * kGroup + (G - 1) * W);
        scaled.store(own.ds + p * W);
        mean_ds = mean_ds + scaled;
        mean_ds_c = fma(scaled, normalised, mean_ds_c);
        add_product(ln_c_of(own.step) + p * W, ds, normalised);
        add(ln_c_bias_of(own.step) + p * W, ds);
      }
      mean_ds = Vec<E>::set1(sum(mean_ds) / static_cast<E>(q_.H));
      mean_ds_c = Vec<E>::set1(sum(mean_ds_c) / static_cast<E>(q_.H));
    }
    Vec<E> sum_dz = Vec<E>::set1(0), sum_dz_n = sum_dz;
    for (int64_t p = 0; p < panels_; ++p) {
      const int units = static_cast<int>(min64(W, q_.H - p * W));
      const CellVariant<Vec<E>> variant = small_.template cell<Vec<E>>(q_, p, same);
      const E* kept = gates + p * kGroup;
      const Vec<E> i = Vec<E>::load(kept);
      const Gates<Vec<E>> gate{i, G == 4 ? Vec<E>::load(kept + W) : one_minus(i),
                               Vec<E>::load(kept + (G - 2) * W), Vec<E>::load(kept + (G - 1) * W)};
      const Vec<E> before = Vec<E>::load(c_prev + p * W), now = Vec<E>::load(c + p * W);
      Vec<E> carry = Vec<E>::load(dc + p * W), dz_o;
      if constexpr (kNorm) {
        const Vec<E> normalised = (now - mean) * scale;
        const Vec<E> apart = Vec<E>::load(own.ds + p * W) - mean_ds;
        carry = fma(scale, fnma(normalised, mean_ds_c, apart), carry);
        dz_o = Vec<E>::load(own.dz + p * kGroup + (G - 1) * W);
      } else {
        carry =
            carry + variant_output_backward(gate.o, now, gradient_of_h(dh, dy, p), variant, dz_o);
      }
      const Gates<Vec<E>> dz = variant_state_backward(gate, before, dz_o, variant, carry);
      carry.store(dc + p * W);
      const Vec<E> each[4] = {dz.i, G == 4 ? dz.f : dz.g, G == 4 ? dz.g : dz.o, dz.o};
#pragma GCC unroll 4
      for (int k = 0; k < G; ++k) {
        store_units(each[k], dzx + k * q_.H + p * W, units);
        if constexpr (kNorm) {
          const int64_t at = p * kGroup + k * W;
          const Vec<E> normalised = Vec<E>::load(records_.normalised(c) + at);
          const Vec<E> scaled = each[k] * Vec<E>::load(small_.ln_hh + at);
          scaled.store(own.dz + at);
          sum_dz = sum_dz + scaled;
          sum_dz_n = fma(scaled, normalised, sum_dz_n);
          add_product(ln_hh_of(own.step) + at, each[k], normalised);
        }
      }
      if (variant.peepholes) {
        E* sums = peepholes_of(own.step) + p * (G - 1) * W;
        add_product(sums, dz.i, before);
        if constexpr (G == 4) add_product(sums + W, dz.f, before);
        add_product(sums + (G - 2) * W, dz.o, now);
      }
    }
    if constexpr (kNorm) normalised_products(own, c, sum(sum_dz), sum(sum_dz_n), t, b);
  }
  FL_INLINE Vec<E> gradient_of_h(const E* dh, const E* dy, int64_t p) const {
    const Vec<E> later = Vec<E>::load(dh + p * W);
    const int units = static_cast<int>(min64(W, q_.H - p * W));
    return dy ? later + load_units(dy + p * W, units) : later;
  }

  // dzh of a row, from dz * gain of all its gates: what LayerNorm hands back.
  FL_INLINE void normalised_products(const Task& own, E* record, E sum_dz, E sum_dz_n, int64_t t,
                                     int64_t b) const {
    E* const dzh = dz_rows(g_.dzh, t, b);
    const E count = static_cast<E>(G * q_.H);
    const Vec<E> scale = Vec<E>::set1(records_.moments(record)[kScaleOfProducts]);
    const Vec<E> mean = Vec<E>::set1(sum_dz / count), mean_n = Vec<E>::set1(sum_dz_n / count);
    for (int64_t p = 0; p < panels_; ++p) {
      const int units = static_cast<int>(min64(W, q_.H - p * W));
#pragma GCC unroll 4
      for (int k = 0; k < G; ++k) {
        const int64_t at = p * kGroup + k * W;
        const Vec<E> apart = Vec<E>::load(own.dz + at) - mean;
        const Vec<E> normalised = Vec<E>::load(records_.normalised(record) + at);
        store_units(scale * fnma(normalised, mean_n, apart), dzh + k * q_.H + p * W, units);
      }
    }
  }

  // The tasks' sums, added up in their order.
  void finish() const {
    const Task first = task(0);
    for (int64_t i = 1; i < plan_.tasks; ++i) {
      const E* sums = task(i).sums;
      for (int64_t k = 0; k < sums_; k += W) add(first.sums + k, Vec<E>::load(sums + k));
    }
    const auto out = [](void* p) { return static_cast<E*>(p); };
    if (g_.dpeepholes) {
      gather_panels<G - 1>(peepholes_of(first.sums), q_.H, out(g_.dpeepholes));
    }
    if constexpr (kNorm) {
      if (g_.dln_hh) gather_panels<G>(ln_hh_of(first.sums), q_.H, out(g_.dln_hh));
      if (g_.dln_c) gather_panels<1>(ln_c_of(first.sums), q_.H, out(g_.dln_c));
      if (g_.dln_c_bias) gather_panels<1>(ln_c_bias_of(first.sums), q_.H, out(g_.dln_c_bias));
    }
  }

  const Recurrence& q_;
  const RecurrenceGradients& g_;
  const RecurrencePlan plan_;
  const int64_t panels_, dh_row_;
  const ColumnBlocks<E> columns_;
  const Records<E> records_;
  const int64_t sums_;  // elements of a task's sums
  CellWeights<E, G> small_;
  E* weights_ = nullptr;  // column blocks of W_hh
  E* dh_ = nullptr;       // [B][dh_row_]: what the later step hands back
  E* dc_ = nullptr;       // [B][units]
  E* c0_ = nullptr;       // [B][units]
  E* tasks_ = nullptr;
  size_t workspace_bytes_ = 0;
};

// Calls f(e, gates, normalises) with q's type and, as constants, its G and whether it normalises.
template <class E, class F>
auto with_recurrence_of(const Recurrence& q, const F& f) {
  const bool normalises = q.ln_hh != nullptr;
  if (q.gates == 3) {
    return normalises ? f(E{}, std::integral_constant<int, 3>{}, std::true_type{})
                      : f(E{}, std::integral_constant<int, 3>{}, std::false_type{});
  }
  return normalises ? f(E{}, std::integral_constant<int, 4>{}, std::true_type{})
                    : f(E{}, std::integral_constant<int, 4>{}, std::false_type{});
}
template <class F>
auto with_recurrence(const Recurrence& q, const F& f) {
  return q.dtype == DType::kFloat64 ? with_recurrence_of<double>(q, f)
                                    : with_recurrence_of<float>(q, f);
}
