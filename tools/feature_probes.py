"""What tools/features.py tries on every LSTM: one function per row of the table.

A probe is given what makes a layer, as nn.LSTM's constructor does. It returns if the layer does
what the row says, with the right values; it raises if not, and the error is what was seen. Right is
what the same layer computes plainly: row by row, eagerly, in float64.
"""

import copy
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import pack_sequence

import fused_lstm
import fused_lstm.onnx

Make = Callable[..., Any]
T, B, I, H = 6, 3, 4, 8  # noqa: E741
LENGTHS = ((6, 3), (9, 5), (12, 4))  # T, B: one graph should serve them all
LOW = {torch.bfloat16: 0.05, torch.float16: 0.01}  # of rounding h at every step
HANGS_S = 4


class Probe(NamedTuple):
    title: str
    run: Callable[[Make], None]
    quick: bool = True  # tried by the tests too
    processor: bool = False  # nn.LSTM's answer depends on the processor


PROBES: dict[str, Probe] = {}


def probe(title: str, **options: Any) -> Callable[[Callable[[Make], None]], Callable[[Make], None]]:
    """Registers a probe under its function's name."""

    def register(f: Callable[[Make], None]) -> Callable[[Make], None]:
        PROBES[f.__name__] = Probe(title, f, **options)
        return f

    return register


def close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Raises unless the largest difference is within the tolerance, and nothing is NaN."""
    pairs = zip(flat(actual), flat(expected), strict=True)
    for a, e in pairs:
        assert a.shape == e.shape, f"shape {tuple(a.shape)}, expected {tuple(e.shape)}"
        difference = (a.double() - e.double()).abs().max().item()
        assert difference <= tolerance, f"differs by {difference:.1e}"


def flat(outputs: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, Tensor)]


def x_of(steps: int = T, batch: int = B, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(steps, batch, I, dtype=dtype)


def weights_of(layer: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in layer.named_parameters()}


class Model(nn.Module):
    """A layer inside a model, which gives y alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


# The interface ------------------------------------------------------------------------------------


@probe("`nn.LSTM`'s `state_dict` loads, computes the same, and goes back")
def state_dict(make: Make) -> None:
    theirs, layer, x = nn.LSTM(I, H), make(I, H), x_of()
    layer.load_state_dict(theirs.state_dict())
    close(layer(x), theirs(x))
    nn.LSTM(I, H).load_state_dict(layer.state_dict())


@probe("layers, two directions, dropout in one module")
def layers(make: Make) -> None:
    layer = make(I, H, num_layers=2, bidirectional=True, dropout=0.5)
    assert not torch.equal(layer(x_of())[0], layer(x_of())[0])
    assert layer.eval()(x_of())[0].shape == (T, B, 2 * H)


@probe("an initial state, with its gradient")
def initial_state(make: Make) -> None:
    layer, x = make(I, H), x_of()
    h, c = (torch.randn(1, B, H, requires_grad=True) for _ in range(2))
    y, _ = layer(x, (h, c))
    assert not torch.equal(y, layer(x)[0])
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(y.sum(), (h, c)))


@probe("`PackedSequence`")
def packed(make: Make) -> None:
    layer, rows = make(I, H), [torch.randn(n, I) for n in (2, 5, 1)]
    y, (h, c) = layer(pack_sequence(rows, enforce_sorted=False))
    padded, _ = nn.utils.rnn.pad_packed_sequence(y)
    for k, row in enumerate(rows):
        alone, (h_alone, c_alone) = layer(row.unsqueeze(1))
        own = (padded[: len(row), k : k + 1], h[:, k : k + 1], c[:, k : k + 1])
        close(own, (alone, h_alone, c_alone))


@probe("`proj_size`")
def proj_size(make: Make) -> None:
    y, (h, c) = make(I, H, proj_size=3)(x_of())
    assert (y.shape, h.shape, c.shape) == ((T, B, 3), (1, B, 3), (1, B, H))
    y.sum().backward()


@probe("input without a batch dimension")
def unbatched(make: Make) -> None:
    layer, x = make(I, H), x_of(batch=1)
    close(layer(x[:, 0])[0], layer(x)[0][:, 0])


@probe("deepcopy and pickle")
def copies(make: Make) -> None:
    layer, x = make(I, H), x_of()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        close(other(x), layer(x), 0)


@probe("`skip_init`")
def skip_init(make: Make) -> None:
    torch.nn.utils.skip_init(type(make(I, H)), I, H)(x_of())


