// direct(x, hx, weights, num_layers, flags): all layers of nn.LSTM, or one step of nn.LSTMCell,
// from Python objects to the kernels and back; weights in a list as the module has them, or frozen
// in a tuple. Tensors are read through DLPack's C exchange API, which torch offers from 2.11 on,
// and results are made by torch.empty.
//
// It refuses nothing and guesses nothing: whatever is not a dense tensor of the right type, place
// and sizes makes it return None, and the caller goes the long way, through the operators, where
// arguments are looked at one by one. Whether anybody watches the call (autograd, a mode, a
// transform, a profiler) is for the caller to ask: see direct.py.
#include "direct.h"

#include <ATen/dlpack.h>  // before stable.h, which says which torch it is for

#include <algorithm>
#include <exception>
#include <vector>

#include "run_cpu.h"

namespace fused_lstm {
namespace {

// What `flags` says of the call; direct.py has the same.
constexpr int64_t kBiases = 1, kReverse = 2, kProjected = 4, kBatchFirst = 8, kCell = 16,
                  kFrozen = 32;

struct Torch {
  DLPackDLTensorFromPyObjectNoSync look = nullptr;
  PyTypeObject *tensor = nullptr, *parameter = nullptr;
  PyObject* empty = nullptr;
  PyObject* dtypes[4] = {};
  PyObject *dtype_name = nullptr, *is_neg = nullptr, *transpose = nullptr, *zero = nullptr,
           *one = nullptr;
};
Torch torch_parts;  // set once, under the interpreter's lock

// Up to four sizes, kept: an initializer_list does not outlive its statement.
struct Dims {
  int64_t sizes[4];
  int32_t count;

  Dims(Sizes from) : sizes{}, count(static_cast<int32_t>(from.size())) {
    std::copy(from.begin(), from.end(), sizes);
  }
};

class Owned {
 public:
  explicit Owned(PyObject* object = nullptr) : object_(object) {}
  ~Owned() { Py_XDECREF(object_); }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  void reset(PyObject* object) {
    Py_XDECREF(object_);
    object_ = object;
  }
  PyObject* get() const { return object_; }
  PyObject* release() {
    PyObject* const object = object_;
    object_ = nullptr;
    return object;
  }

 private:
  PyObject* object_;
};

std::optional<DType> dtype_of(DLDataType type) {
  if (type.lanes != 1) return std::nullopt;
  if (type.code == kDLFloat && type.bits == 32) return DType::kFloat32;
  if (type.code == kDLFloat && type.bits == 64) return DType::kFloat64;
  if (type.code == kDLBfloat && type.bits == 16) return DType::kBFloat16;
  if (type.code == kDLFloat && type.bits == 16) return DType::kFloat16;
  return std::nullopt;
}

// A tensor whose memory holds its values; false for all else, with no error set.
bool look(PyObject* object, DLTensor* t) {
  const PyTypeObject* const type = Py_TYPE(object);
  if (type != torch_parts.tensor && type != torch_parts.parameter) return false;
  // A view whose values are the negative of what lies there, as the imaginary part of a conjugate.
  const Owned negative(PyObject_CallMethodNoArgs(object, torch_parts.is_neg));
  if (negative.get() != Py_False || torch_parts.look(object, t) != 0) {
    PyErr_Clear();
    return false;
  }
  return t->device.device_type == kDLCPU && t->data != nullptr && t->byte_offset == 0;
}

bool is_contiguous(const DLTensor& t) {
  int64_t stride = 1;
  for (int32_t k = t.ndim; k-- > 0;) {
    if (t.shape[k] != 1 && t.strides[k] != stride) return false;
    stride *= t.shape[k];
  }
  return true;
}

bool has_sizes(const DLTensor& t, const Dims& dims) {
  return t.ndim == dims.count && std::equal(t.shape, t.shape + t.ndim, dims.sizes);
}

class DirectCall {
 public:
  // Reads and checks everything; false: the long way.
  bool read(PyObject* x, PyObject* hx, PyObject* weights, int64_t layers, int64_t flags) {
    flags_ = flags;
    D_ = has(kReverse) ? 2 : 1;
    if (has(kCell) && (has(kReverse) || has(kFrozen) || layers != 1)) return false;
    return read_x(x) && (has(kFrozen) ? read_frozen(weights) : read_weights(weights, layers)) &&
           read_state(hx);
  }

