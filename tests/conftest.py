"""What every test shares: a seed, and a run that says which kernels it tests.

The extension must be there: a suite that quietly tested PyTorch's own LSTM would prove nothing.
"""

import pytest
import torch

import fused_lstm
from fused_lstm import _extension


def pytest_report_header() -> list[str]:
    """The lines at the top of a run; raises where the extension is missing."""
    extension = _extension.require()
    return [
        f"fused_lstm {fused_lstm.__version__}: {extension.build_info()['compiler']}, "
        f"instruction set {extension.isa()}",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads",
    ]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