@probe("`torch.utils.swap_tensors` of a weight")
def swapped(make: Make) -> None:
    layer, x = make(I, H), x_of()
    other = copy.deepcopy(layer)
    next(other.parameters()).data.zero_()
    p = next(layer.parameters())
    expected = other(x)[0]
    torch.utils.swap_tensors(p, nn.Parameter(torch.zeros_like(p)))
    close(layer(x)[0], expected)


@probe("weights changed through `.data` count at once")
def data_edits(make: Make) -> None:
    layer, x = make(I, H), x_of()
    before = layer(x)[0].clone()
    for p in layer.parameters():
        p.data.mul_(0.5)
    after = layer(x)[0]
    assert not torch.equal(after, before)
    close(after, copy.deepcopy(layer)(x)[0], 0)


# Numbers ------------------------------------------------------------------------------------------


@probe("float64: gradients agree with finite differences")
def float64(make: Make) -> None:
    layer = make(I, 3, dtype=torch.float64)
    x = x_of(3, 2, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: layer(t)[0], x)


@probe("float64: double backward agrees with finite differences")
def double_backward(make: Make) -> None:
    layer = make(I, 3, dtype=torch.float64)
    x = x_of(3, 2, torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: layer(t)[0], x)


def low(make: Make, dtype: torch.dtype) -> None:
    layer, x = make(I, H, dtype=dtype), x_of(dtype=dtype)
    y, _ = layer(x)
    assert y.dtype is dtype, f"y is {y.dtype}"
    close(y, copy.deepcopy(layer).double()(x.double())[0], LOW[dtype])
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@probe("bfloat16 on the CPU, training too", processor=True)
def bfloat16(make: Make) -> None:
    low(make, torch.bfloat16)


@probe("float16 on the CPU, training too", processor=True)
def float16(make: Make) -> None:
    low(make, torch.float16)


@probe("bitwise the same from run to run")
def repeats(make: Make) -> None:
    layer, x = make(I, H), x_of(20, 16)
    torch.set_num_threads(2)

    def once() -> list[Tensor]:
        y, _ = layer(x)
        return [y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))]

    first = once()
    for _ in range(3):
        close(once(), first, 0)


# How it is computed -------------------------------------------------------------------------------


def one_call(make: Make, dtype: torch.dtype = torch.float32, pack: bool = False, **options: Any):  # type: ignore[no-untyped-def]
    """Raises if the number of operators, forward and backward, grows with the number of steps."""
    layer = make(I, H, dtype=dtype, **options)

    def operators(steps: int) -> int:
        x: Any = x_of(steps, B, dtype)
        if pack:
            x = pack_sequence([x[: steps - k, k] for k in range(B)])

        def once() -> None:
            y, _ = layer(x)
            (y.data if pack else y).sum().backward()

        once()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            once()
        return len(seen.events())

    short, long = operators(8), operators(16)
    assert long - short < 8, f"{short} operators for 8 steps, {long} for 16"


@probe("a whole sequence by one operator: float32", processor=True)
def one_call_float32(make: Make) -> None:
    one_call(make)


@probe("... float64", processor=True)
def one_call_float64(make: Make) -> None:
    one_call(make, torch.float64)


@probe("... bfloat16", processor=True)
def one_call_bfloat16(make: Make) -> None:
    one_call(make, torch.bfloat16)


@probe("... float16", processor=True)
def one_call_float16(make: Make) -> None:
    one_call(make, torch.float16)


@probe("... `proj_size`", processor=True)
def one_call_proj_size(make: Make) -> None:
    one_call(make, proj_size=3)


@probe("... `PackedSequence`", processor=True)
def one_call_packed(make: Make) -> None:
    one_call(make, pack=True)


# torch.func ---------------------------------------------------------------------------------------


@probe("`vmap` over inputs")
def vmap_inputs(make: Make) -> None:
    layer, many = make(I, H), torch.randn(5, T, B, I)
    close(vmap(lambda x: layer(x)[0])(many), torch.stack([layer(x)[0] for x in many]))


@probe("`vmap` over weights: an ensemble")
def ensemble(make: Make) -> None:
    members, x = [make(I, H) for _ in range(3)], x_of()
    parameters, buffers = stack_module_state(members)
    found = vmap(lambda p, b: functional_call(members[0], (p, b), (x,))[0])(parameters, buffers)
    close(found, torch.stack([m(x)[0] for m in members]))


