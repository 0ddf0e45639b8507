// The recurrence of the cell's variants against plain loops in double precision, forward and
// backward, in every combination of its options. Whose kernels those are, the program that includes
// this says.
//
// LayerNorm magnifies: numbers that nearly agree are divided by their small deviation, and its
// gradient is what is left of terms that cancel. How far float32 may then be off is found by the
// loops themselves, which run again with every intermediate value changed at random in its last
// place (Monte Carlo arithmetic, Parker 1997).
#pragma once

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "guarded.h"
#include "recurrence.h"
#include "suite.h"

namespace recurrence {

using fused_lstm::DType;
using fused_lstm::Recurrence;
using fused_lstm::RecurrenceGradients;
using fused_lstm::RecurrenceOutputs;
using fused_lstm::Status;
using reference::Gradient;
using reference::Values;

// The kernels under test; the case says how they run.
namespace kernels {
extern const size_t kAlignment;  // of workspace and reserve
size_t reserve_bytes(const Recurrence& q);
size_t forward_workspace_bytes(const Case& c, const Recurrence& q, bool training);
size_t backward_workspace_bytes(const Case& c, const Recurrence& q, const RecurrenceGradients& g);
Status forward(const Case& c, const Recurrence& q, const RecurrenceOutputs& outputs,
               void* workspace, size_t bytes);
Status backward(const Case& c, const Recurrence& q, const RecurrenceGradients& gradients,
                void* workspace, size_t bytes);
std::string complaint();  // about the call just made, of the kernels' own
}  // namespace kernels

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
inline double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }
inline double clip(double x, double limit) { return std::fmax(-limit, std::fmin(limit, x)); }

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

// ---- one call with everything around it watched ----

using Buffer = std::unique_ptr<Guarded>;

// A reserve or a workspace with other contents than it may count on.
inline Buffer poisoned(size_t bytes, unsigned char poison) {
  auto made = std::make_unique<Guarded>(bytes, kernels::kAlignment);
  made->fill(poison);
  return made;
}

struct Run {
  Status status = Status::kOk;
  std::string complaint;     // empty: nothing was touched that should not be
  std::vector<Buffer> made;  // [kOutputs], or [kInputs], null where there is none
  Buffer reserve;            // of forward in training
};

inline Buffer result(const Data& data, size_t count, void** place) {
  auto made = std::make_unique<Guarded>(count * reference::element_size(data.q.dtype), 8);
  *place = made->data();
  return made;
}
inline Values read(const Data& data, const Buffer& b) {
  return reference::read_all(data.q.dtype, b->data(),
                             b->bytes() / reference::element_size(data.q.dtype));
}

// Whatever lies around the results and the workspace is as it was.
inline void look_around(Run& run, const Guarded& workspace) {
  run.complaint += kernels::complaint();
  if (!workspace.intact()) run.complaint += " beyond its workspace";
  if (run.reserve && !run.reserve->intact()) run.complaint += " beyond the reserve";
  for (size_t k = 0; k < run.made.size(); ++k) {
    if (run.made[k] && !run.made[k]->intact()) {
      run.complaint += " beyond result " + std::to_string(k);
    }
  }
}

inline Run run_forward(const Case& c, const Data& data, bool training, unsigned char poison) {
  Run run;
  RecurrenceOutputs out;
  void** const places[kOutputs] = {&out.y, &out.h_n, &out.c_n};
  for (int k = 0; k < kOutputs; ++k) {
    run.made.push_back(result(data, data.loops.out[k].size(), places[k]));
  }
  if (training) run.reserve = poisoned(kernels::reserve_bytes(data.q), poison);
  if (training) out.reserve = run.reserve->data();
  const size_t bytes = kernels::forward_workspace_bytes(c, data.q, training);
  const Buffer workspace = poisoned(bytes, poison);
  run.status = kernels::forward(c, data.q, out, workspace->data(), bytes);
  look_around(run, *workspace);
  if (kernels::forward(c, data.q, out, workspace->data(), bytes - 1) !=
      Status::kWorkspaceTooSmall) {
    run.complaint += " takes too small a workspace";
  }
  return run;
}

inline Run run_backward(const Case& c, const Data& data, const Run& forward, unsigned char poison) {
  Run run;
  RecurrenceGradients g = data.g;
  g.reserve = forward.reserve->data();
  void** const places[kInputs] = {&g.dzx,        &g.dh0,    &g.dc0,   &g.dzh,
                                  &g.dpeepholes, &g.dln_hh, &g.dln_c, &g.dln_c_bias};
  const Loops& loops = data.loops;
  for (int k = 0; k < kInputs; ++k) {
    const size_t count = k == kWhh ? loops.in[kZx].size() : loops.in[k].size();
    const bool wanted = loops.has(k == kWhh ? kLnHh : static_cast<Input>(k));
    run.made.push_back(wanted ? result(data, count, places[k]) : nullptr);
  }
  const size_t bytes = kernels::backward_workspace_bytes(c, data.q, g);
  const Buffer workspace = poisoned(bytes, poison);
  run.status = kernels::backward(c, data.q, g, workspace->data(), bytes);
  look_around(run, *workspace);
  if (kernels::backward(c, data.q, g, workspace->data(), bytes - 1) != Status::kWorkspaceTooSmall) {
    run.complaint += " takes too small a workspace";
  }
  return run;
}

