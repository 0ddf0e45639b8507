"""The GPU benchmarks' code, run on the CPU: who is compared, what is counted, and what is reported.

Nothing here looks at how fast anything is.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # last: an installed fused_lstm comes before the source tree's

from benchmarks import (  # noqa: E402
    cases,
    gpu,
    gpu_environment,
    gpu_peers,
    gpu_steps,
    gpu_timing,
    plot,
    report,
)
from benchmarks.gpu_cases import MODES, SCORECARD, GpuCase, flops, select  # noqa: E402
from benchmarks.peers import Candidate, UnavailableError  # noqa: E402

CPU = torch.device("cpu")
CASES = (
    GpuCase(5, 3, 4, 7),
    GpuCase(5, 3, 4, 7, num_layers=2, bidirectional=True, batch_first=True),
    GpuCase(6, 4, 3, 8, packed=True),
    GpuCase(6, 4, 3, 8, packed=True, batch_first=True, bidirectional=True),
)


def test_operations_agree_with_the_cpu_benchmarks() -> None:
    for mode in ("inference", "training", "training_dx"):
        assert flops(GpuCase(5, 3, 4, 7), mode) == cases.flops(cases.Case(5, 3, 4, 7), mode)
    one, two = (flops(GpuCase(5, 3, 7, 7, num_layers=n), "inference") for n in (1, 2))
    assert two == 2 * one
    packed = GpuCase(8, 4, 5, 6, packed=True)
    assert packed.lengths == [8, 7, 6, 5]
    assert flops(packed, "forward") == flops(GpuCase(26, 1, 5, 6), "inference")


def test_shapes_are_read_as_they_are_written() -> None:
    assert select("scorecard") == SCORECARD
    assert len(set(SCORECARD)) == len(SCORECARD)
    assert select(",".join(case.name for case in SCORECARD)) == SCORECARD
    assert select("quick,quick") == select("quick")
    assert {case.group for case in SCORECARD} == {"resident", "large"}
    assert any(case.H % 128 for case in SCORECARD)
    for text in ("", "5x3x4", "5x3x4x7-bidi", "5x3x0x7", "5x3x4x7-xl"):
        with pytest.raises(ValueError, match=r"--shapes: expected scorecard.*got"):
            select(text)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("name", ["torch", "fused"])
def test_candidates_compute_what_nn_lstm_does(name: str, case: GpuCase, mode: str) -> None:
    work = gpu_peers.work_for(case, mode, "float32", CPU)
    found = gpu_peers.prepare(name, work).result()
    module = nn.LSTM(
        case.I, case.H, case.num_layers, batch_first=case.batch_first,
        bidirectional=case.bidirectional,
    )  # fmt: skip
    module.load_state_dict(work.weights)
    x = work.x.clone().requires_grad_()
    lengths = torch.tensor(case.lengths)
    given = pack_padded_sequence(x, lengths, case.batch_first) if case.packed else x
    y, (h_n, c_n) = module(given)
    data = y.data if case.packed else y
    wanted = {"y": data.detach(), "h_n": h_n.detach(), "c_n": c_n.detach()}
    if mode.startswith("training"):
        data.backward(work.dy)
        wanted |= {f"d{key}": p.grad for key, p in module.named_parameters()}
        if mode == "training_dx":
            wanted["dx"] = x.grad
    assert set(found) == set(wanted)
    assert gpu_peers.check(found, wanted, work, loose=False) == ""
    off = {**found, "y": found["y"] + 0.01}
    assert "y: expected" in gpu_peers.check(off, wanted, work, loose=False)


def test_inputs_rotate_among_copies() -> None:
    work = gpu_peers.work_for(GpuCase(2, 1, 3, 4), "training_dx", "float32", CPU)
    assert work.copies == 1
    seen: list[int] = []

    class Spy(nn.LSTM):
        def forward(self, x: torch.Tensor, hx: Any = None) -> Any:
            seen.append(x.data_ptr())
            return super().forward(x, hx)

    three = gpu_peers.GpuWork(**{**vars(work), "copies": 3})
    candidate = gpu_peers._candidate(Spy(3, 4), three, torch.float32)
    for _ in range(6):
        candidate.call()
    assert len(set(seen)) == 3
    assert seen[:3] == seen[3:]


@pytest.mark.parametrize(
    "name", ["stepwise", "single_block", "cluster", "grid", "haste", "flashrnn"]
)
def test_who_is_not_here_says_so(name: str) -> None:
    work = gpu_peers.work_for(GpuCase(2, 1, 3, 4), "inference", "float32", CPU)
    with pytest.raises(UnavailableError, match=r"not installed|CUDA only"):
        gpu_peers.prepare(name, work)


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    path = tmp_path / "it.json"
    common = ["--device", "cpu", "--json", str(path), "--seconds", "60", "--budget", "0.01"]
    code = gpu.main([*common, *arguments])
    return code, report.load(path)


SMALL = ("--shapes", "5x3x4x7,6x4x3x8-packed", "--precisions", "float32,bfloat16")


def test_a_run_writes_a_result_that_report_and_plot_read(tmp_path: Path) -> None:
    code, found = run(tmp_path, *SMALL, "--modes", "inference,training")
    assert code == 0
    assert found["left_out"] == found["wrong"] == []
    assert len(found["rows"]) == 2 * 2 * 2
    for row in found["rows"]:
        assert row["plan"]
        assert row["implementations"]["fused"]["ms"] > 0
        assert row["fused_versus"]["torch"]["median"] > 0
    assert "stepwise" in found["unavailable"]
    assert str(tmp_path) not in json.dumps(found)
    assert "--json" not in found["environment"]["command"]
    text = report.table(found, dtype="bfloat16")
    assert text.splitlines()[0] == "| T x B x I x H | inference | training |"
    assert "6 x 4 x 3 x 8-packed" in text
    assert "thread" not in text
    assert "cuDNN" in report.detail(found)
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    figure = plot.picture(found)
    assert [panel.get_title(loc="right") for panel in figure.axes] == ["float32", "bfloat16"]
    assert "in float32 / bfloat16" in figure.get_suptitle()


def test_the_baseline_is_nn_lstm_alone(tmp_path: Path) -> None:
    code, found = run(tmp_path, *SMALL, "--modes", "inference", "--baseline")
    assert code == 0
    assert all(set(row["implementations"]) == {"torch"} for row in found["rows"])
    assert all(row["plan"] is None for row in found["rows"])
    assert found["geomeans"] == []
    assert "nn.LSTM" in report.detail(found)


def test_a_wrong_result_is_a_failure_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gpu_peers.prepare

    def wrong(name: str, work: gpu_peers.GpuWork) -> Candidate:
        candidate = right(name, work)
        if name != "fused" or work.case.packed:
            return candidate
        off = {key: 1.01 * tensor for key, tensor in candidate.result().items()}
        return Candidate(candidate.call, lambda: off)

    monkeypatch.setattr(gpu, "prepare", wrong)
    code, found = run(tmp_path, *SMALL[:3], "float32", "--modes", "inference")
    assert code == 1
    assert len(found["rows"]) == 2
    assert "fused" not in found["rows"][0]["implementations"]
    assert "fused" in found["rows"][1]["implementations"]
    (entry,) = found["wrong"]
    assert entry.startswith("fused at 5x3x4x7, inference, float32: y: expected nn.LSTM's values")


def test_a_kernel_that_raises_is_a_failure_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gpu_peers.prepare

    def raising(name: str, work: gpu_peers.GpuWork) -> Candidate:
        if name == "fused" and not work.case.packed:
            raise RuntimeError("an illegal memory access")
        return right(name, work)

    monkeypatch.setattr(gpu, "prepare", raising)
    code, found = run(tmp_path, *SMALL[:3], "float32", "--modes", "inference")
    assert code == 1
    assert len(found["rows"]) == 2
    assert "illegal memory access" in found["wrong"][0]


def test_what_there_was_no_time_for_is_named(tmp_path: Path) -> None:
    path = tmp_path / "it.json"
    arguments = ["--device", "cpu", "--json", str(path), "--seconds", "1e-9", *SMALL]
    assert gpu.main(arguments) == 0
    found = report.load(path)
    assert found["rows"] == []
    assert len(found["left_out"]) == 2 * 2 * 3
    assert found["left_out"][0] == "5x3x4x7 inference float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("script", ["gpu.py", "gpu_steps.py"])
def test_without_a_gpu_nothing_is_measured(script: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sees no GPU" in done.stderr
    assert done.stdout == ""


def test_a_step_is_a_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call costs 1 ms and 3 us (ours 2 us) a step: only the steps count."""

    def prepare(name: str, work: gpu_peers.GpuWork) -> Candidate:
        if name in ("single_block", "cluster", "grid"):
            raise UnavailableError("not here")
        seconds = 1e-3 + {"torch": 3e-6, "fused": 2e-6, "stepwise": 9e-6}[name] * work.case.T
        return Candidate(lambda: seconds, dict)

    def turn(call: Callable[[], Any], calls: int) -> tuple[float, float]:
        return calls * call(), 0.0

    monkeypatch.setattr(gpu_steps, "prepare", prepare)
    found = gpu_steps.slopes(8, 2, "inference", "float32", CPU, 0.0, turn, lengths=(20, 120))
    assert found == {"torch": 3.0, "fused": 2.0, "stepwise": 9.0}


def test_turns_are_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("record")

        def synchronize(self) -> None:
            order.append("synchronize")

        def elapsed_time(self, end: "Event") -> float:
            return 5.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("drain"))
    seconds, _ = gpu_timing.event_turn(lambda: order.append("call"), 3)
    assert seconds == pytest.approx(5e-3)
    assert order == ["drain", "record", "call", "call", "call", "record", "synchronize"]
    assert gpu_timing.turn_for(CPU) is not gpu_timing.event_turn
    assert gpu_timing.turn_for(torch.device("cuda")) is gpu_timing.event_turn


def test_device_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_environment.device_slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    clocks = "345 MHz, 2619 MHz, 1980 MHz, 2619 MHz"
    answer = f"580.1, {clocks}, 70 W, 700 W, 31, 0 %, Enabled, Default, [N/A]"
    done = subprocess.CompletedProcess([], 0, stdout=answer + "\n", stderr="")
    monkeypatch.setattr(gpu_environment.subprocess, "run", lambda *a, **k: done)
    found = gpu_environment.smi()
    assert (found["driver_version"], found["clocks.sm"]) == ("580.1", "345 MHz")
    assert found["mig.mode.current"] == "[N/A]"
