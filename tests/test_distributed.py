"""Two processes compute what one does: DDP, FSDP2, a pipeline, saved shards; and checkpointing.

One pair of processes keeps all promises of distributed_worker.py, one after the other, over gloo.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import GRADIENT_TOLERANCE, Case, arguments, call, copies, error, modules
from distributed_worker import PROMISES, WORLD
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LIMIT_S = 240  # 15 s on an idle machine of two cores


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each process wrote; both are killed when time is up."""
    folder = tmp_path_factory.mktemp("processes")
    command = (sys.executable, Path(__file__).with_name("distributed_worker.py"))
    logs = [(folder / f"{rank}.log").open("w+") for rank in range(WORLD)]
    processes = [
        subprocess.Popen([*command, str(rank), folder], stdout=log, stderr=subprocess.STDOUT)
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(LIMIT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for log in logs:
        log.seek(0)
    assert codes == [0] * WORLD, "\n".join(log.read() for log in logs)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("promise", PROMISES)
def test_two_processes_equal_one(promise: str, results: list[dict[str, str]]) -> None:
    for rank, kept in enumerate(results):
        assert kept.get(promise) == "kept", f"process {rank}: {kept.get(promise, 'not reached')}"


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(
    "case",
    [Case(5, 3, 4, 7, num_layers=2, bidirectional=True), Case(5, 3, 4, 7, lengths=(3, 5, 4))],
)
def test_checkpoint_recomputes_the_same(case: Case, use_reentrant: bool) -> None:
    ours, theirs = modules(case, torch.float64)
    leaves = arguments(case, torch.float64)
    runs = []

    def f(*inputs: Tensor) -> tuple[Tensor, ...]:
        runs.append(1)
        return call(ours, case, inputs)

    sum(t.sin().sum() for t in checkpoint(f, *leaves, use_reentrant=use_reentrant)).backward()
    assert len(runs) == 2  # forward was thrown away and made again
    others = copies(leaves)
    sum(t.sin().sum() for t in call(theirs, case, others)).backward()
    wanted = [*leaves, *ours.parameters()], [*others, *theirs.parameters()]
    for a, b in zip(*wanted, strict=True):
        assert error(a.grad, b.grad) <= GRADIENT_TOLERANCE[torch.float64]  # type: ignore[arg-type]


def test_double_backward_of_a_checkpoint() -> None:
    case = Case(5, 3, 4, 7)
    ours, theirs = modules(case, torch.float64)
    leaves = arguments(case, torch.float64)
    outputs = (
        checkpoint(lambda *t: call(ours, case, t)[0], *leaves, use_reentrant=False),
        call(theirs, case, leaves)[0],
    )
    seconds = []
    for y in outputs:
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for a, b in zip(*seconds, strict=True):
        assert error(a, b) <= 2 * GRADIENT_TOLERANCE[torch.float64]  # two passes
