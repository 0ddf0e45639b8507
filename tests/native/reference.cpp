// Forward and backward of one LSTM layer as the formulas in torch.nn.LSTM's documentation say them.
#include "reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace reference {

using fused_lstm::DType;
using fused_lstm::Gradients;
using fused_lstm::Problem;
using fused_lstm::Weights;

namespace {

// A 16-bit floating point format: precision counts the hidden bit.
struct Format {
  int precision, min_exponent, max_exponent;
};
constexpr Format kBFloat16 = {8, -126, 127};
constexpr Format kFloat16 = {11, -14, 15};

double round_to(const Format& format, double value) {
  if (!std::isfinite(value) || value == 0.0) return value;
  const int exponent = std::max(std::ilogb(value), format.min_exponent);
  const double quantum = std::ldexp(1.0, exponent - (format.precision - 1));
  const double nearest = std::nearbyint(value / quantum) * quantum;
  if (std::fabs(nearest) < std::ldexp(1.0, format.max_exponent + 1)) return nearest;
  return std::copysign(std::numeric_limits<double>::infinity(), value);
}

uint16_t encode(const Format& format, double value) {
  const int mantissa_bits = format.precision - 1;
  const uint32_t sign = std::signbit(value) ? 0x8000u : 0u;
  const uint32_t all_ones = static_cast<uint32_t>(format.max_exponent * 2 + 1) << mantissa_bits;
  if (std::isnan(value)) return static_cast<uint16_t>(all_ones | (1u << (mantissa_bits - 1)));
  const double magnitude = std::fabs(round_to(format, value));
  if (std::isinf(magnitude)) return static_cast<uint16_t>(sign | all_ones);
  if (magnitude < std::ldexp(1.0, format.min_exponent)) {
    const double steps = std::ldexp(magnitude, mantissa_bits - format.min_exponent);
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(steps));
  }
  const int exponent = std::ilogb(magnitude);
  const double fraction = std::ldexp(magnitude, mantissa_bits - exponent);
  const uint32_t mantissa = static_cast<uint32_t>(fraction) - (1u << mantissa_bits);
  const uint32_t biased = static_cast<uint32_t>(exponent + format.max_exponent);
  return static_cast<uint16_t>(sign | (biased << mantissa_bits) | mantissa);
}

double decode_bits(const Format& format, uint16_t bits) {
  const int mantissa_bits = format.precision - 1;
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1u);
  const int biased = (bits & 0x7fff) >> mantissa_bits;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (biased == format.max_exponent * 2 + 1) {
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  if (biased == 0) return sign * std::ldexp(mantissa, format.min_exponent - mantissa_bits);
  const double fraction = mantissa + std::ldexp(1.0, mantissa_bits);
  return sign * std::ldexp(fraction, biased - format.max_exponent - mantissa_bits);
}

// Once for every pattern of bits.
template <const Format& format>
double decode(uint16_t bits) {
  static const std::vector<double> values = [] {
    std::vector<double> all(1 << 16);
    for (size_t k = 0; k < all.size(); ++k) {
      all[k] = decode_bits(format, static_cast<uint16_t>(k));
    }
    return all;
  }();
  return values[bits];
}

template <class T>
T at(const void* data, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + index * static_cast<int64_t>(sizeof(T)),
              sizeof(T));
  return value;
}

template <class T>
void put(void* data, int64_t index, T value) {
  std::memcpy(static_cast<char*>(data) + index * static_cast<int64_t>(sizeof(T)), &value,
              sizeof(T));
}

double sigmoid(double z) { return 1.0 / (1.0 + std::exp(-z)); }

struct Direction {
  Values w_ih, w_hh, bias, w_hr;  // [4H, I], [4H, P], [4H], [P, H] or empty
};

