// The door to torch (direct.cpp has another, past the dispatcher): names the oldest libtorch that
// this build runs on, gathers the parts of its stable ABI that the binding uses, and adds the few
// helpers that make a tensor pleasant to check. What comes through here is C functions and
// header-only C++, so the built module holds no at:: or c10:: symbol and one build serves every
// torch from that version on.
//
// The version is defined here and not on the compiler's command line, because the pybind11 headers
// that some torch versions carry refuse to be compiled with it.
#pragma once

#define TORCH_TARGET_VERSION ((2ULL << 56) | (11ULL << 48))

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "../kernels/lstm.h"

namespace fused_lstm {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::initializer_list<int64_t>;

// A tensor's facts, read once: each is a call through the C shim.
struct View {
  const char* name;  // the argument it was passed as, for messages
  const Tensor* tensor;
  int32_t dtype;  // torch's code
  int64_t dim;
  const int64_t* sizes;    // [dim], borrowed from the tensor
  const int64_t* strides;  // [dim], borrowed from the tensor, in elements
};

// Throws std::invalid_argument (ValueError in Python): "argument: expected ..., got ...".
[[noreturn]] void reject(const char* name, const std::string& expected, const std::string& got);
// Throws std::runtime_error when a function of the C shim did not succeed.
void check_shim(AOTITorchError code, const char* what);

// A device as torch's C shim numbers it.
struct DeviceId {
  int32_t type;
  int32_t index;  // kNoIndex: the type alone names it, as in "cpu", which is not "cpu:0" everywhere
};
constexpr int32_t kNoIndex = -1;
DeviceId cpu_device();

// Reads a dense tensor on this device; rejects any other.
View view(const char* name, const Tensor& tensor, DeviceId device);
void expect_dtype(const View& view, int32_t dtype);
// `letters` says in the message what the sizes mean, such as "[4H, I]".
void expect_sizes(const View& view, const char* letters, Sizes sizes);
bool has_sizes(const View& view, Sizes sizes);
std::string describe_sizes(const View& view);

// torch's code of a dtype -> ours; nothing when no kernel knows it.
std::optional<DType> kernel_dtype(int32_t torch_dtype);
const char* dtype_name(int32_t torch_dtype);
size_t element_size(DType dtype);
int32_t torch_uint8();
int32_t torch_int8();
int32_t torch_bfloat16();
int32_t torch_int64();

// The first element, to read or to write. Null only for a tensor without elements.
const void* read_data(const Tensor& tensor);
void* write_data(const Tensor& tensor);

// A new contiguous tensor, contents undefined.
Tensor empty(Sizes sizes, int32_t torch_dtype, DeviceId device);

}  // namespace fused_lstm
