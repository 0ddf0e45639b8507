// Cases to and from text, and the making of their inputs.
#include "cases.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <sstream>

#include "parallel.h"
#include "reference.h"

using fused_lstm::DType;

const char* const kGradientNames[kGradients] = {
    "dx",    "dh0",           "dc0",           "dw_ih",      "dw_hh",        "db",
    "dw_hr", "dw_ih_reverse", "dw_hh_reverse", "db_reverse", "dw_hr_reverse"};
const char* const kDTypeNames[4] = {"float32", "float64", "bfloat16", "float16"};
const char* const kIsaNames[4] = {"portable", "avx2", "avx512", "emulated512"};

namespace {

struct Field {
  const char* name;
  int64_t Case::* member;
  const char* const* names;  // null: a plain number
  int64_t name_count;
  bool run;  // says how the case runs, not what its inputs are
};

constexpr Field kFields[] = {
    {"T", &Case::T, nullptr, 0, false},
    {"B", &Case::B, nullptr, 0, false},
    {"I", &Case::I, nullptr, 0, false},
    {"H", &Case::H, nullptr, 0, false},
    {"P", &Case::P, nullptr, 0, false},
    {"D", &Case::D, nullptr, 0, false},
    {"dtype", &Case::dtype, kDTypeNames, 4, false},
    {"packed", &Case::packed, nullptr, 0, false},
    {"marks", &Case::marks, nullptr, 0, false},
    {"cells", &Case::cells, nullptr, 0, false},
    {"zoneout", &Case::zoneout, nullptr, 0, false},
    {"h_factors", &Case::h_factors, nullptr, 0, false},
    {"recompute", &Case::recompute, nullptr, 0, false},
    {"h0", &Case::h0, nullptr, 0, false},
    {"c0", &Case::c0, nullptr, 0, false},
    {"b_ih", &Case::b_ih, nullptr, 0, false},
    {"b_hh", &Case::b_hh, nullptr, 0, false},
    {"x_layout", &Case::x_layout, nullptr, 0, false},
    {"dy_layout", &Case::dy_layout, nullptr, 0, false},
    {"dy", &Case::dy, nullptr, 0, false},
    {"dh_n", &Case::dh_n, nullptr, 0, false},
    {"dc_n", &Case::dc_n, nullptr, 0, false},
    {"special", &Case::special, nullptr, 0, false},
    {"at_start", &Case::at_start, nullptr, 0, false},
    {"seed", &Case::seed, nullptr, 0, false},
    {"y_layout", &Case::y_layout, nullptr, 0, true},
    {"needs", &Case::needs, nullptr, 0, true},
    {"isa", &Case::isa, kIsaNames, 4, true},
    {"par", &Case::par, kParallelNames, kParallelKinds, true},
    {"threads", &Case::threads, nullptr, 0, true},
    {"back_par", &Case::back_par, kParallelNames, kParallelKinds, true},
    {"back_threads", &Case::back_threads, nullptr, 0, true},
    {"arch", &Case::arch, nullptr, 0, true},
    {"sms", &Case::sms, nullptr, 0, true},
    {"math", &Case::math, nullptr, 0, true},
    {"family", &Case::family, nullptr, 0, true},
    {"back_family", &Case::back_family, nullptr, 0, true},
    {"schedule", &Case::schedule, nullptr, 0, true},
    {"units", &Case::units, nullptr, 0, true},
};

[[noreturn]] void reject(const std::string& token) {
  std::fprintf(stderr, "--case: expected key=value of a known field, got '%s'\n", token.c_str());
  std::exit(2);
}

int64_t parse_value(const Field& field, const std::string& value, const std::string& token) {
  for (int64_t k = 0; k < field.name_count; ++k) {
    if (value == field.names[k]) return k;
  }
  char* end = nullptr;
  const int64_t number = std::strtoll(value.c_str(), &end, 10);
  if (value.empty() || *end != 0 || field.names != nullptr) reject(token);
  return number;
}

}  // namespace

std::string to_text(const Case& c, bool with_run) {
  std::ostringstream text;
  const Case plain;
  for (const Field& field : kFields) {
    const int64_t value = c.*field.member;
    const bool shown =
        &field - kFields < 6 || field.names != nullptr || value != plain.*field.member;
    if ((field.run && !with_run) || !shown) continue;
    if (text.tellp() > 0) text << ' ';
    text << field.name << '=';
    field.names != nullptr ? text << field.names[value] : text << value;
  }
  return text.str();
}