Direction read_direction(const Problem& p, int32_t d) {
  const Weights& w = p.weights[d];
  Direction direction;
  direction.w_ih = read_all(p.dtype, w.w_ih, 4 * p.H * p.I);
  direction.w_hh = read_all(p.dtype, w.w_hh, 4 * p.H * p.P);
  direction.bias = read_all(p.dtype, w.b_ih, 4 * p.H);
  const Values b_hh = read_all(p.dtype, w.b_hh, 4 * p.H);
  for (int64_t r = 0; r < 4 * p.H; ++r) direction.bias[r] += b_hh[r];
  if (w.w_hr != nullptr) direction.w_hr = read_all(p.dtype, w.w_hr, p.P * p.H);
  return direction;
}

// Everything one direction computes, one row of each array per row of x.
struct Trace {
  Values gates;           // [rows, 4H] after their activations, order i f g o, as stored
  Values c, c_prev;       // [rows, H]
  Values c_cell;          // [rows, H]: c before zoneout
  Values h, h_prev;       // [rows, P]; h as computed, h_prev as stored
  Values h_read;          // [rows, P]: h_prev as the gates read it
  Values h_last, c_last;  // [B, P], [B, H]: the state after each row's last step
};

// Steps in the order in which direction d visits them.
int64_t visited(const Problem& p, int32_t d, int64_t step) {
  return d == 0 ? step : p.T - 1 - step;
}

std::vector<int64_t> row_offsets(const Problem& p) {
  std::vector<int64_t> offsets(static_cast<size_t>(p.T), 0);
  for (int64_t t = 1; t < p.T; ++t) offsets[t] = offsets[t - 1] + active_rows(p, t - 1);
  return offsets;
}

// What the gates multiply h by: [D, B, P].
Values read_factors(const Problem& p) {
  if (p.h_factors == nullptr) return Values(static_cast<size_t>(p.D * p.B * p.P), 1.0);
  return read_all(p.dtype, p.h_factors, p.D * p.B * p.P);
}

// The share that unit j of row n keeps of h (kKeepH) or c (kKeepC).
double share_kept(const Problem& p, uint8_t which, int32_t d, int64_t n, int64_t j) {
  const fused_lstm::Zoneout& zoneout = p.zoneout;
  if (zoneout.keep == nullptr) return which == fused_lstm::kKeepH ? zoneout.h : zoneout.c;
  return (zoneout.keep[(n * p.D + d) * p.H + j] & which) != 0 ? 1.0 : 0.0;
}

// A share of a value; nothing of it also where it is not finite.
double part(double share, double value) { return share == 0.0 ? 0.0 : share * value; }

