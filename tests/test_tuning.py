"""Autotuning without a GPU: what is measured, when, by whom, and what is remembered of it.

The clock is made up, the device a stand-in, and tensors are fake ones: they have a GPU's device and
no memory.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cuda import FORWARD, Seen, StandIn, fake_gpu, on_gpu, python, weights

import fused_lstm
from fused_lstm import _extension, function, ops, tuning

T, B, I, H = 6, 3, 5, 7  # noqa: E741
BACKWARD = "fused_lstm.backward.default"


class Gpu(StandIn):
    """A GPU that some families fit, and takes the microseconds of `costs` for a call by each."""

    def __init__(self) -> None:
        self.costs = {"single_block": 30.0, "stepwise": 20.0, "grid": 25.0}
        self.forced: str | None = None
        self.choices: dict[tuple[Any, ...], str] = {}
        self.measured: list[str | None] = []  # by which family each timed call was computed
        self.last: tuple[Any, ...] = ()
        self.version = "1.2.3"

    def build_info(self) -> dict[str, Any]:
        return {**super().build_info(), "version": self.version}

    def forced_family(self) -> str | None:
        return self.forced

    def families(self, *call: Any) -> list[dict[str, Any]]:
        return [{"family": name, "us": 1.0, "blocks": 8, "room": 132} for name in self.costs]

    def call_class(self, *call: Any) -> str:
        steps, *rest = call
        return f"T<={1 << (steps - 1).bit_length()} {rest}"

    def set_choice(self, index: int, *call: Any) -> None:
        *call, family = call  # type: ignore[assignment]
        self.last = (index, self.call_class(*call))
        self.choices.pop(self.last, None)
        if family is not None:
            self.choices[self.last] = family

    def choice(self, index: int, *call: Any) -> str | None:
        return self.choices.get((index, self.call_class(*call)))

    def clock(self, run: Callable[[], None], index: int) -> float:
        assert index == self.last[0]
        family = self.choices.get(self.last)
        self.measured.append(family)
        run()
        return self.costs[family] if family is not None else float("nan")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A GPU with nothing measured yet, and autotuning on."""
    module = Gpu()
    for name, value in (
        ("_cuda_module", module),
        ("_cuda_switched_on", True),
        ("_cuda_obstacles", {}),
        ("why_no_cuda", ""),
        ("autotunes", True),
        ("autotune_file", None),
    ):
        monkeypatch.setattr(_extension, name, value)
    for name, empty in (("_ready", set()), ("_times", {}), ("_told", set())):
        monkeypatch.setattr(tuning, name, empty)
    monkeypatch.setattr(tuning, "microseconds", module.clock)
    monkeypatch.setattr(tuning, "device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(ops, "computes_now", lambda x: True)
    return module


def call(steps: int = T, index: int = 0, grad: bool = False) -> Seen:
    """One call of a layer on the GPU, and what was computed for it.

    With gradients only what comes before the call itself: autograd would look for a real GPU.
    """
    with fake_gpu() as seen, torch.set_grad_enabled(grad):
        x, own = on_gpu(steps, B, I, index=index), weights(index=index)
        if grad:
            own = [w.requires_grad_() for w in own]
            function._tune(x, None, None, None, (*own, *[None] * 6), True)
        else:
            fused_lstm.lstm(x, None, own)
    return seen


@contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---- what is measured ----------------------------------------------------------------------------


def test_first_call_measures_and_the_winner_stays(gpu: Gpu) -> None:
    seen = call()
    families = ["single_block", "stepwise", "grid"]
    assert gpu.measured == families * tuning.ROUNDS, "they take turns"
    # Every family once to warm up, then the rounds, then the call itself.
    assert len(seen.calls) == 3 * (1 + tuning.ROUNDS) + 1
    assert list(gpu.choices.values()) == ["stepwise"]
    gpu.measured.clear()
    assert len(call().calls) == 1
    assert gpu.measured == []


def test_the_call_itself_is_computed_as_without(gpu: Gpu) -> None:
    seen = call()
    *tries, last = seen.calls
    assert all(name == FORWARD for name, _ in tries)
    assert last[1][0] is tries[0][1][0], "its own input"
    assert last == tries[0], "with the same arguments"


def test_quickest_of_several_runs_counts() -> None:
    """A family that was disturbed once is not worse for it."""
    times = {"a": iter([9.0, 3.0, 9.0, 9.0, 9.0]), "b": iter([4.0] * 5)}
    chosen: list[str | None] = []
    found = tuning.measure(
        ["a", "b"], chosen.append, lambda: None, lambda run: next(times[str(chosen[-1])])
    )
    assert found == {"a": 3.0, "b": 4.0}
    assert chosen[-1] is None, "nothing stays chosen that nobody decided for"


@pytest.mark.parametrize("grad", [False, True])
def test_training_is_measured_with_its_backward(grad: bool, gpu: Gpu) -> None:
    seen = call(grad=grad)
    names = [name for name, _ in seen.calls]
    assert names[:2] == ([FORWARD, BACKWARD] if grad else [FORWARD, FORWARD])
    runs = 3 * (1 + tuning.ROUNDS)
    wanted = (runs, runs) if grad else (runs + 1, 0)
    assert (names.count(FORWARD), names.count(BACKWARD)) == wanted
    if grad:
        # of the weights and biases, and not of x, which nobody wants
        assert {arguments[19] for name, arguments in seen.calls if name == BACKWARD} == {0b111000}


def test_classes_of_calls(gpu: Gpu) -> None:
    call(steps=5)
    gpu.measured.clear()
    call(steps=8)
    assert gpu.measured == [], "as many steps, to a power of two"
    for options in ({"steps": 9}, {"index": 1}, {"grad": True}):
        call(**options)
        assert gpu.measured, options
        gpu.measured.clear()
    assert len(gpu.choices) == 4


def test_packed_input_is_a_class_of_its_own(gpu: Gpu) -> None:
    """T and B of it are read from batch_sizes, which are on the CPU and no fake."""
    batch_sizes = torch.tensor([2, 1, 1])
    with fake_gpu():
        x, ten = on_gpu(4, I), [*weights(), *[None] * 6]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "measure", lambda fit, choose, run, clock: dict.fromkeys(fit, 1.0))
        tuning.prepare([x, batch_sizes, None, None, *ten], 0, True)
    assert gpu.last == (0, f"T<=4 {[2, I, H, H, 1, 'float32', False, True, True]}")