  bool allocate() {
    const int64_t rows = static_cast<int64_t>(problems_.size()) * D_;
    if (has(kCell)) {
      return make({{B_, P_}}, &h_n_, &h_data_) && make({{B_, H_}}, &c_n_, &c_data_);
    }
    const Dims y = has_rows_ ? Dims{{T_, B_, D_ * P_}} : Dims{{T_, D_ * P_}};
    const Dims h = has_rows_ ? Dims{{rows, B_, P_}} : Dims{{rows, P_}};
    const Dims c = has_rows_ ? Dims{{rows, B_, H_}} : Dims{{rows, H_}};
    return make(y, &y_, &y_data_) && make(h, &h_n_, &h_data_) && make(c, &c_n_, &c_data_);
  }

  // Needs no Python; throws what the operators throw.
  void run() {
    const size_t element = element_size(dtype_), count = problems_.size();
    const size_t y_bytes = static_cast<size_t>(T_ * B_ * D_ * P_) * element;
    const size_t h_bytes = static_cast<size_t>(D_ * B_ * P_) * element;
    const size_t c_bytes = static_cast<size_t>(D_ * B_ * H_) * element;
    // y of all layers but the last, in turns; of a cell, whose y is h, of all.
    const size_t between = has(kCell) ? 1 : count > 2 ? 2 : count - 1;
    const size_t apart = (y_bytes + 63) / 64 * 64;
    const scratch::Buffer buffer(between * apart);
    if (y_data_ != nullptr) scratch::prefer_large_pages(y_data_, y_bytes);
    for (size_t layer = 0; layer < count; ++layer) {
      Problem& p = problems_[layer];
      Outputs out;
      const bool last = layer + 1 == count && !has(kCell);
      out.y = last ? y_data_ : static_cast<char*>(buffer.data()) + layer % 2 * apart;
      out.y_t = B_ * D_ * P_;
      out.y_b = D_ * P_;
      out.h_n = static_cast<char*>(h_data_) + layer * h_bytes;
      out.c_n = static_cast<char*>(c_data_) + layer * c_bytes;
      if (has(kFrozen)) {
        run_frozen(p, frozen_[layer], out, "frozen_forward");
      } else {
        run_forward(p, out, "forward");
      }
      if (layer + 1 < count) problems_[layer + 1].x = out.y;
    }
  }

  // (y, (h_n, c_n)), of a cell (h, c).
  PyObject* results() {
    Owned state(PyTuple_Pack(2, h_n_.get(), c_n_.get()));
    if (state.get() == nullptr || has(kCell)) return state.release();
    if (has(kBatchFirst) && has_rows_) {
      PyObject* const arguments[] = {y_.get(), torch_parts.zero, torch_parts.one};
      y_.reset(PyObject_VectorcallMethod(torch_parts.transpose, arguments, 3, nullptr));
      if (y_.get() == nullptr) return nullptr;
    }
    return PyTuple_Pack(2, y_.get(), state.get());
  }

 private:
  bool has(int64_t flag) const { return (flags_ & flag) != 0; }

  bool read_x(PyObject* object) {
    DLTensor x;
    if (!look(object, &x)) return false;
    const std::optional<DType> dtype = dtype_of(x.dtype);
    if (!dtype) return false;
    dtype_ = *dtype;
    const int32_t last = x.ndim - 1, steps = has(kCell) ? 0 : 1;
    has_rows_ = last == steps + 1;
    if (last != steps && !has_rows_) return false;
    if (has(kCell) && !has_rows_) return false;
    const bool swapped = has(kBatchFirst) && has_rows_;
    const int32_t t_dim = swapped ? 1 : 0, b_dim = has(kCell) || swapped ? 0 : 1;
    if (steps != 0) {
      T_ = x.shape[t_dim];
      x_t_ = x.strides[t_dim];
    }
    if (has_rows_) {
      B_ = x.shape[b_dim];
      x_b_ = x.strides[b_dim];
    }
    I_ = x.shape[last];
    x_ = x.data;
    return T_ > 0 && B_ > 0 && I_ > 0 && (I_ == 1 || x.strides[last] == 1);
  }

