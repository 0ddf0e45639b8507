"""What stands above the CUDA kernels, without a GPU: who computes, and with which arguments.

A stand-in takes the place of `fused_lstm._C_cuda`, and fake tensors that of tensors on a GPU: they
have its device and no memory. What needs a GPU is in tests/gpu.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fused_lstm
from fused_lstm import _extension, function, marked, ops
from fused_lstm.extras import Extras

T, B, I, H = 4, 3, 5, 7  # noqa: E741
FACTS = {"arch": 90, "sms": 132, "shared_per_block": 232448, "shared_per_sm": 233472}
FORWARD = "fused_lstm.forward.default"
OPERATORS = ("forward", "backward", "marked_forward", "marked_backward", "keep_bits")
OPERATORS += ("recurrence_forward", "recurrence_backward")


class StandIn:
    """The functions of `_C_cuda`, for a GPU of FACTS that the build has code for unless told."""

    toolkit = f"{(torch.version.cuda or '13.0').split('.')[0]}.0"
    why_not = ""

    def build_info(self) -> dict[str, Any]:
        return {"toolkit": self.toolkit, "architectures": ["9.0a"]}

    def device_facts(self, index: int) -> dict[str, int]:
        if index > 1:
            raise RuntimeError("fused_lstm: CUDA could not read a device's attributes")
        return FACTS

    def obstacle(self, arch: int) -> str:
        return self.why_not

    def choice(self, index: int, *call: Any) -> str | None:
        return None

    def explain_plan(self, *arguments: Any) -> str:
        *sizes, training, tf32, facts, measured, options = arguments
        assert (facts, measured) == (FACTS, None)
        return f"stand-in {sizes} training={training} tf32={tf32} options={options}"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """CUDA kernels that are built and turned on."""
    module = StandIn()
    monkeypatch.setattr(_extension, "_cuda_module", module)
    monkeypatch.setattr(_extension, "_cuda_switched_on", True)
    monkeypatch.setattr(_extension, "_cuda_obstacles", {})
    monkeypatch.setattr(_extension, "why_no_cuda", "")
    return module


class Seen(TorchDispatchMode):
    """Records the calls of operators with lstm in their names."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if "lstm" in str(func):
            self.calls.append((str(func), args))
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_gpu() -> Iterator[Seen]:
    """Tensors without memory, and what is computed with them."""
    with FakeTensorMode(), torch.no_grad(), Seen() as seen:
        yield seen


def on_gpu(*shape: int, dtype: torch.dtype = torch.float32, index: int = 0) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=f"cuda:{index}")


def weights(P: int = H, dtype: torch.dtype = torch.float32, index: int = 0) -> list[Tensor]:
    shapes = [(4 * H, I), (4 * H, P), (4 * H,), (4 * H,)] + ([(P, H)] if P != H else [])
    return [on_gpu(*shape, dtype=dtype, index=index) for shape in shapes]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("P", [H, 3])
def test_operator_computes_on_gpu(P: int) -> None:
    with fake_gpu() as seen:
        y, (h, c) = fused_lstm.lstm(on_gpu(T, B, I), None, weights(P), proj_size=P % H)
    assert [name for name, _ in seen.calls] == [FORWARD]
    assert (y.shape, h.shape, c.shape) == ((T, B, P), (1, B, P), (1, B, H))
    assert y.device == h.device == torch.device("cuda:0")


@pytest.mark.usefixtures("kernels")
def test_cell_computes_on_gpu() -> None:
    with fake_gpu() as seen:
        h, c = fused_lstm.functional.lstm_cell(on_gpu(B, I), None, *weights())
    assert [name for name, _ in seen.calls] == [FORWARD]
    assert h.shape == c.shape == (B, H)


