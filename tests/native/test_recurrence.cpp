// The recurrence of the cell's variants against plain loops in double precision, forward and
// backward, in every combination of its options; the loops' own backward against finite differences
// of their forward.
//
// LayerNorm magnifies: numbers that nearly agree are divided by their small deviation, and its
// gradient is what is left of terms that cancel. How far float32 may then be off is found by the
// loops themselves, which run again with every intermediate value changed at random in its last
// place (Monte Carlo arithmetic, Parker 1997).
#include <cmath>
#include <functional>
#include <limits>
#include <memory>

#include "parallel.h"
#include "recurrence.h"
#include "suite.h"

using fused_lstm::DType;
using fused_lstm::Recurrence;
using fused_lstm::RecurrenceGradients;
using fused_lstm::RecurrenceOutputs;
using fused_lstm::Status;
using reference::Gradient;
using reference::Values;

namespace cpu = fused_lstm::cpu;

namespace {

enum Input { kZx, kH0, kC0, kWhh, kPeepholes, kLnHh, kLnC, kLnCBias, kInputs };
enum Output { kY, kHn, kCn, kOutputs };

// The options that no Case has are drawn from its seed.
struct Options {
  int64_t G;
  bool reverse, given[kInputs];
  double cell_clip, hidden_clip;

  explicit Options(const Case& c) {
    Random random(static_cast<uint64_t>(c.seed) * 31 + 5);
    G = random.below(2) ? 4 : 3;
    reverse = random.below(2) != 0;
    for (bool& one : given) one = true;
    given[kH0] = c.h0 != 0;
    given[kC0] = c.c0 != 0;
    given[kPeepholes] = random.below(2) != 0;
    given[kLnHh] = given[kLnC] = random.below(2) != 0;
    given[kLnCBias] = given[kLnC] && random.below(3) != 0;
    const double none = fused_lstm::kNoClip;
    cell_clip = random.below(3) == 0 ? 0.4 : none;
    hidden_clip = random.below(3) == 0 ? 0.15 : none;
  }
};

// ---- the loops ----

struct Normalised {
  Values n;
  double scale;
};
double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }
double clip(double x, double limit) { return std::fmax(-limit, std::fmin(limit, x)); }

// One row of one step.
struct Row {
  Values h_prev, c_prev, gate, raw, c, s;  // gate [G*H]; raw: c before it is clipped
  Normalised product, cell;
};

struct Loops {
  int64_t T, B, H, G;
  Options options;
  std::vector<Values> in;  // kInputs
  std::vector<Row> rows;   // [T*B]
  std::vector<Values> out;
  double unit = 0;  // of the changes in the last place; 0: none
  std::shared_ptr<Random> random = std::make_shared<Random>(1);

  double last_place(double x) const {
    return unit == 0 ? x : x * (1 + unit * random->uniform(-1, 1));
  }
  Normalised normalise(const Values& x) const {
    double mean = 0, variance = 0;
    for (double value : x) mean += value / static_cast<double>(x.size());
    mean = last_place(mean);
    for (double value : x) {
      variance += (value - mean) * (value - mean) / static_cast<double>(x.size());
    }
    Normalised result{x, 1 / std::sqrt(variance + fused_lstm::kLayerNormEpsilon)};
    for (double& value : result.n) value = last_place((value - mean) * result.scale);
    return result;
  }
  Values normalise_backward(const Normalised& of, const Values& dn) const {
    const double count = static_cast<double>(dn.size());
    double mean = 0, mean_n = 0;
    for (size_t k = 0; k < dn.size(); ++k) {
      mean += dn[k] / count;
      mean_n += dn[k] * of.n[k] / count;
    }
    mean = last_place(mean), mean_n = last_place(mean_n);
    Values dx(dn.size());
    for (size_t k = 0; k < dn.size(); ++k) {
      dx[k] = of.scale * last_place(last_place(dn[k] - mean) - last_place(of.n[k] * mean_n));
    }
    return dx;
  }

  int64_t time_of(int64_t s) const { return options.reverse ? T - 1 - s : s; }
  bool has(Input k) const { return options.given[k]; }

