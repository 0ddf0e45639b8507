"""The benchmarks measure what they say, refuse what they cannot, and reports follow the JSON.

Nothing here looks at how fast anything is.
"""

import copy
import gc
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # last: an installed fused_lstm comes before the source tree's

from benchmarks import environment, fresh, options, peers, plot, report, rows, run, steps  # noqa: E402
from benchmarks.cases import GROUPS, LABELS, MODES, QUICK, Case, flops, parse_shapes  # noqa: E402
from benchmarks.noise import Watch  # noqa: E402
from benchmarks.peak import PeakMeter  # noqa: E402
from benchmarks.timing import (  # noqa: E402
    MIN_ROUNDS,
    Series,
    geometric_mean,
    interleave,
    ratio_of_rounds,
    spread,
)

TINY = "5x3x4x7"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_row(
    shape: str,
    mode: str,
    threads: int,
    ratio: float,
    peer: float | None = None,
    noisy: bool = False,
) -> dict[str, Any]:
    """A row in which nn.LSTM takes `ratio` times our time, and `peer` times ONNX Runtime's."""

    def around(value: float) -> dict[str, float]:
        return {"median": value, "low": 0.98 * value, "high": 1.02 * value}

    def figures(value: float) -> dict[str, Any]:
        common = {"ms_low": 1.0, "ms_high": 1.0, "gflops": 80.0, "peak_share": 0.8}
        return {"ms": 1.0, **common, "ratio": around(value), "rounds": 5, "cores": 1.0}

    implementations = {"torch": figures(1.0), "fused": figures(ratio)}
    versus = {"torch": around(ratio)}
    if peer is not None:
        implementations["onnxruntime"] = figures(peer)
        versus["onnxruntime"] = around(ratio / peer)
    quiet = {"other_cores": 0.0, "stolen_cores": 0.0, "busiest": None, "attempt": 1}
    return {
        "shape": shape,
        "group": "core",
        "mode": mode,
        "dtype": "float32",
        "threads": threads,
        "gflop": 1.0,
        "plan": "a kernel",
        "implementations": implementations,
        "fused_versus": versus,
        "noise": {**quiet, "noisy": noisy},
    }


@pytest.fixture
def result() -> dict[str, Any]:
    """A small result, made by hand."""
    made = [
        make_row("28x50x28x100", "inference", 1, 2.0, peer=1.6),
        make_row("28x50x28x100", "training", 1, 1.5),
        make_row("25x16x512x512", "inference", 1, 0.5, peer=0.25, noisy=True),
        make_row("25x16x512x512", "training", 1, 6.0),
        make_row("28x50x28x100", "inference", 2, 4.0),
        make_row("28x50x28x100", "training", 2, 3.0),
    ]
    return {
        "schema": report.SCHEMA,
        "name": "small",
        "machine": "a-processor-1",
        "isa": "avx2",
        "environment": {
            "cpu": "A Processor 1",
            "cores": 2,
            "versions": {"torch": "2.13.0", "fused_lstm": "0.1.0"},
            "git": {"commit": "0123456789abcdef", "modified": False},
            "date": "2026-01-02T03:04:05Z",
            "command": "python benchmarks/run.py",
        },
        "options": {},
        "peaks": [],
        "rows": made,
        "geomeans": report.geomeans(made),
        "memory": [
            {"shape": TINY, "threads": 1, "fused": {"step_mib": 1.0}, "torch": {"step_mib": 2.0}}
        ],
        "training_step": [],
        "import": {"torch_ms": 1500.0, "fused_lstm_ms": 12.0},
        "unavailable": {},
    }


# Arithmetic ------------------------------------------------------------------------------------


def test_geometric_mean_is_fair_to_ratios() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([1.0, 8.0, 27.0]) == pytest.approx(6.0)
    with pytest.raises(ValueError, match="at least one"):
        geometric_mean([])


