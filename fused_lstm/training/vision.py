"""Gets torchvision's MNIST class, also from a torchvision that was built for another torch.

Such a torchvision finds none of its compiled operators and stops while importing, because it
describes two operators that were never declared. Its data sets need neither, so declaring them is
enough.
"""

import importlib
import sys
import warnings

import torch

from fused_lstm.training import TrainingError

__all__ = ["import_mnist"]

_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def import_mnist() -> type:
    """The class `torchvision.datasets.MNIST`.

    Raises:
        TrainingError: torchvision is missing or cannot be imported, with the line that installs a
            pair of torch and torchvision that fit each other.
    """
    try:
        return _import()
    except ImportError as error:
        raise TrainingError(f"torchvision cannot be imported ({error}); {_remedy()}") from error
    except Exception as error:  # a torchvision for another torch raises various things
        if "operator torchvision::" not in str(error):
            raise TrainingError(f"torchvision cannot be imported ({error}); {_remedy()}") from error
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator, signature in _SCHEMAS.items():
        torch.library.define(operator, signature)
    try:
        return _import()
    except Exception as error:
        raise TrainingError(f"torchvision cannot be imported ({error}); {_remedy()}") from error


def _import() -> type:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its image decoder, not needed here, may be missing too
        return importlib.import_module("torchvision.datasets").MNIST


def _remedy() -> str:
    """How to install the torchvision that fits: torch 2.N goes with torchvision 0.(N + 15)."""
    major, minor = torch.__version__.split(".")[:2]
    wanted = f'"torchvision==0.{int(minor) + 15}.*"' if major == "2" else "torchvision"
    return (
        f"install the one that fits torch {torch.__version__}, from the index that torch came from:"
        f" python -m pip install --force-reinstall --no-deps {wanted}"
    )