def gradients_of_each(make: Make, dtype: torch.dtype) -> None:
    layer, x = make(I, H, dtype=dtype), x_of(dtype=dtype)
    named = weights_of(layer)

    def loss(p: Any, row: Tensor) -> Tensor:
        return functional_call(layer, p, (row.unsqueeze(1),))[0].square().sum()

    together = vmap(grad(loss), (None, 1))(named, x)
    for k in range(B):
        alone = layer(x[:, k : k + 1])[0].square().sum()
        own = torch.autograd.grad(alone, list(layer.parameters()))
        close([g[k] for g in together.values()], own)


@probe("per-sample gradients, `vmap(grad(...))`, in float32")
def per_sample(make: Make) -> None:
    gradients_of_each(make, torch.float32)


@probe("... in float64")
def per_sample_float64(make: Make) -> None:
    gradients_of_each(make, torch.float64)


@probe("forward mode (`jvp`) in float32")
def forward_mode(make: Make) -> None:
    layer, x, tangent = make(I, H), x_of(), x_of()
    _, found = jvp(lambda t: layer(t)[0], (x,), (tangent,))
    jacobian = torch.autograd.functional.jacobian(lambda t: layer(t)[0], x)
    close(found, torch.tensordot(jacobian, tangent, 3), 1e-4)


@probe("`hessian` in float32")
def second_derivatives(make: Make) -> None:
    layer, x = make(I, H), x_of(2, 1)

    def loss(t: Tensor) -> Tensor:
        return layer(t)[0].square().sum()

    close(hessian(loss)(x), torch.autograd.functional.hessian(loss, x), 1e-4)


# Graphs -------------------------------------------------------------------------------------------


def compiled(make: Make, **options: Any) -> None:
    model = Model(make(I, H))
    torch._dynamo.reset()
    fast = torch.compile(model, fullgraph=True, dynamic=True, **options)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for steps, batch in LENGTHS:
            x = x_of(steps, batch)
            runs = []
            for run in (fast, model):
                y = run(x)
                runs.append([y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))])
            close(*runs, 1e-4)


@probe("`torch.compile(fullgraph=True)`, training, one graph for every T and B")
def compile_fullgraph(make: Make) -> None:
    compiled(make, backend="aot_eager")


@probe("... by inductor", quick=False)
def compile_inductor(make: Make) -> None:
    compiled(make)


@probe("`torch.compile(fullgraph=True)` of `torch.func.grad`")
def compile_of_grad(make: Make) -> None:
    layer, x = make(I, H), x_of()

    def loss(p: Any) -> Tensor:
        return functional_call(layer, p, (x,))[0].square().sum()

    torch._dynamo.reset()
    named = weights_of(layer)
    found = torch.compile(grad(loss), backend="aot_eager", fullgraph=True)(named)
    close(list(found.values()), list(grad(loss)(named).values()), 1e-4)


def exported(make: Make) -> tuple[nn.Module, Any]:
    model = Model(make(I, H)).eval()
    shapes = {"x": {0: torch.export.Dim("steps", min=2), 1: torch.export.Dim("batch", min=2)}}
    return model, torch.export.export(model, (x_of(),), dynamic_shapes=shapes)


@probe("`torch.export` with any number of steps and any batch")
def export(make: Make) -> None:
    model, program = exported(make)
    for steps, batch in LENGTHS:
        x = x_of(steps, batch)
        close(program.module()(x), model(x))