Trace trace_direction(const Problem& p, const Direction& w, const Values& x, int32_t d,
                      Scaled scaled = Scaled::kComputed) {
  const int64_t rows = row_count(p), H = p.H, P = p.P, I = p.I;
  const Values h0 = read_all(p.dtype, p.h0, p.D * p.B * P);
  const Values c0 = read_all(p.dtype, p.c0, p.D * p.B * H);
  const std::vector<int64_t> offsets = row_offsets(p);
  Trace trace;
  trace.gates.resize(rows * 4 * H);
  trace.c.resize(rows * H);
  trace.c_prev.resize(rows * H);
  trace.c_cell.resize(rows * H);
  trace.h.resize(rows * P);
  trace.h_prev.resize(rows * P);
  trace.h_read.resize(rows * P);
  Values gates(static_cast<size_t>(4 * H));  // of one row, as computed
  const Values factors = read_factors(p);
  trace.h_last.assign(h0.begin() + d * p.B * P, h0.begin() + (d + 1) * p.B * P);
  trace.c_last.assign(c0.begin() + d * p.B * H, c0.begin() + (d + 1) * p.B * H);
  for (int64_t step = 0; step < p.T; ++step) {
    const int64_t t = visited(p, d, step);
    for (int64_t b = 0; b < active_rows(p, t); ++b) {
      if (ended(p, t, b)) continue;
      if (resets(p, t, b)) {
        std::fill_n(&trace.h_last[b * P], P, 0.0);
        std::fill_n(&trace.c_last[b * H], H, 0.0);
      }
      const int64_t n = offsets[t] + b;
      for (int64_t q = 0; q < P; ++q) {
        trace.h_prev[n * P + q] = rounded(p.dtype, trace.h_last[b * P + q]);
        const double read = trace.h_prev[n * P + q] * factors[(d * p.B + b) * P + q];
        trace.h_read[n * P + q] = scaled == Scaled::kStored ? rounded(p.dtype, read) : read;
      }
      for (int64_t j = 0; j < H; ++j) trace.c_prev[n * H + j] = trace.c_last[b * H + j];
      for (int64_t r = 0; r < 4 * H; ++r) {
        double sum = w.bias[r];
        for (int64_t k = 0; k < I; ++k) sum += w.w_ih[r * I + k] * x[n * I + k];
        for (int64_t q = 0; q < P; ++q) sum += w.w_hh[r * P + q] * trace.h_read[n * P + q];
        gates[r] = r / H == 2 ? std::tanh(sum) : sigmoid(sum);
        trace.gates[n * 4 * H + r] = rounded(p.dtype, gates[r]);
      }
      Values m(static_cast<size_t>(H));  // h before the projection
      for (int64_t j = 0; j < H; ++j) {
        const double c = gates[H + j] * trace.c_prev[n * H + j] + gates[j] * gates[2 * H + j];
        const double kept = share_kept(p, fused_lstm::kKeepC, d, n, j);
        trace.c_cell[n * H + j] = c;
        trace.c[n * H + j] = trace.c_last[b * H + j] =
            part(kept, trace.c_prev[n * H + j]) + part(1.0 - kept, c);
        m[j] = gates[3 * H + j] * std::tanh(c);
      }
      for (int64_t q = 0; q < P; ++q) {
        double h = w.w_hr.empty() ? m[q] : 0.0;
        for (int64_t j = 0; j < H && !w.w_hr.empty(); ++j) h += w.w_hr[q * H + j] * m[j];
        const double kept = share_kept(p, fused_lstm::kKeepH, d, n, q);
        trace.h[n * P + q] = trace.h_last[b * P + q] =
            part(kept, trace.h_prev[n * P + q]) + part(1.0 - kept, h);
      }
    }
  }
  return trace;
}

}  // namespace

size_t element_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 4;
    case DType::kFloat64:
      return 8;
    default:
      return 2;
  }
}

double load(DType dtype, const void* data, int64_t index) {
  switch (dtype) {
    case DType::kFloat32:
      return at<float>(data, index);
    case DType::kFloat64:
      return at<double>(data, index);
    case DType::kBFloat16:
      return decode<kBFloat16>(at<uint16_t>(data, index));
    default:
      return decode<kFloat16>(at<uint16_t>(data, index));
  }
}

void store(DType dtype, void* data, int64_t index, double value) {
  switch (dtype) {
    case DType::kFloat32:
      return put<float>(data, index, static_cast<float>(value));
    case DType::kFloat64:
      return put<double>(data, index, value);
    case DType::kBFloat16:
      return put<uint16_t>(data, index, encode(kBFloat16, value));
    default:
      return put<uint16_t>(data, index, encode(kFloat16, value));
  }
}

double rounded(DType dtype, double value) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<double>(static_cast<float>(value));
    case DType::kFloat64:
      return value;
    case DType::kBFloat16:
      return round_to(kBFloat16, value);
    default:
      return round_to(kFloat16, value);
  }
}

int64_t active_rows(const Problem& p, int64_t t) { return p.batch_sizes ? p.batch_sizes[t] : p.B; }

bool ended(const Problem& p, int64_t t, int64_t b) {
  return p.marks != nullptr && (p.marks[t * p.B + b] & fused_lstm::kMarkEnded) != 0;
}
bool resets(const Problem& p, int64_t t, int64_t b) {
  return p.marks != nullptr && (p.marks[t * p.B + b] & fused_lstm::kMarkReset) != 0;
}

int64_t row_count(const Problem& p) {
  int64_t rows = 0;
  for (int64_t t = 0; t < p.T; ++t) rows += active_rows(p, t);
  return rows;
}

