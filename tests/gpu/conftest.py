"""The GPU tests' device, and the count that keeps them honest.

    make gpu-check STAGES="build tests"    on the GPU, each file in a process of its own
    FUSED_LSTM_CUDA_KERNELS=1 pytest tests/gpu
                                           without a GPU every case is skipped and says why
    pytest tests/gpu --device cpu          the tests' own logic against the CPU kernels
                                           (or FUSED_LSTM_TEST_DEVICE=cpu)

Not part of `make test`. A case counts as executed only if our operator computed on the device
under test, so that torch's own LSTM answering in our place is a failure and no success. With
--require-gpu a run that executed no case on a GPU ends with code 3; --gpu-report writes the counts.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, absent, cuda_kernels, forced

from fused_lstm import _extension, ops

EXIT_NO_GPU_CASE = 3

_executed: Counter[str] = Counter()  # outcomes of cases in which our kernels computed
_skipped: Counter[str] = Counter()  # reasons


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fused_lstm on the GPU")
    default = os.environ.get("FUSED_LSTM_TEST_DEVICE", "cuda")
    group.addoption("--device", choices=("cuda", "cpu"), default=default)
    group.addoption("--require-gpu", action="store_true", help="no executed GPU case: exit code 3")
    group.addoption("--gpu-report", type=Path, help="counts of cases, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "no_kernel: our operator need not compute in this case")
    config.addinivalue_line("markers", "cuda_only(reason): cannot be tried on the CPU")


def pytest_report_header(config: pytest.Config) -> str:
    obstacle = why_no_gpu()
    if config.getoption("--device") == "cpu":
        return "GPU tests: their logic only, on the CPU kernels; this says nothing of a GPU"
    return f"GPU tests: {obstacle or torch.cuda.get_device_name()}"


def why_no_gpu() -> str:
    """Why the GPU tests cannot run here, empty where they can."""
    if not torch.cuda.is_available():
        built = (
            f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        )
        return f"no usable GPU: torch {torch.__version__}, {built}, sees no device"
    return _extension.cuda_obstacle(torch.cuda.current_device()) or ""


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """Where the kernels under test compute."""
    kind = pytestconfig.getoption("--device")
    if kind == "cuda" and (reason := why_no_gpu()):
        pytest.skip(reason)
    return torch.device(kind)


class Kernels:
    """Counts the calls of our operators on the device under test."""

    def __init__(self) -> None:
        self.forward = self.backward = 0


@pytest.fixture(autouse=True)
def kernels(
    request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kernels]:
    """Watches the operators; a case that never reached them on the device fails."""
    counts = Kernels()
    marker = request.node.get_closest_marker("cuda_only")
    if marker is not None and device.type != "cuda":
        pytest.skip(f"CUDA only: {marker.kwargs.get('reason') or marker.args[0]}")

    def watch(name: str, counted: str, x_at: int) -> None:
        operator = getattr(ops, name)

        def call(*arguments: Any) -> Any:
            if arguments[x_at].device.type == device.type:
                setattr(counts, counted, getattr(counts, counted) + 1)
            return operator(*arguments)

        monkeypatch.setattr(ops, name, call)

    watch("_forward", "forward", 0)
    watch("_backward", "backward", 3)
    watch("_marked_forward", "forward", 0)
    watch("_marked_backward", "backward", 4)
    watch("_recurrence_forward", "forward", 0)
    watch("_recurrence_backward", "backward", 3)
    yield counts
    passed = getattr(request.node, "call_outcome", "") == "passed"
    computed = counts.forward + counts.backward > 0
    if passed and not computed and not request.node.get_closest_marker("no_kernel"):
        pytest.fail("our operator never computed here: torch's own LSTM, or nothing, was tested")
    request.node.user_properties.append(("kernel_calls", counts.forward + counts.backward))


@pytest.fixture(params=["chosen", *FAMILIES])
def family(request: pytest.FixtureRequest, device: torch.device) -> Iterator[str]:
    """The plan's own choice, then each family of CUDA kernels forced."""
    if request.param == "chosen":
        yield "chosen"
        return
    if device.type != "cuda":
        pytest.skip("CUDA only: kernel families")
    if why := absent(request.param):
        pytest.skip(why)
    with forced(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _clean(device: torch.device) -> Iterator[None]:
    """A failing case leaves neither a forced family nor an error on the device to the next."""
    yield
    if device.type == "cuda":
        cuda_kernels().force_family(None)
        torch.cuda.synchronize()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        _skipped[report.longrepr[2].removeprefix("Skipped: ")] += 1
    if report.when == "teardown":
        calls = dict(item.user_properties).get("kernel_calls", 0)
        if calls and getattr(item, "call_outcome", "") == "passed" and report.passed:
            _executed["passed"] += 1
        elif calls and getattr(item, "call_outcome", "") != "skipped":
            _executed["failed"] += 1
    elif report.when == "call":
        item.call_outcome = report.outcome  # type: ignore[attr-defined]
    return report


def _on_gpu(config: pytest.Config) -> int:
    return sum(_executed.values()) if config.getoption("--device") == "cuda" else 0


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if config.getoption("--require-gpu") and _on_gpu(config) == 0 and session.exitstatus == 0:
        session.exitstatus = EXIT_NO_GPU_CASE
    path = config.getoption("--gpu-report")
    if path is not None:
        counts = {
            "device": config.getoption("--device"),
            "gpu_cases": _on_gpu(config),
            **{name: _executed[name] for name in ("passed", "failed")},
            "skipped": dict(_skipped.most_common()),
        }
        path.write_text(json.dumps(counts, indent=1) + "\n")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    where = "the GPU" if config.getoption("--device") == "cuda" else "the CPU, as a stand-in"
    passed, failed = _executed["passed"], _executed["failed"]
    terminalreporter.write_line(
        f"our kernels computed on {where}: {passed} passed, {failed} failed"
    )
    if config.getoption("--require-gpu") and _on_gpu(config) == 0:
        terminalreporter.write_line("zero GPU cases executed: this run proves nothing")