  void forward() {
    rows.assign(static_cast<size_t>(T * B), {});
    out = {Values(T * B * H), in[kH0], in[kC0]};
    for (int64_t s = 0; s < T; ++s) {
      for (int64_t b = 0; b < B; ++b) step(time_of(s), b);
    }
  }
  void step(int64_t t, int64_t b) {
    Row& row = rows[t * B + b];
    double* h = &out[kHn][b * H];
    double* c = &out[kCn][b * H];
    row.h_prev.assign(h, h + H);
    row.c_prev.assign(c, c + H);
    Values z(G * H);
    for (int64_t r = 0; r < G * H; ++r) {
      for (int64_t k = 0; k < H; ++k) z[r] += in[kWhh][r * H + k] * row.h_prev[k];
      z[r] = last_place(z[r]);
    }
    if (has(kLnHh)) {
      row.product = normalise(z);
      for (int64_t r = 0; r < G * H; ++r) z[r] = in[kLnHh][r] * row.product.n[r];
    }
    for (int64_t r = 0; r < G * H; ++r) {
      z[r] = last_place(z[r] + in[kZx][(t * B + b) * G * H + r]);
    }
    row.gate.resize(G * H), row.raw.resize(H), row.c.resize(H);
    for (int64_t u = 0; u < H; ++u) {
      const double* p = has(kPeepholes) ? &in[kPeepholes][u] : nullptr;
      const double before = row.c_prev[u];
      double* gate = &row.gate[u];
      gate[0] = last_place(sigmoid(z[u] + (p ? p[0] * before : 0)));
      const double f =
          last_place(G == 3 ? 1 - gate[0] : sigmoid(z[H + u] + (p ? p[H] * before : 0)));
      if (G == 4) gate[H] = f;
      gate[(G - 2) * H] = last_place(std::tanh(z[(G - 2) * H + u]));
      row.raw[u] = last_place(f * before + gate[0] * gate[(G - 2) * H]);
      row.c[u] = c[u] = clip(row.raw[u], options.cell_clip);
      gate[(G - 1) * H] = last_place(sigmoid(z[(G - 1) * H + u] + (p ? p[(G - 2) * H] * c[u] : 0)));
    }
    row.s = row.c;
    if (has(kLnC)) {
      row.cell = normalise(row.c);
      for (int64_t u = 0; u < H; ++u) {
        row.s[u] = in[kLnC][u] * row.cell.n[u] + (has(kLnCBias) ? in[kLnCBias][u] : 0);
      }
    }
    for (int64_t u = 0; u < H; ++u) {
      h[u] = clip(last_place(row.gate[(G - 1) * H + u] * std::tanh(row.s[u])), options.hidden_clip);
      out[kY][(t * B + b) * H + u] = h[u];
    }
  }

  bool ambiguous() const {
    const auto near = [](double x, double limit) { return std::fabs(std::fabs(x) - limit) < 2e-6; };
    for (const Row& row : rows) {
      for (int64_t u = 0; u < H; ++u) {
        const double h = row.gate[(G - 1) * H + u] * std::tanh(row.s[u]);
        if (near(row.raw[u], options.cell_clip) || near(h, options.hidden_clip)) return true;
      }
    }
    return false;
  }

