"""What every test shares: a seed, and a run that says which kernels it tests.

The extension must be there: a suite that quietly tested PyTorch's own LSTM would prove nothing.
"""

import pytest
import torch

import fused_lstm
from fused_lstm import _extension


def pytest_configure(config: pytest.Config) -> None:
    """Ends the run with one clear line where the extension is missing."""
    if not _extension.available:
        raise pytest.UsageError(_extension.why_missing)


def pytest_report_header() -> list[str]:
    """What is tested, at the top of a run."""
    extension = _extension.require()
    return [
        f"fused_lstm {fused_lstm.__version__}: {extension.build_info()['compiler']}, "
        f"instruction set {extension.isa()}",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads",
    ]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
