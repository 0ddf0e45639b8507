// One LSTM cell, forward and backward: the only place where the formula stands. Number is a float,
// a double or a vector of them; the functions it calls are found beside it.
//
//   i = sigmoid(zi)  f = sigmoid(zf)  g = tanh(zg)  o = sigmoid(zo)
//   c = f * c_prev + i * g
//   h = o * tanh(c), or with a projection h = W_hr (o * tanh(c))
//
// Source: Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000), in the form
// and gate order of torch.nn.LSTM.
#pragma once

#if defined(__CUDACC__)
#define FUSED_LSTM_CELL __host__ __device__ __forceinline__
#else
#define FUSED_LSTM_CELL inline __attribute__((always_inline))
#endif

namespace fused_lstm {

template <class Number>
struct Gates {
  Number i, f, g, o;
};

// What a cell hands on before any projection, from its output gate and its state.
template <class Number>
FUSED_LSTM_CELL Number cell_output(const Number& o, const Number& c) {
  return o * tanh(c);
}

// The state after a step, from the step's activated gates.
template <class Number>
FUSED_LSTM_CELL Number cell_state(const Gates<Number>& gate, const Number& c_prev) {
  return fma(gate.f, c_prev, gate.i * gate.g);
}

// Activated gates in place of the pre-activations z.
template <class Number>
FUSED_LSTM_CELL void activate(Gates<Number>& z) {
  z.i = sigmoid(z.i);
  z.f = sigmoid(z.f);
  z.g = tanh(z.g);
  z.o = sigmoid(z.o);
}

// Pre-activations z and the previous cell state -> c, h, and activated gates in place of z.
template <class Number>
FUSED_LSTM_CELL void cell_forward(Gates<Number>& z, const Number& c_prev, Number& c, Number& h) {
  activate(z);
  c = cell_state(z, c_prev);
  h = cell_output(z.o, c);
}

// dh: gradient of h. dc: gradient of c from later steps on entry, of c_prev on return.
// Returns the gradients of the four pre-activations.
template <class Number>
FUSED_LSTM_CELL Gates<Number> cell_backward(const Gates<Number>& gate, const Number& c_prev,
                                            const Number& c, const Number& dh, Number& dc) {
  const Number tanh_c = tanh(c);
  const Number dh_o = dh * gate.o;
  const Number dc_all = fma(dh_o, one_minus_square(tanh_c), dc);
  Gates<Number> dz;
  dz.o = dh_o * tanh_c * one_minus(gate.o);
  const Number dc_i = dc_all * gate.i;
  dz.i = dc_i * gate.g * one_minus(gate.i);
  dz.g = dc_i * one_minus_square(gate.g);
  dc = dc_all * gate.f;
  dz.f = dc * c_prev * one_minus(gate.f);
  return dz;
}

// The variants of the cell. Between its two halves the state may be normalised: s is c, or
// gain * normalised(c) + bias.
//
//   i = sigmoid(zi + p_i c_prev)  f = sigmoid(zf + p_f c_prev), or 1 - i  g = tanh(zg)
//   c = clip(f * c_prev + i * g)  o = sigmoid(zo + p_o c)
//   h = clip(o * tanh(s))
//
// Sources: peepholes p by Gers & Schmidhuber (2000) in the form of Graves, arXiv:1308.0850; f = 1 -
// i (CIFG) by Greff et al., arXiv:1503.04069; LayerNorm by Ba et al., arXiv:1607.06450; the order
// of clipping and peepholes is that of TensorFlow's LSTMCell.
template <class Number>
struct CellVariant {
  bool coupled = false, peepholes = false, clips_cell = false, clips_hidden = false;
  Number p_i, p_f, p_o;           // where there are peepholes; p_f not where coupled
  Number cell_clip, hidden_clip;  // where it clips
};

template <class Number>
FUSED_LSTM_CELL Number clipped(const Number& x, const Number& limit) {
  return with_sign_of(x, vmin(limit, absolute(x)));
}

// The first half: z and c_prev -> c, and activated gates in place of z.
template <class Number>
FUSED_LSTM_CELL void variant_state(Gates<Number>& z, const Number& c_prev,
                                   const CellVariant<Number>& v, Number& c) {
  if (v.peepholes) {
    z.i = fma(v.p_i, c_prev, z.i);
    if (!v.coupled) z.f = fma(v.p_f, c_prev, z.f);
  }
  z.i = sigmoid(z.i);
  if (v.coupled) {
    z.f = one_minus(z.i);
  } else {
    z.f = sigmoid(z.f);
  }
  z.g = tanh(z.g);
  c = cell_state(z, c_prev);
  if (v.clips_cell) c = clipped(c, v.cell_clip);
  if (v.peepholes) z.o = fma(v.p_o, c, z.o);
  z.o = sigmoid(z.o);
}

// The second half: h.
template <class Number>
FUSED_LSTM_CELL Number variant_output(const Number& o, const Number& s,
                                      const CellVariant<Number>& v) {
  const Number h = cell_output(o, s);
  return v.clips_hidden ? clipped(h, v.hidden_clip) : h;
}

// dh: gradient of h -> gradient of o's pre-activation, and of s by return.
template <class Number>
FUSED_LSTM_CELL Number variant_output_backward(const Number& o, const Number& s, Number dh,
                                               const CellVariant<Number>& v, Number& dz_o) {
  const Number tanh_s = tanh(s);
  if (v.clips_hidden) dh = within(o * tanh_s, v.hidden_clip, dh);
  const Number dh_o = dh * o;
  dz_o = dh_o * tanh_s * one_minus(o);
  return dh_o * one_minus_square(tanh_s);
}

// dc: gradient of c from h and from later steps on entry, of c_prev on return. Returns the
// gradients of the pre-activations, of which dz_o is known already.
template <class Number>
FUSED_LSTM_CELL Gates<Number> variant_state_backward(const Gates<Number>& gate,
                                                     const Number& c_prev, const Number& dz_o,
                                                     const CellVariant<Number>& v, Number& dc) {
  Gates<Number> dz;
  dz.o = dz_o;
  if (v.peepholes) dc = fma(v.p_o, dz_o, dc);
  if (v.clips_cell) dc = within(cell_state(gate, c_prev), v.cell_clip, dc);
  const Number dc_i = dc * gate.i;
  dz.g = dc_i * one_minus_square(gate.g);
  if (v.coupled) {
    dz.i = dc_i * (gate.g - c_prev) * one_minus(gate.i);
    dz.f = dz.i;
    dc = dc * gate.f;
  } else {
    dz.i = dc_i * gate.g * one_minus(gate.i);
    dc = dc * gate.f;
    dz.f = dc * c_prev * one_minus(gate.f);
  }
  if (v.peepholes) {
    dc = fma(v.p_i, dz.i, dc);
    if (!v.coupled) dc = fma(v.p_f, dz.f, dc);
  }
  return dz;
}

}  // namespace fused_lstm