  // Gradients of the inputs but w_hh, whose place that of h W_hh^T takes, [T, B, G*H].
  std::vector<Gradient> backward(const std::vector<Values>& dout) const {
    std::vector<Gradient> d(kInputs);
    for (int k = 0; k < kInputs; ++k) {
      d[k].reset(k == kWhh ? T * B * G * H : static_cast<int64_t>(in[k].size()));
    }
    Values dh = dout[kHn], dc = dout[kCn];
    for (int64_t s = T - 1; s >= 0; --s) {
      for (int64_t b = 0; b < B; ++b) {
        step_backward(time_of(s), b, dout[kY], &dh[b * H], &dc[b * H], d);
      }
    }
    for (int64_t k = 0; k < B * H; ++k) d[kH0].add(k, dh[k]), d[kC0].add(k, dc[k]);
    return d;
  }
  void step_backward(int64_t t, int64_t b, const Values& dy, double* dh, double* dc,
                     std::vector<Gradient>& d) const {
    const Row& row = rows[t * B + b];
    Values ds(H), dz(G * H);
    for (int64_t u = 0; u < H; ++u) {
      const double o = row.gate[(G - 1) * H + u], tanh_s = std::tanh(row.s[u]);
      double own = dh[u] + dy[(t * B + b) * H + u];
      if (std::fabs(o * tanh_s) > options.hidden_clip) own = 0;
      dz[(G - 1) * H + u] = last_place(own * tanh_s * o * (1 - o));
      ds[u] = last_place(own * o * (1 - last_place(tanh_s * tanh_s)));
    }
    if (has(kLnC)) {
      Values dn(H);
      for (int64_t u = 0; u < H; ++u) {
        d[kLnC].add(u, ds[u] * row.cell.n[u]);
        if (has(kLnCBias)) d[kLnCBias].add(u, ds[u]);
        dn[u] = ds[u] * in[kLnC][u];
      }
      ds = normalise_backward(row.cell, dn);
    }
    for (int64_t u = 0; u < H; ++u) {
      const double* p = has(kPeepholes) ? &in[kPeepholes][u] : nullptr;
      const double i = row.gate[u], g = row.gate[(G - 2) * H + u], before = row.c_prev[u];
      const double f = G == 3 ? 1 - i : row.gate[H + u], dz_o = dz[(G - 1) * H + u];
      double whole = dc[u] + ds[u] + (p ? p[(G - 2) * H] * dz_o : 0);
      if (std::fabs(row.raw[u]) > options.cell_clip) whole = 0;
      const double di = whole * g - (G == 3 ? whole * before : 0);
      dz[u] = last_place(di * i * (1 - i));
      if (G == 4) dz[H + u] = last_place(whole * before * f * (1 - f));
      dz[(G - 2) * H + u] = last_place(whole * i * (1 - g * g));
      dc[u] = last_place(whole * f);
      if (p == nullptr) continue;
      dc[u] += p[0] * dz[u] + (G == 4 ? p[H] * dz[H + u] : 0);
      d[kPeepholes].add(u, dz[u] * before);
      if (G == 4) d[kPeepholes].add(H + u, dz[H + u] * before);
      d[kPeepholes].add((G - 2) * H + u, dz_o * row.c[u]);
    }
    const int64_t at = (t * B + b) * G * H;
    for (int64_t r = 0; r < G * H; ++r) d[kZx].add(at + r, dz[r]);
    if (has(kLnHh)) {
      for (int64_t r = 0; r < G * H; ++r) {
        d[kLnHh].add(r, dz[r] * row.product.n[r]);
        dz[r] *= in[kLnHh][r];
      }
      dz = normalise_backward(row.product, dz);
    }
    for (int64_t k = 0; k < H; ++k) dh[k] = 0;
    for (int64_t r = 0; r < G * H; ++r) {
      d[kWhh].add(at + r, dz[r]);
      for (int64_t k = 0; k < H; ++k) dh[k] += last_place(in[kWhh][r * H + k] * dz[r]);
    }
  }
};

// ---- the inputs of a case, for both ----

