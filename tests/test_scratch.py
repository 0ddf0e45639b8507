"""The scratch pool: it reuses memory, keeps within its limit, gives back, and survives fork."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from fused_lstm import _extension

_C = pytest.importorskip("fused_lstm._C", reason="the extension has not been built")

MB = 1 << 20
# A reserve of more than 2 MB: large pages.
T, B, I, H = 64, 32, 32, 64  # noqa: E741


@pytest.fixture(autouse=True)
def clean_pool() -> Iterator[None]:
    limit = _C.cache_limit()
    _C.empty_cache()
    yield
    _C.set_cache_limit(limit)
    _C.empty_cache()


def arguments(T: int = T, B: int = B, H: int = H) -> list[Tensor | None]:
    sizes = [(4 * H, I), (4 * H, H), (4 * H,), (4 * H,)]
    weights = [torch.randn(s) / 8 for s in sizes]
    return [torch.randn(T, B, I), None, None, None, *weights, *[None] * 6]


def forward(inputs: list[Tensor | None], save: bool = True) -> tuple[Tensor, ...]:
    return torch.ops.fused_lstm.forward(*inputs, save)


ONE = torch.ones(())


def step(inputs: list[Tensor | None]) -> list[Tensor]:
    """One training step; returns results and gradients. Uses no operator but ours."""
    y, h_n, c_n, reserve = forward(inputs)
    grads = backward(inputs, y, reserve)
    return [y, h_n, c_n, *grads]


def backward(inputs: list[Tensor | None], y: Tensor, reserve: Tensor) -> list[Tensor]:
    """Dx and the gradients of the weights for a gradient of ones, expanded as sum() gives it."""
    grads = (ONE.expand(y.shape), None, None)
    return list(torch.ops.fused_lstm.backward(*grads, *inputs, y, reserve, 0b111001))


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_reserve_goes_back_to_the_pool_and_is_used_again() -> None:
    inputs = arguments()
    size = _C.reserve_bytes(T, B, I, H, H, 1, "float32")
    assert size > 2 * MB
    reserve = forward(inputs)[3]
    assert reserve.shape == (size,)
    assert reserve.dtype == torch.uint8
    address = reserve.data_ptr()
    assert address % (2 * MB) == 0, "a block of this size lies on large pages"
    without = _C.cache_bytes()
    del reserve
    assert size <= _C.cache_bytes() - without < size + 2 * MB
    assert forward(inputs)[3].data_ptr() == address


def test_results_are_never_pool_memory() -> None:
    inputs = arguments()
    results = step(inputs)
    copies = [r.clone() for r in results]
    _C.empty_cache()
    for _ in range(3):
        step(arguments())  # would overwrite what had been given back too early
    assert_same(results, copies)


def test_two_reserves_alive_are_two_blocks() -> None:
    inputs, others = arguments(), arguments()
    first, second = forward(inputs), forward(others)
    assert first[3].data_ptr() != second[3].data_ptr()
    late = backward(inputs, first[0], first[3])
    assert_same(late, step(inputs)[3:])


def test_empty_cache_gives_all_back() -> None:
    step(arguments())
    held = _C.cache_bytes()
    assert held > 0
    assert _C.empty_cache() == held
    assert _C.cache_bytes() == 0
    assert _C.empty_cache() == 0


def test_memory_really_returns_to_the_system() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc/self/statm, which only Linux has")
    inputs = arguments(T=512, B=64, H=128)
    forward(inputs, save=True)
    pages = _C.cache_bytes() // os.sysconf("SC_PAGESIZE")
    before = resident_pages()
    _C.empty_cache()
    assert before - resident_pages() > 0.8 * pages


def resident_pages() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1])


def test_limit_is_kept() -> None:
    _C.set_cache_limit(8 * MB)
    assert _C.cache_limit() == 8 * MB
    for length in (64, 16, 200, 96, 64, 400, 128):
        step(arguments(T=length))
        assert _C.cache_bytes() <= 8 * MB
    reserves = [forward(arguments())[3] for _ in range(6)]
    reserves.clear()
    assert 0 < _C.cache_bytes() <= 8 * MB
    _C.set_cache_limit(2 * MB)
    assert _C.cache_bytes() <= 2 * MB
    _C.set_cache_limit(0)
    assert _C.cache_bytes() == 0
    step(arguments())
    assert _C.cache_bytes() == 0


def test_number_of_blocks_is_bounded() -> None:
    """Many small blocks do not pile up: at most 64 are kept, whatever their size."""
    reserves = [forward(arguments(T=8, B=16))[3] for _ in range(100)]
    one = _C.reserve_bytes(8, 16, I, H, H, 1, "float32")
    assert one > 32 * 1024, "below this size nothing is pooled and the test says nothing"
    _C.empty_cache()
    reserves.clear()
    assert 0 < _C.cache_bytes() <= 64 * (one + 65536)


def test_limit_from_the_environment() -> None:
    program = "import fused_lstm._extension as e; print(e.require().cache_limit())"
    output = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "FUSED_LSTM_CACHE_MB": "7"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(output.stdout) == 7 * MB


@pytest.mark.parametrize("text", ["lots", "-1", "1.5", "1" * 12])
def test_limit_from_the_environment_refuses(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_LSTM_CACHE_MB", text)
    monkeypatch.setattr(_extension, "available", False)
    with pytest.raises(ValueError, match="FUSED_LSTM_CACHE_MB: expected a whole number of mega"):
        _extension.load()


def test_threads_share_the_pool() -> None:
    """Several Python threads, each with its own shapes, while another empties the pool."""
    lengths = (16, 40, 64, 96)
    problems = [arguments(T=length) for length in lengths]
    wanted: list[Sequence[Tensor]] = []
    failures: list[str] = []
    done = threading.Event()

    def alone() -> None:  # with as many threads as work() has: another number, other last bits
        torch.set_num_threads(1)
        wanted.extend(step(problem) for problem in problems)

    def work(index: int) -> None:
        torch.set_num_threads(1)
        for _ in range(15):
            got = step(problems[index])
            if not all(torch.equal(a, b) for a, b in zip(got, wanted[index], strict=True)):
                failures.append(f"T={lengths[index]}: another result")

    first = threading.Thread(target=alone)
    first.start()
    first.join()

    def empty() -> None:
        while not done.is_set():
            _C.empty_cache()
            time.sleep(0.001)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(lengths))]
    emptier = threading.Thread(target=empty)
    for thread in [*workers, emptier]:
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    emptier.join()
    assert not failures


def in_child(work: Callable[[], bool], seconds: float = 20.0) -> None:
    """Runs work in a forked child; fails unless it returns True in time."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == child:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail(f"the forked child did not end within {seconds} s")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")


