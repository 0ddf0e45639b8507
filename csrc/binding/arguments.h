// The tensors that an operator was given, on one device and of one dtype: read once, refused where
// a kernel could leave their memory, and copied where it needs them to lie otherwise. call.h and
// recurrence_call.h stand on it.
#pragma once

#include <vector>

#include "place.h"

namespace fused_lstm {

class Arguments {
 public:
  explicit Arguments(const Place& place) : place_(place) {}  // which must outlive it

  // The data of a tensor of exactly these sizes, contiguous; null when there is none.
  const void* contiguous(const char* name, const OptionalTensor& tensor, const char* letters,
                         Sizes sizes);
  const void* contiguous(const char* name, const Tensor& tensor, const char* letters, Sizes sizes);

  // Checks the reserve that forward made and returns its bytes, aligned as forward wrote them: a
  // saved-tensor hook may have moved them to memory with less alignment, and then they are copied.
  const void* aligned_reserve(const Tensor& reserve, size_t bytes, uintptr_t alignment);

 protected:
  View look(const char* name, const Tensor& tensor) const;
  // A [T, B, features] or [N, features] tensor: its data and strides, that of time 0 for the
  // latter. A copy is made only when the features do not lie side by side.
  const void* rows(const View& v, int64_t* t_stride, int64_t* b_stride);
  // The bytes of a uint8 tensor side by side, in the order of its dimensions.
  const uint8_t* bytes(const View& v);
  const void* copied(const View& v);

  const Place& place_;
  int32_t dtype_ = 0;  // torch's, of all tensors that hold numbers

 private:
  std::vector<Tensor> copies_;
};

// Whether the elements lie side by side in the order of the dimensions, or there are none.
bool is_dense(const View& v);

}  // namespace fused_lstm