def why_not(kernels: StandIn, monkeypatch: pytest.MonkeyPatch, what: str) -> str:
    """Takes one condition away; returns what explain_plan must then say."""
    if what == "not built":
        reason = "fused_lstm: the compiled extension fused_lstm._C_cuda has not been built; how"
        monkeypatch.setattr(_extension, "_cuda_module", None)
        monkeypatch.setattr(_extension, "why_no_cuda", reason)
        return reason
    if what == "off":
        monkeypatch.setattr(_extension, "_cuda_switched_on", False)
        return "off by default: they have run on the CPU stand-in only; FUSED_LSTM_CUDA_KERNELS=1"
    if what == "architecture":
        kernels.why_not = "built for 9.0a, this GPU has 7.5"
        return kernels.why_not
    monkeypatch.setattr(kernels, "device_facts", lambda index: StandIn().device_facts(7))
    return "CUDA could not read a device's attributes"


@pytest.mark.parametrize("what", ["not built", "off", "architecture", "no device"])
def test_torch_computes_where_kernels_do_not(
    what: str, kernels: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = why_not(kernels, monkeypatch, what)
    plan = fused_lstm.explain_plan((T, B, I, H), device="cuda:0")
    assert plan.startswith("torch's own LSTM (")
    assert reason in plan
    # Not run: without a GPU torch's own LSTM fails even on tensors without memory.
    monkeypatch.setattr(fused_lstm.dispatch, "torch_lstm", lambda *_: ("torch's", "h", "c"))
    with fake_gpu():
        y, _ = fused_lstm.lstm(on_gpu(T, B, I), None, weights())
    assert y == "torch's"


@pytest.mark.usefixtures("kernels")
def test_explain_plan_on_gpu() -> None:
    lstm = fused_lstm.LSTM(I, H, 2, device="meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
        strict = fused_lstm.explain_plan((T, B, I, H), device="cuda:1", training=False)
    assert f"stand-in {[T, B, I, H, H, 1, 'float32']} training=False tf32=False" in strict
    assert "options=False" in strict
    assert "options=True" in fused_lstm.explain_plan((T, B, I, H), device="cuda:1", options=True)
    assert strict.endswith("these kernels have run on the CPU stand-in only")
    assert "tf32=True" in fused_lstm.explain_plan((T, B, I, H), device="cuda:1", proj_size=3)
    assert "no kernel for device 'meta'" in fused_lstm.explain_plan(lstm, T, B)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("allowed", [True, False])
def test_operator_is_told_of_the_switch(allowed: bool) -> None:
    """That of cuDNN for RNNs, by its new name and by its old one; it is the last argument."""
    for switch, on, off in (
        ((torch.backends.cudnn.rnn, "fp32_precision"), "tf32", "ieee"),
        ((torch.backends.cudnn, "allow_tf32"), True, False),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*switch, on if allowed else off)
            with fake_gpu() as seen:
                fused_lstm.lstm(on_gpu(T, B, I), None, weights())
        (call,) = seen.calls
        # The dispatcher leaves out a flag that has its default, which is False.
        assert (len(call[1]) == 16 and call[1][-1]) is allowed, switch


def test_switch_is_on_by_default_and_not_read_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert function.tf32_allowed()
    monkeypatch.setattr(function, "tf32_allowed", lambda: pytest.fail("read for a CPU tensor"))
    fused_lstm.LSTM(I, H)(torch.randn(T, B, I))[0].sum().backward()


def test_what_is_asked_of_the_device_is_a_constant_of_compiled_graphs(
    kernels: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def device_facts(index: int) -> dict[str, int]:
        torch._dynamo.graph_break()  # as a function of a compiled module does
        return FACTS

    monkeypatch.setattr(kernels, "device_facts", device_facts)

    def ask(x: Tensor) -> Tensor:
        return x + 1 if function.tf32_allowed() and _extension.cuda_obstacle(0) is None else x

    assert torch.compile(ask, backend="eager", fullgraph=True)(torch.zeros(1)) == 1


@pytest.mark.parametrize("tf32", [True, False])
def test_backward_is_told_what_forward_was(tf32: bool) -> None:
    ten = [torch.randn(s) for s in ((4 * H, I), (4 * H, H), (4 * H,), (4 * H,))] + [None] * 6
    x = torch.randn(T, B, I, requires_grad=True)
    y, *_ = function.LstmLayer.apply(x, None, None, None, *ten, tf32)
    with Seen() as seen:
        y.sum().backward()
    (call,) = seen.calls
    assert call[0] == "fused_lstm.backward.default"
    assert (len(call[1]) == 21 and call[1][-1]) is tf32


@pytest.mark.usefixtures("kernels")
def test_reserve_is_the_cuda_kernels() -> None:
    with fake_gpu():
        ten = [*weights(), *[None] * 6]
        *_, reserve = torch.ops.fused_lstm.forward(on_gpu(T, B, I), None, None, None, *ten, True)
    gates, cells = T * B * 4 * H * 4, T * B * H * 4
    assert (gates, cells) == (1344, 336)
    assert reserve.shape == (
        1536 + 512,
    )  # each up to a multiple of 256, as in kernels/cuda/reserve.h
    assert reserve.device == torch.device("cuda:0")


@pytest.mark.usefixtures("kernels")
def test_operators_compute_calls_with_options_on_gpu() -> None:
    extras = Extras(zoneout=(0.1, 0.2))
    with fake_gpu() as seen:
        lengths = torch.empty(B, dtype=torch.int64, device="cuda:0")
        own = {"lengths": lengths, "return_cells": True, "training": True, "extras": extras}
        y, _, cells = fused_lstm.lstm(on_gpu(T, B, I), None, weights(), **own)
    names = ["fused_lstm.keep_bits.default", "fused_lstm.marked_forward.default"]
    assert [name for name, _ in seen.calls] == names
    drawn, forward = (arguments for _, arguments in seen.calls)
    assert drawn[0].device == forward[14].device == torch.device("cuda:0")
    assert forward[14].shape == (T, B, H)  # keep
    assert y.device == cells.device == torch.device("cuda:0")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("recompute", "nbytes"), [(False, 1536 + 512), (True, 512)])
def test_reserve_of_calls_with_options(recompute: bool, nbytes: int) -> None:
    with fake_gpu():
        ten = [*weights(), *[None] * 6]
        options = (None, None, 0.0, 0.0, recompute, False, True)
        operator = torch.ops.fused_lstm.marked_forward
        *_, reserve = operator(on_gpu(T, B, I), None, None, None, *ten, *options)
    assert reserve.shape == (nbytes,)


@pytest.mark.usefixtures("kernels")
def test_options_with_a_projection_have_no_kernel_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not run: without a GPU the specification fails even on tensors without memory."""
    monkeypatch.setattr(marked, "reference_layer", lambda x, *_: (x, x, x, x))
    with fake_gpu() as seen:
        _, _, cells = fused_lstm.lstm(
            on_gpu(T, B, I), None, weights(3), proj_size=3, return_cells=True
        )
    assert not seen.calls
    assert cells.shape == (T, B, I)
    plan = fused_lstm.explain_plan((T, B, I, H), device="cuda:0", proj_size=3, options=True)
    assert plan.startswith(
        "the specification in plain PyTorch (no kernel with reset, lengths or return_cells and a "
        "proj_size"
    )


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a VariantLSTM asks of torch alone is not run: it needs a GPU even without memory."""
    monkeypatch.setattr(fused_lstm.VariantLSTM, "reset_parameters", lambda self: None)

    def project(x: Tensor, w_ih: Tensor, *_: Any) -> Tensor:
        return x.new_empty(*x.shape[:2], w_ih.shape[0])

    monkeypatch.setattr(fused_lstm.reference, "variant_input", project)


@pytest.mark.usefixtures("kernels", "undrawn")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_operators_compute_variants_on_gpu(dtype: torch.dtype) -> None:
    with fake_gpu() as seen:
        own: dict[str, Any] = {"bidirectional": True, "layer_norm": True, "device": "cuda:0"}
        lstm = fused_lstm.VariantLSTM(I, H, dtype=dtype, **own)
        y, (h_n, _) = lstm(on_gpu(T, B, I, dtype=dtype))
        plan = fused_lstm.explain_plan(lstm, T, B)
    assert [name for name, _ in seen.calls] == ["fused_lstm.recurrence_forward.default"] * 2
    assert [arguments[8] for _, arguments in seen.calls] == [False, True]  # reverse
    assert (y.shape, h_n.shape, y.dtype) == ((T, B, 2 * H), (2, B, H), dtype)
    assert y.device == torch.device("cuda:0")
    assert plan.startswith(f"cuda stepwise: input projected by torch for all {T} steps")
    assert plan.endswith("these kernels have run on the CPU stand-in only")
    assert ("in float32" in plan) is (dtype is torch.bfloat16)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("what", ["not built", "off", "architecture", "no device"])
def test_the_specification_computes_variants_where_kernels_do_not(
    what: str, kernels: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = why_not(kernels, monkeypatch, what)
    called = []

    def specification(zx: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        called.append(zx.shape)
        return zx.new_empty(T, B, H), zx.new_empty(B, H), zx.new_empty(B, H)

    monkeypatch.setattr(fused_lstm.reference, "variant_direction", specification)
    with fake_gpu() as seen:
        lstm = fused_lstm.VariantLSTM(I, H, peepholes=True, device="cuda:0")
        lstm(on_gpu(T, B, I))
        plan = fused_lstm.explain_plan(lstm, T, B)
    assert called == [(T, B, 4 * H)]
    assert not seen.calls
    assert plan.startswith("the specification in plain PyTorch (")
    assert reason in plan


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("norm", "nbytes"), [(False, 1024 + 512), (True, 2 * 1024 + 512 + 256)])
def test_reserve_of_variants(norm: bool, nbytes: int) -> None:
    """With coupled gates: gates [T, B, 3H], cells; normalised products and three moments a row."""
    with fake_gpu():
        ln = [on_gpu(3 * H), on_gpu(H), None] if norm else [None] * 3
        tensors = (on_gpu(T, B, 3 * H), None, None, on_gpu(3 * H, H), None)
        operator = torch.ops.fused_lstm.recurrence_forward
        *_, reserve = operator(*tensors, *ln, False, 1.0, 1.0, True)
    assert (T * B * 3 * H * 4, T * B * H * 4, T * B * 3 * 4) == (1008, 336, 144)
    assert reserve.shape == (nbytes,)


@pytest.fixture
def autocast(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Autocast to a dtype on GPUs; torch.autocast itself does nothing where there is none."""
    torch.set_autocast_dtype("cuda", request.param)
    torch.set_autocast_enabled("cuda", True)
    yield request.param
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", torch.float16)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], indirect=True)
def test_autocast_casts_everything_but_float64(autocast: torch.dtype) -> None:
    low = autocast
    with fake_gpu():
        y, (h, c) = fused_lstm.lstm(on_gpu(T, B, I), None, weights())
        state = (on_gpu(1, B, H, dtype=low), on_gpu(1, B, H))
        y2, (h2, c2) = fused_lstm.lstm(on_gpu(T, B, I, dtype=low), state, weights())
        cell = fused_lstm.functional.lstm_cell(on_gpu(B, I), None, *weights())
        double, _ = fused_lstm.lstm(
            on_gpu(T, B, I, dtype=torch.float64), None, weights(dtype=torch.float64)
        )
    assert {t.dtype for t in (y, h, c, y2, h2, c2, *cell)} == {low}
    assert double.dtype is torch.float64


@pytest.mark.usefixtures("kernels")
def test_tensors_of_two_gpus_are_refused() -> None:
    with fake_gpu(), pytest.raises(RuntimeError, match=r"weights\[0\].*cuda:0.*got.*cuda:1"):
        fused_lstm.lstm(on_gpu(T, B, I), None, weights(index=1))


def python(program: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).resolve().parent.parent
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False), ("", False), ("all", True)])
def test_environment_turns_kernels_on(value: str, on: bool) -> None:
    program = "import fused_lstm._extension as e; print(e._cuda_switched_on)"
    assert python(program, FUSED_LSTM_CUDA_KERNELS=value).stdout.strip() == str(on)


def test_environment_refuses_another_word() -> None:
    failed = python("import fused_lstm", FUSED_LSTM_CUDA_KERNELS="yes")
    assert "FUSED_LSTM_CUDA_KERNELS: expected 0, 1 or all, got 'yes'" in failed.stderr


@pytest.mark.parametrize(("value", "wanted"), [("all", [True]), ("1", []), ("0", [])])
def test_only_all_lets_blocks_wait_for_each_other(
    value: str, wanted: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The families cluster and grid have a switch of their own."""
    asked: list[bool] = []
    module = StandIn()
    module.set_across_blocks = asked.append  # type: ignore[attr-defined]
    monkeypatch.setenv("FUSED_LSTM_CUDA_KERNELS", value)
    monkeypatch.setattr(_extension, "available", False)
    monkeypatch.setattr(_extension, "_load_cuda", lambda: (module, ""))
    for name in ("_cuda_module", "why_no_cuda", "_cuda_switched_on"):
        monkeypatch.setattr(_extension, name, getattr(_extension, name))
    _extension.load()
    assert asked == wanted


def load_cuda(patch: pytest.MonkeyPatch, imported: Any, version: str | None) -> tuple[Any, str]:
    """What `_extension` makes of an import of `_C_cuda` under a torch with this CUDA version."""

    def import_module(name: str) -> Any:
        assert name == "fused_lstm._C_cuda"
        if isinstance(imported, ImportError):
            raise imported
        return imported

    patch.setattr(_extension, "import_module", import_module)
    patch.setattr(torch.version, "cuda", version)
    return _extension._load_cuda()


def test_loading_says_what_why_and_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = StandIn()
    module.toolkit = "13.0"
    assert load_cuda(monkeypatch, module, "13.2") == (module, "")
    _, text = load_cuda(monkeypatch, module, "12.8")
    assert "_C_cuda is for CUDA 13.0" in text
    assert "has CUDA 12.8; with a toolkit of that major version" in text
    _, text = load_cuda(monkeypatch, module, None)
    assert f"torch {torch.__version__} is built without CUDA" in text
    monkeypatch.setattr(_extension, "__file__", str(tmp_path / "_extension.py"))
    _, text = load_cuda(monkeypatch, ImportError("no such module"), "13.0")
    assert "fused_lstm._C_cuda has not been built" in text
    assert "FUSED_LSTM_CUDA=1 python -m pip install --no-build-isolation ." in text
    (tmp_path / "_C_cuda.cpython-39-x86_64-linux-gnu.so").write_bytes(b"")
    _, text = load_cuda(monkeypatch, ImportError("no such module"), "13.0")
    assert "built for another Python" in text


def test_require_cuda_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "_cuda_module", None)
    monkeypatch.setattr(_extension, "why_no_cuda", "because")
    with pytest.raises(ImportError, match="because"):
        _extension.require_cuda()


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_full_gpu_is_torchs_own_error(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the extension can only say in words arrives as the class that programs catch."""

    def no_memory(*_: Any) -> Any:
        raise RuntimeError("CUDA out of memory: torch could not allocate a tensor of sizes [1]")

    monkeypatch.setattr(ops, f"_{operator}", no_memory)
    with pytest.raises(torch.OutOfMemoryError, match="could not allocate"):
        getattr(ops, operator)(*[None] * 8)


@pytest.mark.parametrize("operator", OPERATORS)
def test_any_other_error_stays_what_it_was(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("fused_lstm: x: expected 5 features in its last dimension, got 4")

    monkeypatch.setattr(ops, f"_{operator}", refuse)
    with pytest.raises(RuntimeError, match="expected 5 features") as raised:
        getattr(ops, operator)(*[None] * 8)
    assert type(raised.value) is RuntimeError