Case parse_case(const std::string& text) {
  Case c;
  std::istringstream tokens(text);
  for (std::string token; tokens >> token;) {
    const size_t equals = token.find('=');
    if (equals == std::string::npos) reject(token);
    const std::string key = token.substr(0, equals);
    const Field* found = std::find_if(std::begin(kFields), std::end(kFields),
                                      [&](const Field& field) { return key == field.name; });
    if (found == std::end(kFields)) reject(token);
    c.*found->member = parse_value(*found, token.substr(equals + 1), token);
  }
  return c;
}

uint64_t Random::bits() {  // splitmix64
  uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

double Random::uniform(double low, double high) {
  return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53;
}

Strides strides_of(const Case& c, int64_t layout, int64_t features, int64_t rows) {
  Strides s;
  if (c.packed) {
    s.b = features + (layout % 2 == 1 ? 3 : 0);
    s.t = -1000003;  // to be ignored
    s.elements = (rows - 1) * s.b + features;
    return s;
  }
  switch (layout) {
    case kPadded:
      s.b = features + 3;
      s.t = c.B * s.b + 5;
      break;
    case kBatchFirst:
      s.t = features;
      s.b = c.T * features;
      break;
    case kBatchFirstPadded:
      s.t = features + 1;
      s.b = c.T * s.t + 2;
      break;
    case kSameForBatch:
      s.t = features;
      break;
    case kSameForTime:
      s.b = features;
      break;
    default:
      s.b = features;
      s.t = c.B * features;
  }
  s.elements = (c.T - 1) * s.t + (c.B - 1) * s.b + features;
  return s;
}

// Values uniform in +-scale, rounded to storage by store().
void* Data::make(int64_t count, double scale) {
  const DType dtype = problem.dtype;
  const size_t size = reference::element_size(dtype);
  arrays_.push_back(std::make_unique<Guarded>(count * size, size, case_.at_start != 0));
  void* data = arrays_.back()->data();
  for (int64_t k = 0; k < count; ++k) {
    reference::store(dtype, data, k, random_.uniform(-scale, scale));
  }
  return data;
}

// A fifth of the steps reset their row, more often at the first; lengths from 0 to T.
void Data::make_marks() {
  const int64_t T = case_.T, B = case_.B;
  marks_.assign(static_cast<size_t>(T * B), 0);
  for (int64_t b = 0; b < B; ++b) {
    const int64_t length = (case_.marks & 2) != 0 ? random_.below(T + 1) : T;
    for (int64_t t = 0; t < T; ++t) {
      uint8_t& mark = marks_[t * B + b];
      const bool resets = random_.below(t == 0 ? 2 : 5) == 0;
      if ((case_.marks & 1) != 0 && resets) mark |= fused_lstm::kMarkReset;
      if (t >= length) mark |= fused_lstm::kMarkEnded;
      if ((case_.marks & 4) != 0) mark = static_cast<uint8_t>(random_.below(256));
    }
  }
  problem.marks = marks_.data();
}

// A third of the units keep h, another third c, independently.
void Data::make_zoneout() {
  if (case_.zoneout == 2) {
    problem.zoneout.h = 0.25;
    problem.zoneout.c = 0.375;
    return;
  }
  keep_.resize(static_cast<size_t>(case_.T * case_.B * case_.D * case_.H));
  for (uint8_t& keep : keep_) {
    if (random_.below(3) == 0) keep |= fused_lstm::kKeepH;
    if (random_.below(3) == 0) keep |= fused_lstm::kKeepC;
  }
  problem.zoneout.keep = keep_.data();
}

// Rows that have ended hold NaN, for nobody may read them; not where rows share their memory.
void Data::spoil_ended(int64_t layout, void* data, int64_t stride_t, int64_t stride_b,
                       int64_t features) {
  if (case_.packed || data == nullptr || layout == kSameForBatch || layout == kSameForTime) return;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (int64_t t = 0; t < case_.T; ++t) {
    for (int64_t b = 0; b < case_.B; ++b) {
      for (int64_t k = 0; reference::ended(problem, t, b) && k < features; ++k) {
        reference::store(problem.dtype, data, t * stride_t + b * stride_b + k, nan);
      }
    }
  }
}

Data::Data(const Case& c) : case_(c), random_(static_cast<uint64_t>(c.seed)) {
  fused_lstm::Problem& p = problem;
  p.dtype = static_cast<DType>(c.dtype);
  p.T = c.T;
  p.B = c.B;
  p.I = c.I;
  p.H = c.H;
  p.P = c.P == 0 ? c.H : c.P;
  p.D = static_cast<int32_t>(c.D);
  rows = c.T * c.B;
  if (c.packed) {
    // Lengths from 1 to T, the first row's is T; steps in which no sequence ends are common.
    std::vector<int64_t> lengths(static_cast<size_t>(c.B), c.T);
    for (int64_t b = 1; b < c.B; ++b) lengths[b] = 1 + random_.below(c.T);
    batch_sizes_.assign(static_cast<size_t>(c.T), 0);
    rows = 0;
    for (int64_t length : lengths) {
      for (int64_t t = 0; t < length; ++t, ++rows) ++batch_sizes_[t];
    }
    p.batch_sizes = batch_sizes_.data();
  }
  const double w_ih_scale = 1.5 / std::sqrt(static_cast<double>(p.I));
  const double w_hh_scale = 1.5 / std::sqrt(static_cast<double>(p.P));
  const Strides xs = strides_of(c, c.x_layout, p.I, rows);
  void* x = make(xs.elements, 1.5);
  void* h0 = c.h0 ? make(p.D * p.B * p.P, 1.0) : nullptr;
  void* c0 = c.c0 ? make(p.D * p.B * p.H, 1.5) : nullptr;
  p.x = x;
  p.x_t = xs.t;
  p.x_b = xs.b;
  p.h0 = h0;
  p.c0 = c0;
  void *w_ih = nullptr, *w_hh = nullptr, *b_ih = nullptr;  // of the last direction
  for (int32_t d = 0; d < p.D; ++d) {
    fused_lstm::Weights& w = p.weights[d];
    w.w_ih = w_ih = make(4 * p.H * p.I, w_ih_scale);
    w.w_hh = w_hh = make(4 * p.H * p.P, w_hh_scale);
    w.b_ih = b_ih = c.b_ih ? make(4 * p.H, 0.5) : nullptr;
    w.b_hh = c.b_hh ? make(4 * p.H, 0.5) : nullptr;
    if (c.P != 0) w.w_hr = make(p.P * p.H, 1.5 / std::sqrt(static_cast<double>(p.H)));
  }
  const Strides dys = strides_of(c, c.dy_layout, p.D * p.P, rows);
  void* dy = c.dy ? make(dys.elements, 1.0) : nullptr;
  void* dh_n = c.dh_n ? make(p.D * p.B * p.P, 1.0) : nullptr;
  void* dc_n = c.dc_n ? make(p.D * p.B * p.H, 1.0) : nullptr;
  incoming.dy = dy;
  incoming.dy_t = dys.t;
  incoming.dy_b = dys.b;
  incoming.dh_n = dh_n;
  incoming.dc_n = dc_n;
  if (c.cells != 0) {
    const Strides s = strides_of(c, c.dy_layout, p.D * p.H, rows);
    void* dcells = make(s.elements, 1.0);
    p.cells = true;
    incoming.dcells = dcells;
    incoming.dcells_t = s.t;
    incoming.dcells_b = s.b;
  }
  if (c.marks != 0) {
    make_marks();
    spoil_ended(c.x_layout, x, xs.t, xs.b, p.I);
    spoil_ended(c.dy_layout, dy, dys.t, dys.b, p.D * p.P);
    spoil_ended(c.dy_layout, const_cast<void*>(incoming.dcells), incoming.dcells_t,
                incoming.dcells_b, p.D * p.H);
  }

  if (c.zoneout != 0) make_zoneout();
  if (c.h_factors != 0) p.h_factors = make(p.D * p.B * p.P, 1.25);
  p.recompute = c.recompute != 0;

  if (c.special != kOrdinary) {
    struct Target {
      void* data;
      int64_t count;
    };
    const Target targets[] = {
        {x, xs.elements},      {h0, p.D * p.B * p.P},   {c0, p.D * p.B * p.H},
        {w_ih, 4 * p.H * p.I}, {w_hh, 4 * p.H * p.P},   {b_ih, 4 * p.H},
        {dy, dys.elements},    {dh_n, p.D * p.B * p.P}, {dc_n, p.D * p.B * p.H}};
    const Target& target = targets[(c.special - 1) / 2];
    const double infinity = std::numeric_limits<double>::infinity();
    double value = std::numeric_limits<double>::quiet_NaN();
    if (c.special % 2 == 0) value = random_.below(2) ? infinity : -infinity;
    if (target.data != nullptr) {
      reference::store(p.dtype, target.data, random_.below(target.count), value);
    }
  }
  for (const auto& array : arrays_) {
    const auto* bytes = static_cast<const unsigned char*>(array->data());
    copies_.emplace_back(bytes, bytes + array->bytes());
  }
}

bool Data::inputs_unchanged() const {
  for (size_t k = 0; k < arrays_.size(); ++k) {
    if (!arrays_[k]->intact()) return false;
    if (std::memcmp(arrays_[k]->data(), copies_[k].data(), copies_[k].size()) != 0) return false;
  }
  return true;
}