@probe("... AOTInductor", quick=False)
def aot_inductor(make: Make) -> None:
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        model, program = exported(make)
        path = str(Path(folder) / "m.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=path)
        package = torch._inductor.aoti_load_package(path)
        for steps, batch in LENGTHS:
            x = x_of(steps, batch)
            close(package(x), model(x))


@probe("`torch.jit.trace`, then another T and B")
def jit_trace(make: Make) -> None:
    model = Model(make(I, H))
    traced = torch.jit.trace(model, x_of())
    x = x_of(*LENGTHS[1])
    close(traced(x), model(x))


@probe("`torch.jit.script` of a model with it")
def jit_script(make: Make) -> None:
    model = Model(make(I, H))
    scripted, x = torch.jit.script(model), x_of()
    close(scripted(x), model(x))


def onnx(make: Make, dynamo: bool) -> None:
    """Raises unless the file holds one LSTM node, no loop, and ONNX Runtime computes the same."""
    import onnx
    import onnxruntime

    layer = make(I, H)
    model, x = Model(layer).eval(), x_of()
    options: dict[str, Any] = {"dynamic_shapes": ({0: "steps", 1: "batch"},)}
    if not dynamo:
        options = {"input_names": ["x"], "dynamic_axes": {"x": {0: "steps", 1: "batch"}}}
    export = torch.onnx.export
    if dynamo and make is fused_lstm.LSTM:
        export = fused_lstm.onnx.export
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "m.onnx")
        chosen = {} if export is not torch.onnx.export else {"dynamo": dynamo}
        export(model, (x,), file, verbose=False, **chosen, **options)
        nodes = [node.op_type for node in onnx.load(file).graph.node]
        assert nodes.count("LSTM") == 1, f"no LSTM node but {len(nodes)} others"
        assert not {"Loop", "Scan"} & set(nodes), "a loop"
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for steps, batch in LENGTHS:
            x = x_of(steps, batch)
            (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            close(torch.from_numpy(found), model(x))


@probe("ONNX's `LSTM` node for any T and B, by torch.export", quick=False)
def onnx_node(make: Make) -> None:
    onnx(make, dynamo=True)


@probe("... by the old exporter", quick=False)
def onnx_node_old(make: Make) -> None:
    onnx(make, dynamo=False)


# Around it ----------------------------------------------------------------------------------------


def autocast(make: Make, dtype: torch.dtype) -> None:
    layer, x = make(I, H), x_of()
    with torch.autocast("cpu", dtype):
        y, _ = layer(x)
    assert y.dtype is dtype, f"y is {y.dtype}"
    y.sum().backward()
    close(y, layer(x)[0], LOW[dtype])


@probe("autocast on the CPU in bfloat16, training too", processor=True)
def autocast_bfloat16(make: Make) -> None:
    autocast(make, torch.bfloat16)


@probe("autocast on the CPU in float16, training too", processor=True)
def autocast_float16(make: Make) -> None:
    autocast(make, torch.float16)


@probe("activation checkpointing")
def checkpointing(make: Make) -> None:
    layer, x = make(I, H), x_of().requires_grad_()
    again = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)[0]
    grads = [torch.autograd.grad(y.square().sum(), x) for y in (again, layer(x)[0])]
    close(*grads)


def in_processes(count: int, task: Callable[..., None], *arguments: Any) -> None:
    """Runs task(rank, folder, *arguments) in fresh processes; raises what one of them wrote."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        own = [context.Process(target=task, args=(r, folder, *arguments)) for r in range(count)]
        for process in own:
            process.start()
        for rank, process in enumerate(own):
            process.join(90)
            process.kill()
            file = Path(folder) / str(rank)
            said = file.read_text() if file.exists() else "its process died"
            assert said == "kept", said


def fork_and_call(rank: int, folder: str, make: Make) -> None:
    """Starts threads, forks, and writes whether the child's call returned."""
    torch.set_num_threads(2)
    layer, x = make(64, 64), torch.randn(50, 32, 64)
    layer(x)
    child = os.fork()
    if child == 0:
        layer(x)
        os._exit(0)
    begun, returned = time.monotonic(), False
    while not returned and time.monotonic() - begun < HANGS_S:
        time.sleep(0.02)
        returned = os.waitpid(child, os.WNOHANG)[0] == child
    if not returned:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    (Path(folder) / str(rank)).write_text("kept" if returned else f"hangs: {HANGS_S} s waited")


@probe("a forked child that keeps 2 threads")
def forked(make: Make) -> None:
    in_processes(1, fork_and_call, make)


def half_a_batch(rank: int, folder: str, make: Make, kind: str) -> None:
    """One of two processes; writes whether its gradients are those of the whole batch."""
    try:
        store = f"file://{folder}/meet"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
        torch.manual_seed(0)
        model, x = Model(make(I, H)), x_of(T, 4)
        whole = copy.deepcopy(model)
        whole(x).square().mean().backward()
        if kind == "ddp":
            model = nn.parallel.DistributedDataParallel(model)  # type: ignore[assignment]
        else:
            fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        model(x.chunk(2, 1)[rank]).square().mean().backward()
        grads = [p.grad for p in model.parameters()]
        if kind != "ddp":
            grads = [g.full_tensor() for g in grads]  # type: ignore[union-attr]
        close(grads, [p.grad for p in whole.parameters()])
        said = "kept"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    (Path(folder) / str(rank)).write_text(said)
    os._exit(0)  # gloo's threads are not waited for


