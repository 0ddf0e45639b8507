"""What every test shares: a seed, and a run that says which kernels it tests.

The extension must be there: a suite that quietly tested PyTorch's own LSTM would prove nothing.
"""

import pytest
import torch

import fused_lstm
from fused_lstm import _extension

# Marked `slow`: `make test-rest` runs them, `make test` does not. They take half as long as all
# others together. Each is a longer twin of one that stays, or is about a tool beside the package.
SLOW = (
    "test_accuracy.py::test_errors_are_at_most_those_of_nn_lstm[T5000B1I1H64-zeros]",
    "test_benchmarks.py::",
    "test_features.py::",
    "test_gpu_benchmarks.py::",
    "test_gpu_check.py::",
    "test_packaging.py::test_import_is_quick",
    "test_packaging.py::test_missing_extension_says_what_why_and_remedy",
    "test_scratch.py::test_fork_while_other_threads_use_the_pool",
    "test_training_data.py::test_slow_download_is_not_stopped_while_it_grows",
    "test_training_data.py::test_torchvision_download_from_a_",
    "test_training_distributed.py::test_two_processes_equal_one[torch]",
    "test_training_distributed.py::test_what_the_user_can_mend_is_said_once",
    "test_training_resume.py::test_resume_after_kill_9_ends_with_the_same_bits[torch]",
    "test_training_resume.py::test_resume_of_a_finished_run_changes_nothing",
    "test_training_run.py::test_leaves_model_plot_and_figures_and_names_the_data_set[torch]",
    "test_training_run.py::test_pixel_orders_train[torch",
    "test_training_run.py::test_progress_bar_shows_loss_accuracy_and_speed",
    "test_training_run.py::test_real_mnist",
    "test_training_run.py::test_without_mnist_the_digits_of_scikit_learn_reach_97_percent[torch]",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what SLOW names, and refuses a name that its file does not hold."""
    files = {item.path.name for item in items}
    names = [item.nodeid.rpartition("tests/")[2] for item in items]
    for start in SLOW:
        for item, name in zip(items, names, strict=True):
            if name.startswith(start):
                item.add_marker("slow")
    whole = not any("::" in argument for argument in config.args)
    stale = [
        start
        for start in SLOW
        if whole
        and start.partition("::")[0] in files
        and not any(n.startswith(start) for n in names)
    ]
    if stale:
        raise pytest.UsageError(f"tests/conftest.py: SLOW names no test: {stale}")


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