@needs_fork
def test_child_starts_with_an_empty_pool_and_computes() -> None:
    inputs = arguments()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        wanted = step(inputs)
    finally:
        torch.set_num_threads(threads)
    y, _, _, reserve = forward(inputs)
    step(inputs)  # leaves its blocks in the pool
    assert _C.cache_bytes() > 0

    def child() -> bool:
        if _C.cache_bytes() != 0:
            return False
        got = step(inputs)  # a parallel loop would wait for threads that no longer exist
        late = backward(inputs, y, reserve)
        torch.set_num_threads(1)  # the comparison is torch's own, which waits for such threads
        same = all(
            torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(got, wanted, strict=True)
        )
        same &= all(torch.equal(a, b) for a, b in zip(late, got[3:], strict=True))
        return same and _C.cache_bytes() > 0

    in_child(child)
    assert _C.cache_bytes() > 0, "the child's empty pool is not the parent's"
    step(inputs)


@needs_fork
def test_fork_while_other_threads_use_the_pool() -> None:
    """The pool's lock is never left taken in a child, whenever the fork happens."""
    stop = threading.Event()

    def churn() -> None:  # holds the lock as often as can be, and not the interpreter's
        while not stop.is_set():
            _C.empty_cache()

    workers = [threading.Thread(target=churn) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(150):
            in_child(lambda: _C.empty_cache() == 0 and _C.cache_bytes() == 0)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