inline bool same_bytes(const Run& a, const Run& b) {
  bool same = true;
  for (size_t k = 0; k < a.made.size(); ++k) {
    if (!a.made[k]) continue;
    same = same && std::memcmp(a.made[k]->data(), b.made[k]->data(), a.made[k]->bytes()) == 0;
  }
  return same;
}

// ---- the checks ----

// Raises *largest to the largest difference.
inline void widen(const Values& a, const Values& b, double* largest) {
  for (size_t k = 0; k < a.size(); ++k) *largest = std::fmax(*largest, std::fabs(a[k] - b[k]));
}

// Two samples of what the last place may do; the kernels' sums of products round more often.
inline double allowed(double tolerance, double noise, double size) {
  constexpr double kSamples = 8;
  return size > 0 ? std::fmax(tolerance, kSamples * noise / size) : tolerance;
}
inline double size_of(const Values& values) {
  double size = 0;
  for (double value : values) size = std::fmax(size, std::fabs(value));
  return size;
}

// again: how many more runs, each under another schedule and with other contents of the scratch.
inline void check(Suite& suite, Case c, int again) {
  suite.begin(c);
  Data data(c);
  data.compute();
  const std::vector<Gradient> want = data.loops.backward(data.dout);
  const Loops& loops = data.loops;
  double noise[kOutputs] = {}, gradient_noise[kInputs] = {};
  for (uint64_t k = 0; k < 2; ++k) {
    Loops other = loops;
    other.unit = c.dtype == 0 ? 6e-8 : 1.2e-16;
    other.random = std::make_shared<Random>(k + 1);
    other.forward();
    const std::vector<Gradient> changed = other.backward(data.dout);
    for (int j = 0; j < kOutputs; ++j) widen(loops.out[j], other.out[j], &noise[j]);
    for (int j = 0; j < kInputs; ++j) widen(want[j].sum, changed[j].sum, &gradient_noise[j]);
  }
  const auto expect_done = [&](const Run& run, const std::string& when) {
    suite.expect(run.status == Status::kOk, when + " returns an error status");
    suite.expect(run.complaint.empty(), when + run.complaint);
  };
  const char* const names[kOutputs] = {"y", "h_n", "c_n"};
  const Run inference = run_forward(c, data, false, 0xff);
  const Run training = run_forward(c, data, true, 0xff);
  expect_done(inference, "inference");
  expect_done(training, "training");
  for (int k = 0; k < kOutputs; ++k) {
    const double tolerance = allowed(forward_tolerance(c), noise[k], size_of(loops.out[k]));
    suite.expect_close(std::string("inference ") + names[k], loops.out[k],
                       read(data, inference.made[k]), tolerance);
    suite.expect_close(std::string("training ") + names[k], loops.out[k],
                       read(data, training.made[k]), tolerance);
  }
  const char* const gradients[kInputs] = {"dzx",        "dh0",    "dc0",   "dzh",
                                          "dpeepholes", "dln_hh", "dln_c", "dln_c_bias"};
  const Run backward = run_backward(c, data, training, 0xff);
  expect_done(backward, "backward");
  for (int k = 0; k < kInputs; ++k) {
    if (!backward.made[k]) continue;
    suite.expect_close(gradients[k], want[k], read(data, backward.made[k]),
                       allowed(gradient_tolerance(c), gradient_noise[k], want[k].size()));
  }
  for (; again > 0; --again) {
    ++c.schedule;
    const Run forward = run_forward(c, data, true, 0x3c);
    expect_done(forward, "forward again");
    suite.expect(same_bytes(training, forward), "forward gives other bits the next time");
    const Run second = run_backward(c, data, forward, 0x3c);
    expect_done(second, "backward again");
    suite.expect(same_bytes(backward, second), "backward gives other bits the next time");
  }
  suite.end();
}

inline void check_refusals(Suite& suite) {
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
    suite.expect(kernels::forward(c, q, out, &byte, 1) == wrong[k].first, "forward");
    suite.expect(kernels::backward(c, q, g, &byte, 1) == wrong[k].first, "backward");
    suite.end();
  }
}

// The case with what a recurrence has.
inline Case recurrent(Case c) {
  c.P = c.packed = 0;
  c.D = c.I = 1;
  return c;
}

}  // namespace recurrence