  bool read_weights(PyObject* weights, int64_t layers) {
    if (!PyList_CheckExact(weights) || layers < 1) return false;
    const int64_t count = PyList_GET_SIZE(weights);
    const int64_t each = 2 + (has(kBiases) ? 2 : 0) + (has(kProjected) ? 1 : 0);
    if (layers > count || count != layers * D_ * each) return false;
    PyObject** next = PySequence_Fast_ITEMS(weights);
    problems_.resize(static_cast<size_t>(layers));
    for (int64_t layer = 0; layer < layers; ++layer) {
      Problem& p = problems_[static_cast<size_t>(layer)];
      for (int64_t d = 0; d < D_; ++d, next += each) {
        if (layer == 0 && d == 0 && !read_sizes(next, each)) return false;
        if (!read_direction(next, layer == 0 ? I_ : D_ * P_, &p.weights[d])) return false;
      }
      if (!set_sizes(p, layer)) return false;
    }
    return true;
  }

  bool set_sizes(Problem& p, int64_t layer) const {
    p.dtype = dtype_;
    p.T = T_, p.B = B_, p.I = layer == 0 ? I_ : D_ * P_, p.H = H_, p.P = P_;
    p.D = static_cast<int32_t>(D_);
    p.x = x_;  // of later layers: set by run()
    p.x_t = layer == 0 ? x_t_ : B_ * D_ * P_;
    p.x_b = layer == 0 ? x_b_ : D_ * P_;
    return fits_in_memory(p);
  }

  // (hidden_size, then for each layer panels, scales and bias of both directions)
  bool read_frozen(PyObject* packed) {
    if (dtype_ != DType::kFloat32 || !PyTuple_CheckExact(packed)) return false;
    const int64_t layers = PyTuple_GET_SIZE(packed) - 1;
    if (layers < 1 || !PyLong_CheckExact(PyTuple_GET_ITEM(packed, 0))) return false;
    H_ = P_ = PyLong_AsLongLong(PyTuple_GET_ITEM(packed, 0));
    if (H_ < 1 || H_ >= int64_t{1} << 40) {
      PyErr_Clear();
      return false;
    }
    problems_.resize(static_cast<size_t>(layers));
    frozen_.resize(static_cast<size_t>(layers));
    for (int64_t layer = 0; layer < layers; ++layer) {
      PyObject* const own = PyTuple_GET_ITEM(packed, layer + 1);
      if (!PyTuple_CheckExact(own) || PyTuple_GET_SIZE(own) != 6) return false;
      if (!set_sizes(problems_[static_cast<size_t>(layer)], layer)) return false;
      for (int64_t d = 0; d < D_; ++d) {
        if (!read_panels(PySequence_Fast_ITEMS(own) + 3 * d, problems_[layer].I, d,
                         &frozen_[static_cast<size_t>(layer)])) {
          return false;
        }
      }
    }
    return true;
  }

