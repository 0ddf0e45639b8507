// One call of the recurrence alone (csrc/kernels/recurrence.h) from the tensors of its operators:
// what they do alike on every device. What could make a kernel leave its memory is refused here.
// Arguments and results are those of schema.cpp, in its order and with its shapes.
#pragma once

#include <tuple>

#include "../kernels/recurrence.h"
#include "arguments.h"

namespace fused_lstm {

// y, h_n, c_n and the reserve.
using RecurrenceResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
// dzx, dzh, dh0, dc0, dpeepholes, dln_hh, dln_c, dln_c_bias.
using RecurrenceGradientsResult =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

class RecurrenceCall : public Arguments {
 public:
  RecurrenceCall(const Place& place, const Tensor& zx, const OptionalTensor& h0,
                 const OptionalTensor& c0, const Tensor& w_hh, const OptionalTensor& peepholes,
                 const OptionalTensor& ln_hh, const OptionalTensor& ln_c,
                 const OptionalTensor& ln_c_bias, bool reverse, double cell_clip,
                 double hidden_clip);
  const Recurrence& recurrence() const { return q_; }

  // The tensors of a forward call, with their addresses in *outputs.
  RecurrenceResult new_outputs(Tensor reserve, RecurrenceOutputs* outputs) const;
  void read_gradients(const OptionalTensor& grad_y, const OptionalTensor& grad_h_n,
                      const OptionalTensor& grad_c_n, RecurrenceGradients* gradients);
  // The tensors of a backward call, likewise; zeros already where there are no rows.
  RecurrenceGradientsResult new_gradients(RecurrenceGradients* gradients) const;

 private:
  Tensor result(Sizes sizes, void** data) const;
  Tensor gradient_of(bool given, Sizes sizes, void** data) const;
  Tensor none() const { return place_.empty({0}, dtype_); }
  size_t bytes_of(Sizes sizes) const;

  Recurrence q_;
  bool has_h0_ = false, has_c0_ = false;  // also where they have no rows, and so no memory
};

}  // namespace fused_lstm