Values read_all(DType dtype, const void* data, int64_t count) {
  Values values(static_cast<size_t>(count), 0.0);
  for (int64_t k = 0; data != nullptr && k < count; ++k) values[k] = load(dtype, data, k);
  return values;
}

Values read_rows(const Problem& p, const void* data, int64_t stride_t, int64_t stride_b,
                 int64_t features) {
  Values values(static_cast<size_t>(row_count(p) * features), 0.0);
  int64_t n = 0;
  for (int64_t t = 0; t < p.T; ++t) {
    for (int64_t b = 0; b < active_rows(p, t); ++b, ++n) {
      const int64_t start = p.batch_sizes ? n * stride_b : t * stride_t + b * stride_b;
      for (int64_t k = 0; data != nullptr && k < features; ++k) {
        values[n * features + k] = load(p.dtype, data, start + k);
      }
    }
  }
  return values;
}

Forward forward(const Problem& p, Scaled scaled) {
  const int64_t rows = row_count(p);
  const Values x = read_rows(p, p.x, p.x_t, p.x_b, p.I);
  Forward result;
  result.y.resize(rows * p.D * p.P);
  result.cells.resize(rows * p.D * p.H);
  for (int32_t d = 0; d < p.D; ++d) {
    const Trace trace = trace_direction(p, read_direction(p, d), x, d, scaled);
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t q = 0; q < p.P; ++q) {
        result.y[(n * p.D + d) * p.P + q] = trace.h[n * p.P + q];
      }
      for (int64_t j = 0; j < p.H; ++j) {
        result.cells[(n * p.D + d) * p.H + j] = trace.c[n * p.H + j];
      }
    }
    result.h_n.insert(result.h_n.end(), trace.h_last.begin(), trace.h_last.end());
    result.c_n.insert(result.c_n.end(), trace.c_last.begin(), trace.c_last.end());
  }
  return result;
}

void Gradient::reset(int64_t count) {
  sum.assign(static_cast<size_t>(count), 0.0);
  squares.assign(static_cast<size_t>(count), 0.0);
}

double Gradient::size() const {
  double largest = 0.0;
  for (size_t k = 0; k < sum.size(); ++k) {
    const double root = std::sqrt(squares[k]);
    if (std::isfinite(sum[k])) largest = std::max(largest, std::fabs(sum[k]));
    if (std::isfinite(root)) largest = std::max(largest, root);
  }
  return largest;
}

const Gradient& Backward::operator[](int k) const {
  if (k < 3) return k == 0 ? dx : k == 1 ? dh0 : dc0;
  const auto& w = weights[(k - 3) / 4];
  const Gradient* all[] = {&w.dw_ih, &w.dw_hh, &w.db, &w.dw_hr};
  return *all[(k - 3) % 4];
}