def test_ratio_is_taken_within_a_round_where_both_ran() -> None:
    # Over all rounds the times have the same median; within a round ours is twice as fast.
    theirs = Series([2.0, 4.0, 8.0, 1.0, None])
    ours = Series([1.0, 2.0, 4.0, None, 7.0])
    ratio = ratio_of_rounds(theirs, ours)
    assert ratio is not None
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 2.0, 2.0)
    assert ratio_of_rounds(Series([None]), Series([1.0])) is None
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0]).median == 3.0
    assert (spread([7.0]).low, spread([7.0]).high) == (7.0, 7.0)


def test_geomeans_per_mode_threads_and_peer(result: dict[str, Any]) -> None:
    found = {(m["mode"], m["threads"], m["peer"]): m for m in result["geomeans"]}
    assert found["inference", 1, "torch"]["ratio"] == pytest.approx(1.0)  # of 2 and 0.5
    assert found["training", 1, "torch"]["ratio"] == pytest.approx(3.0)  # of 1.5 and 6
    assert found["inference", 2, "torch"]["ratio"] == pytest.approx(4.0)
    # ONNX Runtime / ours: (2 / 1.6) and (0.5 / 0.25)
    assert found["inference", 1, "onnxruntime"]["ratio"] == pytest.approx((1.25 * 2) ** 0.5, 1e-3)
    worst = found["inference", 1, "torch"]
    assert (worst["worst"], worst["worst_shape"]) == (0.5, "25x16x512x512")
    assert (worst["shapes"], worst["noisy"]) == (2, 1)
    assert ("training", 1, "onnxruntime") not in found


def test_operations_are_those_of_the_matrix_products() -> None:
    case = Case(T=2, B=3, I=5, H=7)
    forward = 2 * (2 * 3) * (4 * 7) * (5 + 7)
    assert flops(case, "inference") == forward
    recurrent = 2 * (2 * 3) * (4 * 7) * 7
    assert flops(case, "training") == 2 * forward + recurrent
    assert flops(case, "training_dx") == 3 * forward


# Selecting -------------------------------------------------------------------------------------


def test_shapes_by_group_and_by_numbers() -> None:
    assert [case for _, case in parse_shapes("core")] == GROUPS["core"]
    assert len(GROUPS["core"]) == 12
    assert {group for group, _ in parse_shapes(QUICK)} == {"core"}
    named = parse_shapes(f"{TINY},28x50x28x100,core")
    assert named[0] == ("given", Case(5, 3, 4, 7))
    assert len(named) == 1 + 12
    server = {case.name: case for case in GROUPS["deepbench"]}["25x1x512x512"]
    assert server.modes == ("inference",)
    total = [case.name for _, case in parse_shapes("all")]
    assert len(total) == len(set(total))