class Data {
 public:
  explicit Data(const Case& c) : loops{c.T, c.B, c.H, 0, Options(c), {}, {}, {}} {
    const Options& o = loops.options;
    loops.G = o.G;
    q.dtype = static_cast<DType>(c.dtype);
    q.T = c.T, q.B = c.B, q.H = c.H;
    q.gates = static_cast<int32_t>(o.G);
    q.reverse = o.reverse;
    q.cell_clip = o.cell_clip, q.hidden_clip = o.hidden_clip;
    const Strides zx = strides_of(c, c.x_layout, o.G * c.H, c.T * c.B);
    const Strides dy = strides_of(c, c.dy_layout, c.H, c.T * c.B);
    q.zx_t = zx.t, q.zx_b = zx.b;
    g.dy_t = dy.t, g.dy_b = dy.b;
    Random random(static_cast<uint64_t>(c.seed));
    const int64_t H = c.H, rows = c.T * c.B;
    const int64_t sizes[kInputs] = {rows * o.G * H, c.B * H, c.B * H, o.G * H * H,
                                    (o.G - 1) * H,  o.G * H, H,       H};
    const void** places[kInputs] = {&q.zx,        &q.h0,    &q.c0,   &q.w_hh,
                                    &q.peepholes, &q.ln_hh, &q.ln_c, &q.ln_c_bias};
    for (int k = 0; k < kInputs; ++k) {
      const double scale = k == kWhh ? 2 / std::sqrt(static_cast<double>(H)) : 1;
      const bool strided = k == kZx;
      loops.in.push_back(make(random, sizes[k], scale, o.given[k], places[k], c,
                              strided ? &zx : nullptr, o.G * H));
    }
    const bool given[kOutputs] = {c.dy != 0, c.dh_n != 0, c.dc_n != 0};
    const int64_t out_sizes[kOutputs] = {rows * H, c.B * H, c.B * H};
    const void** out_places[kOutputs] = {&g.dy, &g.dh_n, &g.dc_n};
    for (int k = 0; k < kOutputs; ++k) {
      dout.push_back(
          make(random, out_sizes[k], 1, given[k], out_places[k], c, k == kY ? &dy : nullptr, H));
    }
  }

  // Moves the bounds away from whatever lies at one: which side it is on, float32 cannot say.
  void compute() {
    for (loops.forward(); loops.ambiguous(); loops.forward()) {
      q.cell_clip = loops.options.cell_clip *= 1.01;
      q.hidden_clip = loops.options.hidden_clip *= 1.01;
    }
  }

  Loops loops;
  std::vector<Values> dout;
  Recurrence q;
  RecurrenceGradients g;  // what comes in

 private:
  // Random numbers; zeros where there are none, and the place stays null.
  Values make(Random& random, int64_t count, double scale, bool given, const void** place,
              const Case& c, const Strides* strides, int64_t features) {
    Values values(static_cast<size_t>(count), 0.0);
    if (!given) return values;
    const int64_t elements = strides ? strides->elements : count;
    arrays_.push_back(std::make_unique<Guarded>(elements * reference::element_size(q.dtype), 64,
                                                c.at_start != 0));
    for (int64_t k = 0; k < count; ++k) {
      const int64_t row = k / features;
      const int64_t at =
          strides ? row / c.B * strides->t + row % c.B * strides->b + k % features : k;
      reference::store(q.dtype, arrays_.back()->data(), at, scale * random.uniform(-1, 1));
    }
    for (int64_t k = 0; k < count; ++k) {  // read back: rows may share their memory
      const int64_t row = k / features;
      const int64_t at =
          strides ? row / c.B * strides->t + row % c.B * strides->b + k % features : k;
      values[k] = reference::load(q.dtype, arrays_.back()->data(), at);
    }
    *place = arrays_.back()->data();
    return values;
  }
  std::vector<std::unique_ptr<Guarded>> arrays_;
};

// ---- the checks ----

using Buffer = std::unique_ptr<Guarded>;
Buffer buffer(const Data& data, size_t count) {
  return std::make_unique<Guarded>(count * reference::element_size(data.q.dtype), 8);
}
Values read(const Data& data, const Buffer& b) {
  return reference::read_all(data.q.dtype, b->data(),
                             b->bytes() / reference::element_size(data.q.dtype));
}

// Raises *largest to the largest difference.
void widen(const Values& a, const Values& b, double* largest) {
  for (size_t k = 0; k < a.size(); ++k) *largest = std::fmax(*largest, std::fabs(a[k] - b[k]));
}

// Two samples of what the last place may do; the kernels' sums of products round more often.
double allowed(double tolerance, double noise, double size) {
  constexpr double kSamples = 8;
  return size > 0 ? std::fmax(tolerance, kSamples * noise / size) : tolerance;
}
double size_of(const Values& values) {
  double size = 0;
  for (double value : values) size = std::fmax(size, std::fabs(value));
  return size;
}