Backward backward(const Problem& p, const Gradients& incoming) {
  const int64_t rows = row_count(p), B = p.B, H = p.H, P = p.P, I = p.I, D = p.D;
  const Values x = read_rows(p, p.x, p.x_t, p.x_b, I);
  const Values dy = read_rows(p, incoming.dy, incoming.dy_t, incoming.dy_b, D * P);
  const Values dcells = read_rows(p, incoming.dcells, incoming.dcells_t, incoming.dcells_b, D * H);
  const Values dh_n = read_all(p.dtype, incoming.dh_n, D * B * P);
  const Values dc_n = read_all(p.dtype, incoming.dc_n, D * B * H);
  const std::vector<int64_t> offsets = row_offsets(p);
  const Values factors = read_factors(p);
  Backward result;
  result.dx.reset(rows * I);
  // dh0 and dc0 hold the running gradients of each row's h and c, step by step back to the first.
  result.dh0.reset(D * B * P);
  result.dc0.reset(D * B * H);
  result.dh0.sum = dh_n;
  result.dc0.sum = dc_n;
  for (int32_t d = 0; d < D; ++d) {
    const Direction w = read_direction(p, d);
    const Trace trace = trace_direction(p, w, x, d);
    auto& dw = result.weights[d];
    dw.dw_ih.reset(4 * H * I);
    dw.dw_hh.reset(4 * H * P);
    dw.db.reset(4 * H);
    dw.dw_hr.reset(static_cast<int64_t>(w.w_hr.size()));
    for (int64_t step = p.T - 1; step >= 0; --step) {
      const int64_t t = visited(p, d, step);
      for (int64_t b = 0; b < active_rows(p, t); ++b) {
        if (ended(p, t, b)) continue;
        const int64_t n = offsets[t] + b;
        const double* gates = &trace.gates[n * 4 * H];
        const int64_t hb = (d * B + b) * P, cb = (d * B + b) * H;  // where row b's h and c begin
        Values dh(static_cast<size_t>(P)), dh_kept(static_cast<size_t>(P));
        for (int64_t q = 0; q < P; ++q) {
          dh[q] = result.dh0.sum[hb + q] + dy[(n * D + d) * P + q];
          dh_kept[q] = part(share_kept(p, fused_lstm::kKeepH, d, n, q), dh[q]);
          dh[q] -= dh_kept[q];
          result.dh0.sum[hb + q] = result.dh0.squares[hb + q] = 0.0;
        }
        Values dz(static_cast<size_t>(4 * H));  // gradient of the gates before activation
        for (int64_t j = 0; j < H; ++j) {
          const double i = gates[j], f = gates[H + j], g = gates[2 * H + j], o = gates[3 * H + j];
          const double tanh_c = std::tanh(trace.c_cell[n * H + j]);
          const double kept = share_kept(p, fused_lstm::kKeepC, d, n, j);
          double dm = w.w_hr.empty() ? dh[j] : 0.0;
          for (int64_t q = 0; q < P && !w.w_hr.empty(); ++q) {
            dm += w.w_hr[q * H + j] * dh[q];
            dw.dw_hr.add(q * H + j, dh[q] * o * tanh_c);
          }
          const double from_cells = dcells[(n * D + d) * H + j];
          const double from_h = dm * o * (1.0 - tanh_c * tanh_c);
          const double dc_state = result.dc0.sum[cb + j] + from_cells;
          const double dcj = (1.0 - kept) * dc_state + from_h;
          dz[j] = dcj * g * i * (1.0 - i);
          dz[H + j] = dcj * trace.c_prev[n * H + j] * f * (1.0 - f);
          dz[2 * H + j] = dcj * i * (1.0 - g * g);
          dz[3 * H + j] = dm * tanh_c * o * (1.0 - o);
          result.dc0.sum[cb + j] = dcj * f + part(kept, dc_state);
          const double passed = (1.0 - kept) * f + kept;  // the share of dc_state that goes on
          double& squares = result.dc0.squares[cb + j];
          squares = (squares + from_cells * from_cells) * passed * passed + from_h * from_h * f * f;
        }
        for (int64_t r = 0; r < 4 * H; ++r) {
          dw.db.add(r, dz[r]);
          for (int64_t k = 0; k < I; ++k) {
            result.dx.add(n * I + k, dz[r] * w.w_ih[r * I + k]);
            dw.dw_ih.add(r * I + k, dz[r] * x[n * I + k]);
          }
          for (int64_t q = 0; q < P; ++q) {
            const double factor = factors[(d * B + b) * P + q];
            result.dh0.add(hb + q, dz[r] * w.w_hh[r * P + q] * factor);
            dw.dw_hh.add(r * P + q, dz[r] * trace.h_read[n * P + q]);
          }
        }
        for (int64_t q = 0; q < P; ++q) result.dh0.add(hb + q, dh_kept[q]);
        if (!resets(p, t, b)) continue;  // what was before the step had no part in it
        std::fill_n(&result.dh0.sum[hb], P, 0.0);
        std::fill_n(&result.dh0.squares[hb], P, 0.0);
        std::fill_n(&result.dc0.sum[cb], H, 0.0);
        std::fill_n(&result.dc0.squares[cb], H, 0.0);
      }
    }
  }
  return result;
}

}  // namespace reference
