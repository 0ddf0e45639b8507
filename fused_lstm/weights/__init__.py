"""Weights that were learnt elsewhere, as a `fused_lstm.LSTM`, and back.

Each format differs from torch's in the order of its gates, in which way its matrices lie and in
what it does with the bias; one file here is about one of them and names its source. What an LSTM of
torch's kind cannot compute (peepholes, other activations, clipped cells, ...) is refused by name.

None of the frameworks has to be installed for it: arrays are read as they are, by `numpy` or torch.
Only `from_onnx` of a file or a model needs the package onnx.
"""

from .flashrnn import FlashRNNWeights, from_flashrnn, to_flashrnn
from .haste import from_haste, to_haste
from .keras import from_keras, to_keras
from .onnx import OnnxLSTM, from_onnx, to_onnx
from .tf1 import TF1Cell, from_tf1, to_tf1

__all__ = [
    "FlashRNNWeights",
    "OnnxLSTM",
    "TF1Cell",
    "from_flashrnn",
    "from_haste",
    "from_keras",
    "from_onnx",
    "from_tf1",
    "to_flashrnn",
    "to_haste",
    "to_keras",
    "to_onnx",
    "to_tf1",
]