void check(Suite& suite, const Case& c) {
  suite.begin(c);
  cpu::set_isa(static_cast<fused_lstm::Isa>(c.isa));
  Data data(c);
  data.compute();
  const std::vector<Gradient> want = data.loops.backward(data.dout);
  const Loops& loops = data.loops;
  double noise[kOutputs] = {}, gradient_noise[kInputs] = {};
  for (uint64_t k = 0; k < 2; ++k) {
    Loops again = loops;
    again.unit = c.dtype == 0 ? 6e-8 : 1.2e-16;
    again.random = std::make_shared<Random>(k + 1);
    again.forward();
    const std::vector<Gradient> other = again.backward(data.dout);
    for (int j = 0; j < kOutputs; ++j) widen(loops.out[j], again.out[j], &noise[j]);
    for (int j = 0; j < kInputs; ++j) widen(want[j].sum, other[j].sum, &gradient_noise[j]);
  }
  const char* const names[kOutputs] = {"y", "h_n", "c_n"};
  const double tolerance = forward_tolerance(c);
  Guarded reserve(cpu::recurrence_reserve_bytes(data.q), 64);
  for (const bool training : {false, true}) {
    const fused_lstm::Parallel parallel = make_parallel(c.par, c.threads);
    std::vector<Buffer> made;
    for (const Values& array : loops.out) made.push_back(buffer(data, array.size()));
    RecurrenceOutputs out{made[kY]->data(), made[kHn]->data(), made[kCn]->data(),
                          training ? reserve.data() : nullptr};
    const size_t bytes =
        cpu::recurrence_forward_workspace_bytes(data.q, training, parallel.threads);
    Guarded workspace(bytes, 64);
    const Status status = cpu::recurrence_forward(data.q, out, workspace.data(), bytes, parallel);
    suite.expect(status == Status::kOk, "forward's status");
    suite.expect(workspace.intact() && reserve.intact(), "forward writes beyond its memory");
    for (int k = 0; k < kOutputs; ++k) {
      suite.expect(made[k]->intact(), std::string("forward writes beyond ") + names[k]);
      suite.expect_close(std::string(training ? "training " : "inference ") + names[k],
                         loops.out[k], read(data, made[k]),
                         allowed(tolerance, noise[k], size_of(loops.out[k])));
    }
    const Status less = cpu::recurrence_forward(data.q, out, workspace.data(), bytes - 1, parallel);
    suite.expect(less == Status::kWorkspaceTooSmall, "forward takes too small a workspace");
  }

  const fused_lstm::Parallel parallel = make_parallel(c.back_par, c.back_threads);
  RecurrenceGradients g = data.g;
  g.reserve = reserve.data();
  void** const places[kInputs] = {&g.dzx,        &g.dh0,    &g.dc0,   &g.dzh,
                                  &g.dpeepholes, &g.dln_hh, &g.dln_c, &g.dln_c_bias};
  const char* const gradients[kInputs] = {"dzx",        "dh0",    "dc0",   "dzh",
                                          "dpeepholes", "dln_hh", "dln_c", "dln_c_bias"};
  std::vector<Buffer> made(kInputs);
  for (int k = 0; k < kInputs; ++k) {
    if (!loops.has(k == kWhh ? kLnHh : static_cast<Input>(k))) continue;
    made[k] = buffer(data, want[k].sum.size());
    *places[k] = made[k]->data();
  }
  const size_t bytes = cpu::recurrence_backward_workspace_bytes(data.q, parallel.threads);
  Guarded workspace(bytes, 64);
  const Status status = cpu::recurrence_backward(data.q, g, workspace.data(), bytes, parallel);
  suite.expect(status == Status::kOk, "backward's status");
  suite.expect(workspace.intact(), "backward writes beyond its workspace");
  for (int k = 0; k < kInputs; ++k) {
    if (!made[k]) continue;
    suite.expect(made[k]->intact(), std::string("backward writes beyond ") + gradients[k]);
    suite.expect_close(gradients[k], want[k], read(data, made[k]),
                       allowed(gradient_tolerance(c), gradient_noise[k], want[k].size()));
  }
  suite.end();
}

