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

}  // namespace fused_lstm
