// Inference past torch's dispatcher, which takes longer than a step of a small LSTM.
#pragma once

#include <Python.h>

namespace fused_lstm {

// The Python function that direct.cpp describes, connected to what it needs of torch: the capsule
// Tensor.__dlpack_c_exchange_api__, the types Tensor and Parameter, torch.empty, and a tuple of
// torch's dtypes in the order of DType. A new reference, or null with a Python error set. To be
// called once.
PyObject* connect_direct(PyObject* exchange, PyObject* tensor, PyObject* parameter, PyObject* empty,
                         PyObject* dtypes);

}  // namespace fused_lstm