// The loops' gradients of one weighted sum of all outputs.
void check_loops(Suite& suite, const Case& c) {
  suite.begin(to_text(c) + " (the loops themselves)");
  Data data(c);
  Loops& loops = data.loops;
  const auto value = [&] {
    loops.forward();
    double total = 0;
    for (int k = 0; k < kOutputs; ++k) {
      for (size_t j = 0; j < data.dout[k].size(); ++j) total += data.dout[k][j] * loops.out[k][j];
    }
    return total;
  };
  data.compute();
  const std::vector<Gradient> d = loops.backward(data.dout);
  const char* const names[kInputs] = {"zx", "h0", "c0", "", "peepholes", "ln_hh", "ln_c", "bias"};
  for (int k = 0; k < kInputs; ++k) {
    if (k == kWhh || !loops.has(static_cast<Input>(k))) continue;
    Values found(loops.in[k].size());
    for (size_t j = 0; j < found.size(); ++j) {
      const double before = loops.in[k][j], step = 1e-5;
      loops.in[k][j] = before + step;
      const double up = value();
      loops.in[k][j] = before - step;
      found[j] = (up - value()) / (2 * step);
      loops.in[k][j] = before;
    }
    suite.expect_close(names[k], d[k], found, 1e-7);
  }
  suite.end();
}

void check_refusals(Suite& suite) {
  Case c;
  c.T = 2, c.B = 3, c.H = 5, c.seed = 1;
  while (!Options(c).given[kLnC]) ++c.seed;
  const Data data(c);
  const std::vector<std::pair<Status, std::function<void(Recurrence&)>>> wrong = {
      {Status::kUnsupported, [](Recurrence& q) { q.dtype = DType::kBFloat16; }},
      {Status::kBadArgument, [](Recurrence& q) { q.gates = 2; }},
      {Status::kBadArgument, [](Recurrence& q) { q.B = 0; }},
      {Status::kBadArgument, [](Recurrence& q) { q.w_hh = nullptr; }},
      {Status::kBadArgument, [](Recurrence& q) { q.ln_c = nullptr; }},
      {Status::kBadArgument, [](Recurrence& q) { q.cell_clip = 0; }},
      {Status::kBadArgument,
       [](Recurrence& q) { q.hidden_clip = std::numeric_limits<double>::quiet_NaN(); }},
  };
  for (size_t k = 0; k < wrong.size(); ++k) {
    suite.begin("refusal " + std::to_string(k));
    Recurrence q = data.q;
    wrong[k].second(q);
    char byte;
    RecurrenceOutputs out{&byte, &byte, &byte, nullptr};
    RecurrenceGradients g;
    g.reserve = g.dzx = g.dzh = &byte;
    const fused_lstm::Parallel parallel = make_parallel(kSerial, 1);
    suite.expect(cpu::recurrence_forward(q, out, &byte, 1, parallel) == wrong[k].first, "forward");
    suite.expect(cpu::recurrence_backward(q, g, &byte, 1, parallel) == wrong[k].first, "backward");
    suite.end();
  }
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_recurrence");
  if (suite.single()) {
    check(suite, suite.single_case());
    return suite.finish();
  }
  check_refusals(suite);
  Random random(static_cast<uint64_t>(suite.seed()) + 9000);
  for (int64_t k = 0; k < 24; ++k) {
    Case c = random_case(random, static_cast<int64_t>(DType::kFloat64));
    c.T = 3, c.B = 2, c.H = 3, c.P = c.packed = 0;
    c.x_layout = c.dy_layout = kDense;
    check_loops(suite, c);
  }
  for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
    const int64_t d = static_cast<int64_t>(dtype);
    std::vector<Case> cases = shape_grid(d, static_cast<uint64_t>(suite.seed()) + 9100);
    for (int64_t k = suite.random_cases(60); k > 0; --k) cases.push_back(random_case(random, d));
    for (size_t k = 0; k < cases.size(); ++k) {
      Case c = cases[k];
      c.P = c.packed = 0;
      c.D = c.I = 1;
      for (const int64_t isa : suite.isas()) {
        c.isa = isa;
        if (runs_of(isa, k) == 0) continue;
        draw_run(random, c);
        check(suite, c);
      }
    }
  }
  return suite.finish();
}
