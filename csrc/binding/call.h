// What both operators do on every device before and after the kernels: read the arguments, refuse
// everything that could make a kernel read or write outside its memory, fill the Problem of
// csrc/kernels/lstm.h, and allocate the results. What a caller means is checked in Python.
//
// Arguments and results are those of schema.cpp, in its order and with its shapes.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "../kernels/frozen.h"
#include "../kernels/lstm.h"
#include "arguments.h"

namespace fused_lstm {

// The weights of one direction as they were passed, with the names they were passed under.
struct WeightArguments {
  const char *w_ih_name, *w_hh_name, *b_ih_name, *b_hh_name, *w_hr_name;
  const Tensor* w_ih;  // null: there is no such direction
  const Tensor* w_hh;
  const OptionalTensor& b_ih;
  const OptionalTensor& b_hh;
  const OptionalTensor& w_hr;
};
WeightArguments direction0(const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                           const OptionalTensor& b_hh, const OptionalTensor& w_hr);
WeightArguments direction1(const OptionalTensor& w_ih, const OptionalTensor& w_hh,
                           const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                           const OptionalTensor& w_hr);

// The frozen weights of one direction as they were passed, with their names.
struct FrozenArguments {
  const char *panels_name, *scales_name, *bias_name;
  const Tensor* panels;  // null: there is no such direction
  const OptionalTensor& scales;
  const Tensor* bias;
};

// y, h_n, c_n and the reserve.
using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
// y, h_n, c_n, cells and the reserve.
using MarkedResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
// dx, dh0, dc0, then dw_ih, dw_hh, db, dw_hr of each direction.
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                                  Tensor, Tensor, Tensor>;

// Sizes may come from expanded tensors, which are larger than memory: false where a product that a
// kernel forms might leave int64_t.
bool fits_in_memory(const Problem& problem);

// The checked arguments that forward and backward share, as the Problem they make, together with
// the contiguous copies its pointers may point into. The place must outlive it.
class Call : public Arguments {
 public:
  Call(const Place& place, const Tensor& x, const OptionalTensor& batch_sizes,
       const OptionalTensor& h0, const OptionalTensor& c0, const WeightArguments& forward_weights,
       const WeightArguments& reverse_weights);

  // The same from frozen weights, for inference alone; *frozen says where they lie.
  Call(const Place& place, const Tensor& x, const OptionalTensor& batch_sizes,
       const OptionalTensor& h0, const OptionalTensor& c0, int64_t hidden_size,
       const FrozenArguments& forward_weights, const FrozenArguments& reverse_weights,
       Frozen* frozen);

  const Problem& problem() const { return problem_; }

  // What the marked operators take besides, checked, into the problem. cells: those of every step
  // are wanted, or have a gradient.
  void set_options(const OptionalTensor& marks, const OptionalTensor& keep,
                   const OptionalTensor& h_factors, double zoneout_h, double zoneout_c,
                   bool recompute, bool cells);
  // Allocates the cell states of every step, or [0] where they are not wanted.
  Tensor new_cells(bool wanted, Outputs* out);
  void read_cells_gradient(const OptionalTensor& grad_cells, Gradients* g);

  // Allocates y, h_n and c_n, and says in *out where they lie. The reserve is the caller's to add.
  ForwardResult new_outputs(Tensor reserve, Outputs* out) const;

  // Checks y and the gradients that come in, and says in *g where they lie.
  void read_gradients(const Tensor& y, const OptionalTensor& grad_y, const OptionalTensor& grad_h_n,
                      const OptionalTensor& grad_c_n, Gradients* g);

  // Allocates the results of backward that `needs` asks for, bit k for result k, and says in *g
  // where they lie. Another is [0] and its pointer stays null. With B = 0 they are zeros.
  BackwardResult new_gradients(int64_t needs, Gradients* g) const;

 private:
  class Results;

  void set_weight_sizes(const WeightArguments& weights);
  void set_frozen_sizes(const View& x, int64_t hidden_size, const FrozenArguments& weights,
                        Frozen* frozen);
  void set_rows(const View& x, const OptionalTensor& batch_sizes);
  void set_states(const View& x, const OptionalTensor& h0, const OptionalTensor& c0);
  void set_frozen(const FrozenArguments& w, Stored stored, FrozenWeights* out);
  void set_batch_sizes(const View& v);
  void check_extent() const;
  void set_weights(const WeightArguments& w, Weights* out);
  void set_marks(const OptionalTensor& marks);
  void set_zoneout(const OptionalTensor& keep, double h, double c);
  Tensor new_rows(int64_t size) const;
  const void* sequence(const char* name, const Tensor& tensor, const char* letters, int64_t size,
                       int64_t* t_stride, int64_t* b_stride);
  Problem problem_;
  int64_t N_ = 0;
  bool packed_ = false;
  std::vector<int64_t> batch_sizes_;  // a copy of counts that do not lie side by side
};

// Throws when the kernels did not succeed; `reason` says why a launch failed.
void check_status(Status status, const char* op, const std::string& reason);

}  // namespace fused_lstm