@pytest.mark.parametrize("text", ["", "cor", "28x50x28", "28x50x28x0", "1x1x1x-1", "1,1,1,1"])
def test_bad_shapes_name_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"--shapes: expected core.*got"):
        parse_shapes(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--modes", "sleeping"],
        ["--peers", "nobody"],
        ["--threads", "0"],
        ["--only", ""],
        ["--shapes", "1x2"],
        ["--name", "../elsewhere"],
        ["--isa", "mmx"],
    ],
)
def test_bad_options_end_with_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        options.parse(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_recorded_command_does_not_say_where_the_result_went() -> None:
    given = ["--quick", "--out", "some/folder", "--name", "a b"]
    assert options.command_line(given) == "python benchmarks/run.py --quick --name 'a b'"
    assert options.command_line(["--out=some/folder"]) == "python benchmarks/run.py"


def test_no_committed_result_does() -> None:
    results = list((ROOT / "benchmarks" / "results").glob("*/*.json"))
    assert results
    for path in results:
        assert "--out" not in json.loads(path.read_text())["environment"]["command"], path


@pytest.mark.parametrize(
    ("info", "slug"),
    [
        ({"model name": "AMD EPYC 7763 64-Core Processor"}, "amd-epyc-7763"),
        (
            {"model name": "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz"},
            "intel-xeon-platinum-8375c",
        ),
        (
            {"model name": "Intel(R) Xeon(R) Processor", "cpu family": "6", "model": "143"},
            "intel-xeon-f6m143",
        ),
    ],
)
def test_machine_name_from_the_processor(info: dict[str, str], slug: str) -> None:
    assert environment.machine_slug(info) == slug


# Timing ----------------------------------------------------------------------------------------


def test_candidates_take_turns_with_the_collector_off() -> None:
    order: list[str] = []

    def recorder(name: str) -> Callable[[], None]:
        def record() -> None:
            assert not gc.isenabled()
            order.append(name)

        return record

    assert gc.isenabled()
    series = interleave({name: recorder(name) for name in "abc"}, 0.0, ("a", "b", "c"))
    assert gc.isenabled()
    assert MIN_ROUNDS == 5
    turns = "".join(name for name, _ in itertools.groupby(order))
    assert turns == "abc" + "abc" + "bca" + "cab" + "abc" + "bca"  # warm-up, then five rounds
    assert [len(one.measured) for one in series.values()] == [5, 5, 5]
    assert all(seconds > 0 for one in series.values() for seconds in one.measured)


def test_a_slow_peer_leaves_but_the_principals_stay() -> None:
    series = interleave(
        {"ours": lambda: None, "theirs": lambda: None, "slow": lambda: time.sleep(0.031)},
        0.0,
        ("ours", "theirs"),
    )
    assert len(series["ours"].measured) == len(series["theirs"].measured) == MIN_ROUNDS
    assert len(series["slow"].measured) == 3
    assert series["slow"].cores < 0.5  # asleep


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc to see other processes")
def test_a_busy_neighbour_is_seen() -> None:
    code = "import time\nend = time.time() + 20\nwhile time.time() < end: pass"
    neighbour = subprocess.Popen([sys.executable, "-S", "-c", code])
    try:
        watch = Watch(threads=os.cpu_count() or 1)
        subprocess.run([sys.executable, "-S", "-c", "import time; time.sleep(0.8)"], check=True)
        noise = watch.stop()
    finally:
        neighbour.kill()
        neighbour.wait()
    assert noise.noisy
    assert (noise.other_cores or 0) + (noise.stolen_cores or 0) > 0.2
    assert "NOISY" in noise.describe()


def test_peak_of_every_instruction_set_or_a_reason() -> None:
    meter = PeakMeter()
    try:
        single = meter.best("portable", "float32", 1)
        if meter.reason:
            assert single is None
            pytest.skip(meter.reason)
        assert single is not None
        assert single > 0.1
        assert meter.measure("no such set") is None
    finally:
        meter.close()


# Candidates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in LABELS if name != "fused_float32"])
def test_every_candidate_computes_what_nn_lstm_does(name: str, mode: str) -> None:
    work = peers.workload(Case(5, 3, 4, 7), mode, torch.float32, 1)
    if name == "onnxruntime" and mode != "inference":
        with pytest.raises(peers.UnavailableError, match="inference only"):
            peers.prepare(name, work)
        return
    try:
        candidate = peers.prepare(name, work)
    except peers.UnavailableError as error:
        if name in ("fused", "torch", "cell", "python"):
            raise
        pytest.skip(f"{name}: {error}")
    expected = peers.expected_result(work)
    assert ("dx" in expected) == (mode == "training_dx")
    assert ("dw_hh" in expected) == (mode != "inference")
    assert peers.mismatch(candidate.result(), expected, torch.float32) == ""
    assert peers.mismatch(candidate.result(), expected, torch.float32) == ""  # nothing accumulates


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_agree_too(dtype: torch.dtype) -> None:
    work = peers.workload(Case(9, 2, 6, 16), "training_dx", dtype, 1)
    expected = peers.expected_result(work)
    names = ["fused", "torch"] if dtype == torch.float64 else ["fused", "torch", "fused_float32"]
    for name in names:
        result = peers.prepare(name, work).result()
        assert result["y"].dtype == (torch.float32 if name == "fused_float32" else dtype)
        assert peers.mismatch(result, expected, dtype) == "", name


def test_mismatch_sees_values_shapes_nans_and_gaps() -> None:
    expected = {"y": torch.tensor([1.0, 2.0]), "dx": torch.tensor([3.0])}
    same = {name: tensor.clone() for name, tensor in expected.items()}
    assert peers.mismatch(same, expected, torch.float32) == ""
    for name, tensor, word in (
        ("y", torch.tensor([1.0, 2.1]), "off by"),
        ("y", torch.tensor([1.0, float("nan")]), "off by"),
        ("dx", torch.tensor([[3.0]]), "shape"),
    ):
        assert word in peers.mismatch({**same, name: tensor}, expected, torch.float32)
    assert "dx: expected it" in peers.mismatch({"y": same["y"]}, expected, torch.float32)


# Whole runs ------------------------------------------------------------------------------------


def test_a_run_writes_a_result_that_the_report_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = f"--shapes {TINY} --budget 0.02 --threads 1 --retries 0 --only rows".split()
    arguments += ["--out", str(tmp_path), "--machine", "here", "--name", "smoke"]
    assert run.main([*arguments, "--peers", "cell,onnxruntime"]) == 0
    printed = capsys.readouterr().out
    assert "kernel: " in printed
    found = report.load(tmp_path / "here" / "smoke.json")
    assert list((tmp_path / "here").iterdir()) == [tmp_path / "here" / "smoke.json"]
    assert len(found["rows"]) == len(MODES)
    for row in found["rows"]:
        assert row["plan"]
        assert {"fused", "torch", "cell"} <= set(row["implementations"])
        assert row["implementations"]["torch"]["ratio"]["median"] == 1
        ours = row["implementations"]["fused"]
        assert ours["ratio"] == row["fused_versus"]["torch"]
        assert ours["ms"] > 0
        assert ours["rounds"] >= MIN_ROUNDS
        assert ours["gflops"] == pytest.approx(1e3 * row["gflop"] / ours["ms"], rel=0.01, abs=0.01)
    assert str(tmp_path) not in json.dumps(found)
    assert found["environment"]["versions"]["torch"] == torch.__version__.split("+")[0] or (
        found["environment"]["versions"]["torch"] == torch.__version__
    )
    assert "geometric mean" in report.table(found, group="given")
    assert f"| {TINY.replace('x', ' x ')} |" in report.detail(found)


def test_isa_holds_both_sides_from_before_torch_is_imported(tmp_path: Path) -> None:
    arguments = f"--isa portable --shapes {TINY} --budget 0.01 --threads 1 --only rows".split()
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), *arguments]
    done = subprocess.run(
        [*command, "--modes", "inference", "--retries", "0", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*/full-portable.json")
    found = report.load(path)
    assert found["isa"] == "portable"
    assert found["environment"]["settings"]["ONEDNN_MAX_CPU_ISA"] == "SSE41"
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        assert found["environment"]["torch_cpu_capability"] not in ("AVX2", "AVX512")
    assert "onnxruntime" in found["unavailable"]


def test_a_missing_extension_stops_the_run() -> None:
    code = (
        "import runpy, sys\n"
        "sys.modules['fused_lstm._C'] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script = str(ROOT / "benchmarks" / "run.py")
    done = subprocess.run(
        [sys.executable, "-c", code, script, "--quick", "--out", "-"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "extension" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_result_of_ours_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = peers.prepare

    def wrong(name: str, work: peers.Workload) -> peers.Candidate:
        candidate = right(name, work)
        if name != "fused":
            return candidate
        off = {key: 1.01 * tensor for key, tensor in candidate.result().items()}
        return peers.Candidate(candidate.call, lambda: off)

    monkeypatch.setattr(rows, "prepare", wrong)
    arguments = f"--shapes {TINY} --budget 0.01 --threads 1 --only rows --out -".split()
    assert run.main([*arguments, "--peers", "fused"]) == 1
    assert "y: expected nn.LSTM's values" in capsys.readouterr().err


def test_training_step_of_both_implementations() -> None:
    found = steps.training_step("default", "row", 1, 0.02)
    assert found["shape"] == "28x64x28x128"
    assert found["ratio"]["median"] > 0
    assert found["fused"]["steps_per_second"] > 0


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs /proc/self/clear_refs for the peak"
)
def test_memory_and_import_are_measured_in_fresh_processes() -> None:
    shape = "50x64x8x64"
    found = fresh.training_memory(shape, 1)
    # y [50, 64, 64] and at least the gates [50, 64, 256] live through a training step.
    least = 4 * 50 * 64 * (64 + 256) / 2**20
    assert found["torch"]["step_mib"] > 0.9 * least
    assert found["fused"]["step_mib"] > 0.5 * least
    times = fresh.import_times(1)
    assert 0 < times["fused_lstm_ms"] < times["torch_ms"]


# Reports ---------------------------------------------------------------------------------------


def test_markdown_table(result: dict[str, Any]) -> None:
    lines = report.table(result).splitlines()
    assert lines[0] == (
        "| T x B x I x H | inference, 1 thread | training, 1 thread "
        "| inference, 2 threads | training, 2 threads |"
    )
    assert lines[2:5] == [
        "| 28 x 50 x 28 x 100 | 2.00 | 1.50 | 4.00 | 3.00 |",
        "| 25 x 16 x 512 x 512 | 0.50* | 6.00 |  |  |",
        "| **geometric mean** | **1.00** | **3.00** | **4.00** | **3.00** |",
    ]
    assert "A Processor 1" in lines[6]
    assert "0123456789" in lines[6]
    assert lines[7].startswith("\\*")
    assert "| 2.00* |" in report.table(result, peer="onnxruntime")
    with pytest.raises(ValueError, match="no row"):
        report.table(result, group="deepbench")
    assert "| 5 x 3 x 4 x 7 | 1 | 1.0 | 2.0 |" in report.detail(result)


def test_report_and_plot_from_the_command_line(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(result))
    assert report.main([str(path)]) == 0
    assert "| 28 x 50 x 28 x 100 |" in capsys.readouterr().out
    path.write_text(path.read_text()[:-20])
    assert report.main([str(path)]) == 1
    assert plot.main([str(path)]) == 1
    assert "expected a benchmark result" in capsys.readouterr().err
    assert not path.with_suffix(".png").exists()


@pytest.mark.parametrize("key", ["schema", "rows", "environment", "import"])
def test_a_result_of_another_form_is_refused(result: dict[str, Any], key: str) -> None:
    report.check(result, "it")
    broken = copy.deepcopy(result)
    del broken[key]
    with pytest.raises(ValueError, match=key):
        report.check(broken, "it")
    broken = {**result, "schema": report.SCHEMA + 1}
    with pytest.raises(ValueError, match="schema"):
        report.check(broken, "it")
    broken = copy.deepcopy(result)
    del broken["rows"][0]["noise"]
    with pytest.raises(ValueError, match="noise"):
        report.check(broken, "it")


def test_plot_draws_what_the_result_says(result: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    figure = plot.picture(result)
    assert [panel.get_title(loc="right") for panel in figure.axes] == ["1 thread", "2 threads"]
    ends = [
        sorted(round(bar.get_y() + bar.get_height(), 6) for bar in panel.patches)
        for panel in figure.axes
    ]
    assert ends == [[0.5, 1.5, 2.0, 6.0], [3.0, 4.0]]
    labels = {text.get_text() for text in figure.axes[0].texts}
    assert labels == {"0.50*", "1.50", "2.00", "6.00", "parity"}
    diamonds = sorted(line.get_ydata()[0] for line in figure.axes[0].lines)
    assert diamonds == [0.25, 1, 1.6]  # ONNX Runtime twice, and the line of parity
    title = figure.get_suptitle()
    assert "inference 1.00x / 4.00x, training 3.00x / 3.00x" in title
    assert "A Processor 1" in figure.get_supxlabel()
    plot.draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="deepbench"):
        plot.draw(result, tmp_path / "none.png", group="deepbench")
    assert not (tmp_path / "none.png").exists()