  bool read_panels(PyObject* const* own, int64_t features, int64_t d, Frozen* frozen) const {
    DLTensor panels;
    if (!look(own[0], &panels) || panels.dtype.lanes != 1) return false;
    const DLDataType type = panels.dtype;
    if (type.code == kDLInt && type.bits == 8) {
      frozen->stored = Stored::kInt8;
    } else if (dtype_of(type) == DType::kBFloat16) {
      frozen->stored = Stored::kBFloat16;
    } else if (dtype_of(type) == DType::kFloat32) {
      frozen->stored = Stored::kFloat32;
    } else {
      return false;
    }
    const int64_t count = (H_ + kFrozenUnits - 1) / kFrozenUnits;
    const int64_t rows = frozen_rows(frozen->stored, features) + frozen_rows(frozen->stored, H_);
    if (!has_sizes(panels, {{count, rows, 4, kFrozenUnits}}) || !is_contiguous(panels)) {
      return false;
    }
    FrozenWeights& weights = frozen->weights[d];
    weights.panels = panels.data;
    const void *scales = nullptr, *bias = nullptr;
    if ((own[1] != Py_None) != (frozen->stored == Stored::kInt8)) return false;
    if (own[1] != Py_None && !read(own[1], {{2, count, 4, kFrozenUnits}}, &scales)) return false;
    if (!read(own[2], {{count, 4, kFrozenUnits}}, &bias)) return false;
    weights.scales = static_cast<const float*>(scales);
    weights.bias = static_cast<const float*>(bias);
    return true;
  }

  bool read_sizes(PyObject* const* weights, int64_t each) {
    DLTensor first, last;
    if (!look(weights[0], &first) || first.ndim != 2) return false;
    H_ = P_ = first.shape[0] / 4;
    if (!has(kProjected)) return H_ > 0;
    if (!look(weights[each - 1], &last) || last.ndim != 2) return false;
    P_ = last.shape[0];
    return H_ > 0 && P_ > 0;
  }

  bool read_direction(PyObject* const* weights, int64_t features, Weights* out) {
    const bool biases = has(kBiases);
    if (!read(weights[0], {{4 * H_, features}}, &out->w_ih)) return false;
    if (!read(weights[1], {{4 * H_, P_}}, &out->w_hh)) return false;
    if (biases && !read(weights[2], {{4 * H_}}, &out->b_ih)) return false;
    if (biases && !read(weights[3], {{4 * H_}}, &out->b_hh)) return false;
    return !has(kProjected) || read(weights[biases ? 4 : 2], {{P_, H_}}, &out->w_hr);
  }

  bool read_state(PyObject* hx) {
    if (hx == Py_None) return true;
    if (!PyTuple_CheckExact(hx) || PyTuple_GET_SIZE(hx) != 2) return false;
    const int64_t layers = static_cast<int64_t>(problems_.size()), rows = layers * D_;
    const void* states[2] = {};
    for (int k = 0; k < 2; ++k) {
      const int64_t width = k == 0 ? P_ : H_;
      const Dims sizes = has(kCell)  ? Dims{{B_, width}}
                         : has_rows_ ? Dims{{rows, B_, width}}
                                     : Dims{{rows, width}};
      if (!read(PyTuple_GET_ITEM(hx, k), sizes, &states[k])) return false;
    }
    const size_t element = element_size(dtype_);
    for (size_t layer = 0; layer < problems_.size(); ++layer) {
      const size_t before = layer * static_cast<size_t>(D_ * B_) * element;
      problems_[layer].h0 = static_cast<const char*>(states[0]) + before * static_cast<size_t>(P_);
      problems_[layer].c0 = static_cast<const char*>(states[1]) + before * static_cast<size_t>(H_);
    }
    return true;
  }

  bool read(PyObject* object, const Dims& sizes, const void** data) const {
    DLTensor t;
    if (!look(object, &t) || dtype_of(t.dtype) != dtype_) return false;
    *data = t.data;
    return has_sizes(t, sizes) && is_contiguous(t);
  }

  bool make(const Dims& dims, Owned* result, void** data) const {
    PyObject* arguments[4] = {};
    const size_t count = static_cast<size_t>(dims.count);
    bool made = true;
    for (size_t k = 0; k < count; ++k) {
      arguments[k] = PyLong_FromLongLong(dims.sizes[k]);
      made = made && arguments[k] != nullptr;
    }
    // Naming a dtype takes torch as long again as making the tensor, so that its default goes
    // without a name. If that is another one, the check below finds out.
    const bool named = dtype_ != DType::kFloat32;
    if (named) arguments[count] = torch_parts.dtypes[static_cast<int32_t>(dtype_)];
    if (made) {
      result->reset(PyObject_Vectorcall(torch_parts.empty, arguments, count,
                                        named ? torch_parts.dtype_name : nullptr));
    }
    for (size_t k = 0; k < count; ++k) Py_XDECREF(arguments[k]);
    if (result->get() == nullptr) {
      PyErr_Clear();  // the long way runs out of memory too, and says so
      return false;
    }
    const void* where = nullptr;
    if (!read(result->get(), dims, &where)) return false;
    *data = const_cast<void*>(where);
    return true;
  }