@probe("DDP, two processes", quick=False)
def ddp(make: Make) -> None:
    in_processes(2, half_a_batch, make, "ddp")


@probe("FSDP2 (`fully_shard`), two processes", quick=False)
def fsdp(make: Make) -> None:
    in_processes(2, half_a_batch, make, "fsdp")


@probe("changes the LSTMs inside another model, in place")
def convert(make: Make) -> None:
    if make is not fused_lstm.LSTM:
        raise NotImplementedError("has no function for it")
    model, x = Model(nn.LSTM(I, H)), x_of()
    expected, parameters = model(x), list(model.parameters())
    close(fused_lstm.convert(model)(x), expected)
    assert isinstance(model.layer, fused_lstm.LSTM)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


# What the others have -----------------------------------------------------------------------------


@probe("zoneout inside the layer")
def zoneout(make: Make) -> None:
    layer, x = make(I, H, zoneout=0.5), x_of()
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    close(layer(x)[0], layer(x)[0])


@probe("DropConnect on the recurrent weights")
def drop_connect(make: Make) -> None:
    if make is nn.LSTM:
        raise NotImplementedError("its dropout is between layers")
    name = "weight_dropout" if make is fused_lstm.LSTM else "dropout"  # as haste calls it
    layer, x = make(I, H, **{name: 0.5}), x_of()
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    close(layer(x)[0], layer(x)[0])


@probe("variational dropout of h: one mask for a sequence")
def recurrent_dropout(make: Make) -> None:
    layer, x = make(I, H, recurrent_dropout=0.5), x_of()
    assert not torch.equal(layer(x)[0], layer(x)[0])


@probe("the state is cleared inside a row (`reset`)")
def reset(make: Make) -> None:
    layer, x = make(I, H), x_of()
    begins = torch.zeros(T, B, dtype=torch.bool)
    begins[2] = True
    y, _ = layer(x, reset=begins)
    close(y[2:], layer(x[2:])[0])


@probe("rows of other lengths without packing (`lengths`)")
def lengths(make: Make) -> None:
    layer, x = make(I, H), x_of()
    y, (h_n, _) = layer(x, lengths=torch.full((B,), 3))
    close(h_n, layer(x[:3])[1][0])
    assert not y[3:].any()


@probe("the cell state of every step")
def cells(make: Make) -> None:
    layer, x = make(I, H), x_of()
    _, (_, c_n), every = layer(x, return_cells=True)
    close(every[-1:], c_n)
    close(every[:1], layer(x[:1])[1][1])


@probe("gates computed again in backward instead of kept")
def recompute(make: Make) -> None:
    layer, x = make(I, H, recompute=True), x_of().requires_grad_()
    plain = make(I, H)
    plain.load_state_dict(layer.state_dict())
    close(*(torch.autograd.grad(own(x)[0].square().sum(), x)[0] for own in (layer, plain)))


@probe("LayerNorm inside the cell")
def layer_norm(make: Make) -> None:
    layer, x = variant_of(make, layer_norm=True), x_of()
    y, _ = layer(x)
    y.sum().backward()
    assert y.shape == (T, B, H)
    scaled, _ = layer(x * 7)  # LayerNorm takes the scale away, and its epsilon leaves a rest
    assert (scaled - y).abs().max() < 0.02


@probe("peepholes")
def peepholes(make: Make) -> None:
    layer, x = variant_of(make, peepholes=True), x_of()
    layer(x)[0].sum().backward()
    assert any("peephole" in name for name, _ in layer.named_parameters())


def variant_of(make: Make, **option: bool) -> nn.Module:
    """A layer of the class that an implementation has for it, or of its LSTM's own option."""
    if make is fused_lstm.LSTM:
        return fused_lstm.VariantLSTM(I, H, **option)
    if make.__name__ == "make_haste" and "layer_norm" in option:
        import haste_pytorch  # type: ignore[import-not-found]

        layer: nn.Module = haste_pytorch.LayerNormLSTM(I, H)
        return layer
    return make(I, H, **option)


@probe("weights in int8 on the CPU")
def int8(make: Make) -> None:
    layer, x = make(I, H).eval(), x_of()
    with torch.no_grad():
        before, _ = layer(x)
        layer.freeze("int8")
        close(layer(x)[0], before, 0.02)


@probe("heads: a block-diagonal recurrent matrix in one call")
def heads(make: Make) -> None:
    layer, x = make(I, H, heads=2), x_of()
    assert layer(x)[0].shape == (T, B, H)
