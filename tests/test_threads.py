"""Threads and processes: however few threads really run, no call hangs or gives another result."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import (
    GRADIENT_TOLERANCE,
    OUTPUT_TOLERANCE,
    Case,
    arguments,
    call,
    copies,
    error,
    modules,
)
from torch import Tensor

import fused_lstm

# Sizes for which threads share the batch, the hidden units, or both.
CASES = (
    Case(5, 1, 8, 256, hx=False),
    Case(9, 2, 16, 512, hx=False),
    Case(28, 50, 28, 100, hx=False),
    Case(7, 33, 40, 320, bidirectional=True),
    Case(100, 3, 5, 17),
)


def results(module: torch.nn.Module, case: Case, leaves: list[Tensor]) -> list[Tensor]:
    outputs = call(module, case, leaves)
    loss = sum(t.square().sum() for t in outputs)
    return [*outputs, *torch.autograd.grad(loss, [*leaves, *module.parameters()])]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_against_two_threads(case: Case, dtype: torch.dtype) -> None:
    lstm, _ = modules(case, dtype)
    leaves = arguments(case, dtype)
    two = results(lstm, case, leaves)
    assert all(torch.equal(a, b) for a, b in zip(two, results(lstm, case, leaves), strict=True))
    torch.set_num_threads(1)
    one = results(lstm, case, leaves)
    for k, (a, b) in enumerate(zip(two, one, strict=True)):
        table = OUTPUT_TOLERANCE if k < 3 else GRADIENT_TOLERANCE
        assert error(a, b) <= table[dtype]


@pytest.mark.usefixtures("two_threads")
def test_more_threads_than_processors() -> None:
    case = CASES[1]
    lstm, _ = modules(case, torch.float32)
    leaves = arguments(case, torch.float32)
    expected = results(lstm, case, leaves)
    torch.set_num_threads((os.cpu_count() or 1) + 3)
    for a, b in zip(results(lstm, case, leaves), expected, strict=True):
        assert error(a, b) <= GRADIENT_TOLERANCE[torch.float32]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_two_python_threads_on_one_module(case: Case) -> None:
    lstm, _ = modules(case, torch.float32)
    inputs = [copies(arguments(case, torch.float32)) for _ in range(2)]
    expected = [results(lstm, case, leaves) for leaves in inputs]
    wrong: list[float] = []

    def work(k: int) -> None:
        for _ in range(8):
            for a, b in zip(results(lstm, case, inputs[k]), expected[k], strict=True):
                wrong.append(error(a, b))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "hangs"
    assert len(wrong) == 2 * 8 * len(expected[0])
    assert max(wrong) <= GRADIENT_TOLERANCE[torch.float32]


# Each script below runs forward and backward of some cases in a process of its own and prints the
# largest error against float64. In a forked child only our operators run: torch's own hang there as
# soon as they ask its pool for a second thread. So results leave the child as bytes.
SCRIPT = """
import os, signal, sys, tempfile, time
import torch
from cases import Case, arguments, call, copies, error, modules

torch.set_num_threads(2)
assert torch.get_num_threads() == 2
CASES = (
    Case(5, 1, 8, 256, hx=False),
    Case(9, 40, 16, 320, hx=False),
    Case(30, 7, 5, 17, bidirectional=True),
    Case(8, 64, 64, 256, num_layers=2, hx=False),
)

def derived(module, case, leaves):
    h_n = call(module, case, leaves)[1]
    wanted = [*leaves, *module.parameters()]
    return [h_n, *torch.autograd.grad(h_n, wanted, torch.ones_like(h_n))]

problems = []
for case in CASES:
    ours, exact = modules(case, torch.float32, torch.float64)
    leaves = arguments(case, torch.float32)
    right = derived(exact, case, copies(leaves, torch.float64))
    problems.append((ours, case, leaves, right))

def check():
    worst = 0.0
    for ours, case, leaves, right in problems:
        for a, b in zip(derived(ours, case, leaves), right, strict=True):
            worst = max(worst, error(a, b))
    return worst

def child_of_a_fork(prepare):
    folder = tempfile.mkdtemp()
    check()  # now torch's pool of threads runs, and the scratch pool holds memory
    child = os.fork()
    if child == 0:
        try:
            prepare()
            for k, (ours, case, leaves, _) in enumerate(problems):
                for j, t in enumerate(derived(ours, case, leaves)):
                    with open(f"{folder}/{k}.{j}", "wb") as file:
                        file.write(t.detach().numpy().tobytes())
        finally:
            os._exit(0)
    deadline = time.monotonic() + 10
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise SystemExit("the child hangs")
        time.sleep(0.01)
    worst = check()  # the parent goes on
    for k, (*_, right) in enumerate(problems):
        for j, b in enumerate(right):
            with open(f"{folder}/{k}.{j}", "rb") as file:
                a = torch.frombuffer(bytearray(file.read()), dtype=torch.float32)
            worst = max(worst, error(a.view(b.shape), b))
    return worst
"""

LIMIT = "print(check())"
# Backward runs on the thread that calls it, here one of four beside each other.
BESIDE = """
import concurrent.futures
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(max(pool.map(lambda _: check(), range(4))))
"""
FORK = "print(child_of_a_fork(lambda: None))"
FORK_SET = "print(child_of_a_fork(lambda: torch.set_num_threads(1)))"


@pytest.mark.parametrize(
    ("script", "environment"),
    [
        (LIMIT, {}),
        (LIMIT, {"OMP_THREAD_LIMIT": "1"}),
        (LIMIT, {"OMP_DYNAMIC": "true"}),
        (LIMIT, {"OMP_WAIT_POLICY": "passive"}),
        (BESIDE, {}),
        (BESIDE, {"OMP_THREAD_LIMIT": "2"}),
        (FORK, {}),
        (FORK, {"OMP_WAIT_POLICY": "active"}),
        (FORK_SET, {}),
    ],
    ids=[
        "plain",
        "limit",
        "dynamic",
        "passive",
        "beside",
        "beside-limit",
        "fork",
        "fork-active",
        "fork-set-threads",
    ],
)
def test_in_a_process_of_its_own(script: str, environment: dict[str, str]) -> None:
    run(script, environment)


# Two threads of an OpenMP region, each calling our operators: a region inside gets one thread.
NESTED = """
import ctypes
errors = []
task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: errors.append(check()))
ctypes.CDLL({library!r}).GOMP_parallel(task, None, 2, 0)
assert len(errors) == 2
print(max(errors))
"""


@pytest.mark.parametrize("levels", ["1", "2"])
def test_inside_a_parallel_region(levels: str) -> None:
    found = sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    if not found:
        pytest.skip("torch does not bring GNU's OpenMP here, from which a region could be started")
    run(NESTED.format(library=str(found[0])), {"OMP_MAX_ACTIVE_LEVELS": levels})


def run(script: str, environment: dict[str, str]) -> None:
    """Runs SCRIPT and then script in a process of its own; asserts its error is small."""
    tests = str(Path(__file__).resolve().parent)
    paths = [tests, str(Path(fused_lstm.__file__).parent.parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + script],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(p for p in paths if p)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(done.stdout.split()[-1]) <= GRADIENT_TOLERANCE[torch.float32]