  int64_t flags_ = 0, T_ = 1, B_ = 1, I_ = 0, H_ = 0, P_ = 0, D_ = 1, x_t_ = 0, x_b_ = 0;
  bool has_rows_ = false;  // x is [T, B, I] and not [T, I]
  DType dtype_ = DType::kFloat32;
  const void* x_ = nullptr;
  std::vector<Problem> problems_;  // one for each layer
  std::vector<Frozen> frozen_;     // likewise
  Owned y_, h_n_, c_n_;
  void *y_data_ = nullptr, *h_data_ = nullptr, *c_data_ = nullptr;
};

PyObject* direct(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 5) {
    PyErr_Format(PyExc_TypeError, "direct: expected 5 arguments, got %zd", count);
    return nullptr;
  }
  const int64_t layers = PyLong_AsLongLong(arguments[3]), flags = PyLong_AsLongLong(arguments[4]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  try {
    DirectCall call;
    if (!call.read(arguments[0], arguments[1], arguments[2], layers, flags)) Py_RETURN_NONE;
    if (!call.allocate()) Py_RETURN_NONE;
    std::exception_ptr failure;
    PyThreadState* const state = PyEval_SaveThread();
    try {
      call.run();
    } catch (...) {
      failure = std::current_exception();
    }
    PyEval_RestoreThread(state);
    if (failure) std::rethrow_exception(failure);
    return call.results();
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyMethodDef direct_method = {
    "direct", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(direct)), METH_FASTCALL,
    "direct(x, hx, weights, num_layers, flags): inference past the dispatcher, or None."};

}  // namespace

PyObject* connect_direct(PyObject* exchange, PyObject* tensor, PyObject* parameter, PyObject* empty,
                         PyObject* dtypes) {
  constexpr const char* kName = "dlpack_exchange_api";
  const bool valid = PyCapsule_IsValid(exchange, kName) != 0;
  const auto* const api = static_cast<const DLPackExchangeAPI*>(
      valid ? PyCapsule_GetPointer(exchange, kName) : nullptr);
  if (api == nullptr || api->header.version.major != DLPACK_MAJOR_VERSION ||
      api->dltensor_from_py_object_no_sync == nullptr || !PyType_Check(tensor) ||
      !PyType_Check(parameter) || !PyTuple_Check(dtypes) || PyTuple_GET_SIZE(dtypes) != 4) {
    PyErr_SetString(PyExc_TypeError, "connect_direct: torch's parts are not as they were in 2.11");
    return nullptr;
  }
  Torch& parts = torch_parts;
  parts.look = api->dltensor_from_py_object_no_sync;
  parts.tensor = reinterpret_cast<PyTypeObject*>(Py_NewRef(tensor));
  parts.parameter = reinterpret_cast<PyTypeObject*>(Py_NewRef(parameter));
  parts.empty = Py_NewRef(empty);
  for (int k = 0; k < 4; ++k) parts.dtypes[k] = Py_NewRef(PyTuple_GET_ITEM(dtypes, k));
  parts.dtype_name = Py_BuildValue("(s)", "dtype");
  parts.is_neg = PyUnicode_InternFromString("is_neg");
  parts.transpose = PyUnicode_InternFromString("transpose");
  parts.zero = PyLong_FromLong(0);
  parts.one = PyLong_FromLong(1);
  if (PyErr_Occurred() != nullptr) return nullptr;
  return PyCFunction_NewEx(&direct_method, nullptr, nullptr);
}

}  // namespace fused_lstm