@pytest.mark.parametrize("why", ["off", "forced", "traced", "one family", "compiled"])
def test_when_nothing_is_measured(why: str, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "off":
        monkeypatch.setattr(_extension, "autotunes", False)
    elif why == "forced":
        gpu.forced = "stepwise"
    elif why == "traced":
        monkeypatch.setattr(ops, "computes_now", lambda x: False)
    elif why == "one family":
        gpu.costs = {"stepwise": 1.0}
    else:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.setattr(tuning, "prepare", lambda *_: pytest.fail("measured while compiling"))
    assert len(call().calls) == 1
    assert gpu.measured == []
    assert gpu.choices == {}


def test_what_could_not_be_measured_is_measured_later(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that is captured first does not settle the matter."""
    with monkeypatch.context() as patch:
        patch.setattr(ops, "computes_now", lambda x: False)
        call()
    gpu.forced = "grid"
    call()
    gpu.forced = None
    call()
    assert list(gpu.choices.values()) == ["stepwise"]


def test_computes_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what traces, fakes, or captures; the flag of captures is asked for GPU tensors alone."""
    x = torch.zeros(2)
    assert ops.computes_now(x)
    assert ops.computes_now(torch.nn.Parameter(x))
    with Seen():
        assert not ops.computes_now(x), "a mode sees every operator"
    with torch._subclasses.fake_tensor.FakeTensorMode():
        fake = on_gpu(2)
    assert not ops.computes_now(fake)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not ops.computes_now(x)

    class OnGpu:
        is_cuda = True

    for capturing in (True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda now=capturing: now)
        monkeypatch.setattr(ops, "Tensor", OnGpu)
        assert ops.computes_now(OnGpu()) is not capturing  # type: ignore[arg-type]


def test_a_full_gpu_leaves_the_choice_to_the_plan(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(run: Callable[[], None], index: int) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tuning, "microseconds", no_memory)
    call()
    assert gpu.choices == {}
    monkeypatch.setattr(tuning, "microseconds", gpu.clock)
    call()
    assert gpu.measured == [], "tried again at every call"


def test_another_error_is_raised_and_nothing_chosen(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waited_in_vain(run: Callable[[], None], index: int) -> float:
        raise RuntimeError("a block waited in vain")

    monkeypatch.setattr(tuning, "microseconds", waited_in_vain)
    with pytest.raises(RuntimeError, match="in vain"):
        call()
    assert gpu.choices == {}


def test_an_empty_batch_is_not_measured(gpu: Gpu) -> None:
    with fake_gpu() as seen:
        fused_lstm.lstm(on_gpu(T, 0, I), None, weights())
    assert len(seen.calls) == 1


def test_the_clock_is_two_events_on_the_calls_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        made = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            Event.made += 1
            self.name = f"event {Event.made}"

        def record(self) -> None:
            log.append(f"{self.name} recorded")

        def synchronize(self) -> None:
            log.append(f"{self.name} awaited")

        def elapsed_time(self, end: "Event") -> float:
            log.append(f"from {self.name} to {end.name}")
            return 0.125  # milliseconds

    @contextmanager
    def device(index: int) -> Iterator[None]:
        log.append(f"on {index}")
        yield
        log.append("back")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", device)
    assert tuning.microseconds(lambda: log.append("the call"), 1) == 125.0
    assert log == [
        "on 1",
        "event 1 recorded",
        "the call",
        "event 2 recorded",
        "back",
        "event 2 awaited",
        "from event 1 to event 2",
    ]


# ---- the switch ----------------------------------------------------------------------------------


def test_switch_is_a_function_and_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "autotunes", False)
    monkeypatch.setattr(_extension, "autotune_file", None)
    with fused_lstm.autotune(file=Path("found.json")):
        assert (_extension.autotunes, _extension.autotune_file) == (True, "found.json")
        with fused_lstm.autotune(False):
            assert not _extension.autotunes
        assert (_extension.autotunes, _extension.autotune_file) == (True, "found.json")
    assert (_extension.autotunes, _extension.autotune_file) == (False, None)
    fused_lstm.autotune(True)
    assert _extension.autotunes
    with pytest.raises(TypeError, match="enabled: expected a bool, got str"):
        fused_lstm.autotune("found.json")  # type: ignore[arg-type]
    assert _extension.autotunes


@pytest.mark.parametrize(
    ("value", "state"),
    [("", (False, None)), ("0", (False, None)), ("1", (True, None)), ("a.json", (True, "a.json"))],
)
def test_environment(
    value: str, state: tuple[bool, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSED_LSTM_AUTOTUNE", value)
    assert _extension._read_autotune() == state


def test_environment_refuses_another_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_LSTM_AUTOTUNE", "yes")
    wanted = "FUSED_LSTM_AUTOTUNE: expected 0, 1 or the name of a .json file, got 'yes'"
    with pytest.raises(ValueError, match=wanted):
        _extension._read_autotune()


def test_a_program_that_tunes_nothing_imports_nothing() -> None:
    """On the CPU, although it was asked to: the import reads the variable and no more."""
    program = (
        "import sys, torch, fused_lstm; fused_lstm.LSTM(2, 3, 2)(torch.zeros(4, 1, 2)); "
        "print([m for m in ('tuning', 'wavefront') if 'fused_lstm.' + m in sys.modules], "
        "fused_lstm._extension.autotunes)"
    )
    assert python(program, FUSED_LSTM_AUTOTUNE="1").stdout.strip() == "[] True"


def test_cpu_calls_are_never_asked(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function, "_tune", lambda *_: pytest.fail("asked for a CPU tensor"))
    fused_lstm.LSTM(I, H)(torch.randn(T, B, I))[0].sum().backward()


def test_explain_plan_is_told_of_the_measured_family(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def explain(*arguments: Any) -> str:
        told.append(arguments[-2])
        return "stand-in"

    monkeypatch.setattr(gpu, "explain_plan", explain)
    fused_lstm.explain_plan((T, B, I, H), device="cuda:0", training=False)
    call()
    fused_lstm.explain_plan((T, B, I, H), device="cuda:0", training=False)
    fused_lstm.explain_plan((T, B, I, H), device="cuda:0", training=True)
    assert told == [None, "stepwise", None]


# ---- the file ------------------------------------------------------------------------------------


def forget(gpu: Gpu) -> None:
    """As a new process would begin."""
    gpu.choices.clear()
    gpu.measured.clear()
    for found in (tuning._ready, tuning._times, tuning._told):
        found.clear()


def test_another_process_reads_what_one_has_found(gpu: Gpu, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    with fused_lstm.autotune(file=path), no_warning():
        call()
        call(grad=True)
        found = dict(gpu.choices)
        forget(gpu)
        assert len(call().calls) == 1
        call(grad=True)
        call(index=1)
    assert gpu.measured[0] == "single_block", "another GPU is measured"
    assert {k: v for k, v in gpu.choices.items() if k[0] == 0} == found
    content = json.loads(path.read_text())
    assert (content["fused_lstm"], content["format"]) == ("1.2.3", 1)
    assert sorted(content["devices"]) == ["GPU 0", "GPU 1"]
    times = next(iter(content["devices"]["GPU 0"].values()))
    assert times == gpu.costs
    assert os.listdir(tmp_path) == ["found.json"], "nothing is left beside it"


def test_what_memory_has_goes_to_a_file_that_is_given_later(gpu: Gpu, tmp_path: Path) -> None:
    call()
    gpu.measured.clear()
    with fused_lstm.autotune(file=tmp_path / "found.json"):
        call()
    assert gpu.measured == []
    assert (tmp_path / "found.json").exists()


def test_times_of_other_families_are_not_used(gpu: Gpu, tmp_path: Path) -> None:
    """Found under FUSED_LSTM_CUDA_KERNELS=all, read where grid is off: it is never chosen."""
    gpu.costs["grid"] = 1.0
    with fused_lstm.autotune(file=tmp_path / "found.json"):
        call()
        assert list(gpu.choices.values()) == ["grid"]
        forget(gpu)
        del gpu.costs["grid"]
        call()
    assert set(gpu.measured) == {"single_block", "stepwise"}
    assert list(gpu.choices.values()) == ["stepwise"]


CLASS = f"T<=8 {[B, I, H, H, 1, 'float32', False, True, False]}"


def times(**us: Any) -> str:
    entries = {"GPU 0": {CLASS: us or {"single_block": 1.0, "stepwise": 2.0, "grid": 3.0}}}
    return json.dumps({"fused_lstm": "1.2.3", "format": 1, "devices": entries})


BROKEN = {  # what the file holds; what the warning says, "" for none; whether it may be replaced
    "torn": (times()[:-20], "is torn", True),
    "empty": ("", "is torn", True),
    "no text": ("\xff\xfe", "is torn", True),
    "another program's": ('{"devices": {}}', "is no file of fused_lstm.autotune", False),
    "a list": ("[1, 2]", "is no file of fused_lstm.autotune", False),
    "of an older version": (times().replace("1.2.3", "1.2.2"), "", True),
    "of another format": (times().replace('"format": 1', '"format": 2'), "", True),
    "no devices": ('{"fused_lstm": "1.2.3", "format": 1}', "is damaged", True),
    "words for times": (times(single_block="quick", stepwise=2.0, grid=3.0), "is damaged", True),
    "negative times": (times(single_block=-1.0, stepwise=2.0, grid=3.0), "is damaged", True),
    "no number": (times(single_block=float("nan"), stepwise=2.0, grid=3.0), "is damaged", True),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_cannot_be_used(what: str, gpu: Gpu, tmp_path: Path) -> None:
    text, says, replaced = BROKEN[what]
    path = tmp_path / "found.json"
    path.write_text(text, encoding="latin-1")
    with warnings.catch_warnings(record=True) as seen, fused_lstm.autotune(file=path):
        warnings.simplefilter("always")
        call()
        call(steps=100)
    assert list(gpu.choices.values()) == ["stepwise", "stepwise"], "measured, and not read"
    messages = [str(w.message) for w in seen if issubclass(w.category, RuntimeWarning)]
    assert len(messages) == (1 if says else 0), messages
    if says:
        assert says in messages[0]
        assert str(path) in messages[0]
    if replaced:
        devices = json.loads(path.read_text())["devices"]
        assert len(devices["GPU 0"]) == 2
    else:
        assert path.read_text(encoding="latin-1") == text


def test_a_file_that_can_be_used(gpu: Gpu, tmp_path: Path) -> None:
    """The same as the broken ones, whole: so they are told apart by what is broken."""
    path = tmp_path / "found.json"
    path.write_text(times())
    with no_warning(), fused_lstm.autotune(file=path):
        assert len(call().calls) == 1
    assert list(gpu.choices.values()) == ["single_block"]


def test_a_folder_that_is_not_there_is_one_warning(gpu: Gpu, tmp_path: Path) -> None:
    with fused_lstm.autotune(file=tmp_path / "nowhere" / "found.json"):
        with pytest.warns(RuntimeWarning, match=r"found\.json cannot be written"):
            call()
        with no_warning():
            call(steps=100)
    assert len(gpu.choices) == 2


def test_a_write_that_fails_leaves_the_old_file(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "found.json"
    with fused_lstm.autotune(file=path):
        call()
        before = path.read_text()

        def disk_full(*_: Any) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(os, "replace", disk_full)
        with pytest.warns(RuntimeWarning, match="No space left"):
            call(steps=100)
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["found.json"]


def test_what_another_process_wrote_meanwhile_stays(gpu: Gpu, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    with fused_lstm.autotune(file=path):
        call(steps=100)
        content = json.loads(path.read_text())
        content["devices"]["another GPU"] = content["devices"]["GPU 0"]
        path.write_text(json.dumps(content))
        call()
    devices = json.loads(path.read_text())["devices"]
    assert (len(devices["GPU 0"]), len(devices["another GPU"])) == (2, 1)


def test_the_name_of_a_device(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(_extension, "_cuda_module", gpu)

    class Properties:
        name = "NVIDIA H200"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13000, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    name = tuning.device_name(0)
    assert name == "NVIDIA H200, sm_90, 132 multiprocessors, driver 13000, CUDA 13.0"
