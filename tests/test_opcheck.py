"""What the two operators promise to PyTorch's tools: schemas, fake kernels, tracing by AOTAutograd.

torch.library.opcheck asks that of the operators, which know no derivative. With a derivative it is
asked of `LstmLayer`, the autograd.Function around them, by the check that opcheck itself uses.
"""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from cases import Case, arguments, modules
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.testing._internal.optests import aot_autograd_check

from fused_lstm import _extension, dispatch, ops
from fused_lstm.function import LstmLayer

ALL_CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
    "test_aot_dispatch_dynamic",
)
# opcheck compares the reserve too, which is in lines of 64 bytes: with 15 units vectors of every
# width write all of it, with 7 the narrower ones leave the end of each as it was in memory.
CASES = (
    Case(5, 3, 4, 15),
    Case(4, 3, 2, 15, bidirectional=True, bias=False, proj_size=5),
    Case(6, 3, 4, 15, bidirectional=True, lengths=(2, 6, 3)),
)


def layer(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, list[Tensor], Any]:
    """x, batch_sizes, the state and the ten weights of one call."""
    lstm, _ = modules(case, dtype)
    *x, h0, c0 = (t.detach() for t in arguments(case, dtype))
    parameters = [p.detach() for p in lstm.parameters()]
    ten = dispatch.ten_weights(parameters, case.bias, case.bidirectional, case.proj_size)
    if not case.lengths:
        return x[0], None, [h0, c0], ten
    packed = torch.nn.utils.rnn.pack_sequence(x, enforce_sorted=False)
    return packed.data, packed.batch_sizes, [h0, c0], ten


@pytest.mark.parametrize(
    ("case", "dtype"), [*((c, torch.float32) for c in CASES), (CASES[0], torch.bfloat16)], ids=str
)
def test_opcheck(case: Case, dtype: torch.dtype) -> None:
    x, batch_sizes, state, ten = layer(case, dtype)
    forward, backward = torch.ops.fused_lstm.forward, torch.ops.fused_lstm.backward
    for save in (True, False):
        inputs = (x, batch_sizes, *state, *ten, save)
        torch.library.opcheck(forward.default, inputs, test_utils=ALL_CHECKS)
    # Without a state only the values of batch_sizes tell B, which no static graph can know.
    checks = [c for c in ALL_CHECKS if not (case.lengths and c == "test_aot_dispatch_static")]
    inputs = (x, batch_sizes, None, None, *ten, True)
    torch.library.opcheck(forward.default, inputs, test_utils=checks)
    y, h_n, c_n, reserve = forward(x, batch_sizes, *state, *ten, True)
    exists = (1 << 7) - 1 if case.bidirectional else 0
    full = (63 | exists << 4) & ~(0 if case.proj_size else 1 << 6 | 1 << 10)
    for needs in (0, 1, full):
        inputs = (y, h_n, c_n, x, batch_sizes, *state, *ten, y, reserve, needs)
        torch.library.opcheck(backward.default, inputs, test_utils=ALL_CHECKS)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_function_traces_with_its_gradient(case: Case, dynamic: bool) -> None:
    x, batch_sizes, state, ten = layer(case, torch.float32)
    given = [w is not None for w in ten]
    leaves = [t.clone().requires_grad_() for t in (x, *state, *[w for w in ten if w is not None])]

    def run(batch_sizes: Tensor | None, *leaves: Tensor) -> tuple[Tensor, ...]:
        own = iter(leaves)
        x, h0, c0 = (next(own) for _ in range(3))
        weights = [next(own) if g else None for g in given]
        y, h_n, c_n, _ = LstmLayer.apply(x, batch_sizes, h0, c0, *weights, False)
        return y, h_n, c_n

    aot_autograd_check(run, (batch_sizes, *leaves), {}, dynamic=dynamic)


def test_symbolic_sizes_need_no_symbol_of_their_own() -> None:
    for case in CASES:
        x, batch_sizes, state, ten = layer(case, torch.float32)

        def run(*inputs: Any) -> Any:
            return torch.ops.fused_lstm.forward(*inputs, True)

        graph = make_fx(run, tracing_mode="symbolic")(x, batch_sizes, *state, *ten)
        (node,) = (n for n in graph.graph.nodes if "fused_lstm.forward" in str(n.target))
        assert not any(free_unbacked_symbols(t) for t in node.meta["val"])
        assert isinstance(node.meta["val"][3].shape[0], torch.SymInt)


RESERVES = """
import torch
from fused_lstm import _extension, ops
module = _extension.require()
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for T, B, H, D in ((1, 1, 1, 1), (5, 3, 7, 2), (7, 1, 8, 1), (2, 2, 9, 2), (3, 5, 17, 1)):
        own = ops._reserve_bytes(torch.empty(T, B, 3, dtype=dtype), H, D, False)
        assert own == module.reserve_bytes(T, B, 3, H, H, D, str(dtype)[6:]), (T, B, H, D, dtype)
print(module.isa(), ops._reserve_bytes(torch.empty(5, 3, 4), 7, 2, False))
"""


def test_the_reserve_is_the_same_on_every_processor() -> None:
    """A compiled graph keeps its size, and caches of such graphs are shared by machines."""
    sizes = set()
    for isa in ("avx2", "portable"):  # the widest is that of all other tests
        env = {**os.environ, "FUSED_LSTM_ISA": isa}
        command = [sys.executable, "-c", RESERVES]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        sizes.add(done.stdout.split()[1])
    assert sizes == {str(ops._reserve_bytes(torch.empty(5, 3, 4), 7, 2, False))}


@pytest.mark.skipif(bool(_extension.why_no_cuda), reason=_extension.why_no_cuda)
def test_the_reserve_of_a_gpu() -> None:
    module = _extension.require_cuda()
    for P, D in ((7, 1), (7, 2), (3, 2)):
        with torch._subclasses.fake_tensor.FakeTensorMode():
            fake = torch.empty(5, 3, 4, device="cuda")
            both = [ops._reserve_bytes(fake, 7, D, P != 7, again) for again in (False, True)]
        sizes = (5, 3, 4, 7, P, D, "float32")
        assert both == [module.reserve_bytes(*sizes, recompute=again) for again in (False, True)]
