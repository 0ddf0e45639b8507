"""Do the tests of graphs, exports, processes and errors notice an error? Plants one at a time into
a copy of the Python package and expects the named tests to fail; on the copy as it is they have to
pass. Each replacement must apply exactly once, so that this list cannot rot silently.

`make mutants` runs it, in minutes: inductor compiles and processes start. The kernels have lists of
their own, tests/native/mutants.py and tests/simt/mutants.py.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutant(NamedTuple):
    name: str
    file: str  # in fused_lstm/, without .py; "" for none
    old: str
    new: str
    test: str  # pytest's arguments; one test of them at least must fail


COMPILE, EXPORT, ONNX = "tests/test_compile.py", "tests/test_export.py", "tests/test_onnx.py"
RECIPES, CUDA = "tests/test_recipes.py", "tests/test_cuda.py"
EXTRAS = "tests/test_extras.py"
DISTRIBUTED = "tests/test_distributed.py"
ONE_GRAPH, TRAINS = f"{COMPILE} -k one_graph_for_every", f"{COMPILE} -k inductor_trains"
PACKED = f"{COMPILE} -k packed_input_is"
ANY_SIZE, JIT = f"{EXPORT} -k any_batch", f"{EXPORT} -k jit"
AOT = f"{EXPORT} -k aot_inductor -m compile"
NODES, CELL = f"{ONNX} -k test_export -m compile", f"{ONNX} -k a_cell_and -m compile"
OLD_EXPORTER = f"{ONNX} -k old_exporter -m compile"
PAIR = f"{DISTRIBUTED} -k two_processes"
RECIPE = f"{RECIPES} -m compile"
CONVERT, FUNC, OPCHECK = "tests/test_convert.py", "tests/test_func.py", "tests/test_opcheck.py"
STAYS = f"{CONVERT} -k stay"
WAVEFRONT, TUNING = "tests/test_wavefront.py", "tests/test_tuning.py"
VARIANTS = "tests/test_variants.py"
FROZEN = "tests/test_frozen.py"

MUTANTS = [
    Mutant("a graph break", "dispatch", "transformed = _transforms()\n    if not",
           "transformed = _transforms()\n    torch._dynamo.graph_break()\n    if not", ONE_GRAPH),
    Mutant("B fixed by tracing", "ops", "return x.shape[1]\n    state",
           "return int(x.shape[1])\n    state", ONE_GRAPH),
    Mutant("the reserve's size without its padding", "ops",
           "return (hidden + line - 1) // line * line", "return hidden", TRAINS),
    Mutant("gradients of h0 and c0 swapped in shape", "ops",
           "[x.shape, (directions, batch, p), (directions, batch, hidden), *weights",
           "[x.shape, (directions, batch, hidden), (directions, batch, p), *weights", ONE_GRAPH),
    Mutant("B of a packed input from nowhere", "ops", "if state is None else state.shape[1]",
           "if state is None else state.shape[0]", f"{COMPILE} -k packed_input_with"),
    Mutant("a derivative lost in graphs", "function",
           "if torch.is_grad_enabled() and not export.is_exporting():",
           "if torch.is_grad_enabled() and not torch.compiler.is_compiling():", ONE_GRAPH),
    Mutant("weights cached", "modules",
           "return [parameters[name] for name in self._flat_weights_names]  # type: ignore[misc]",
           "return [parameters[name].data.clone() for name in self._flat_weights_names]",
           f"{COMPILE} -k weights_changed"),
    Mutant("no dropout", "dispatch", "if layer > 0 and training and dropout > 0:",
           "if layer > 0 and training and dropout > 1:", f"{COMPILE} -k dropout_has"),
    Mutant("less dropout in graphs", "dispatch", "y = torch.dropout(y, dropout, True)",
           "y = torch.dropout(y, dropout / (1 + torch.compiler.is_compiling()), True)",
           f"{COMPILE} -k dropout_has"),
    Mutant("a fixed length holds our operator", "export",
           "return not torch.fx.experimental.symbolic_shapes.has_static_value(steps)",
           "return True", f"{EXPORT} -k holds_an_operator"),
    Mutant("a dynamic length holds torch's", "export",
           "return not torch.fx.experimental.symbolic_shapes.has_static_value(steps)",
           "return False", ANY_SIZE),
    Mutant("export_mode stays", "export", "        _mode = before", "        pass",
           f"{EXPORT} -k export_mode"),
    Mutant("any export_mode taken", "export", "if mode not in MODES:", "if False:",
           f"{EXPORT} -k export_mode"),
    Mutant("a cell holds our operator", "dispatch", "holds_fused(1 if is_cell else x.shape[0])",
           "holds_fused(x.shape[0])", f"{EXPORT} -k a_cell_keeps"),
    Mutant("y's width forgets the projection", "ops", "directions * p)),", "directions * hidden)),",
           AOT),
    Mutant("h_n's shape for AOTInductor", "ops",
           "x.new_empty((directions, batch, p)),\n        x.new",
           "x.new_empty((directions, batch, hidden)),\n        x.new", AOT),
    Mutant("scripted: B and T confused", "modules",
           "x = input.transpose(0, 1) if self.batch_first else input\n        y, h_n",
           "x = input\n        y, h_n", JIT),
    Mutant("scripted: rows of a packed input not put back", "modules",
           "h_n = h_n.index_select(1, unsorted_indices)", "h_n = h_n", JIT),
    Mutant("scripted: a cell's state ignored", "modules",
           "        h, c = torch._VF.lstm_cell(\n            x, hx, self.weight_ih",
           "        h, c = torch._VF.lstm_cell(\n            x, (hx[1], hx[0]), self.weight_ih",
           JIT),
    Mutant("ONNX: torch's order of gates", "onnx", "value_ints=[0, 3, 1, 2]",
           "value_ints=[0, 1, 2, 3]", NODES),
    Mutant("ONNX: one bias twice", "onnx", "for b in side[2:]]", "for b in (side[2], side[2])]",
           NODES),
    Mutant("ONNX: y's directions not next to each other", "onnx", "perm=[0, 2, 1, 3]",
           "perm=[0, 1, 2, 3]", NODES),
    Mutant("ONNX: h0 and c0 swapped", "onnx", "None, h0, c0, hidden_size",
           "None, c0, h0, hidden_size", NODES),
    Mutant("ONNX: a projection passed over", "onnx", '("proj_size", w_hr)', '("proj_size", None)',
           CELL),
    Mutant("ONNX: torch's operator in the graph", "onnx", 'with export_mode("fused"):',
           'with export_mode("torch"):', NODES),
    Mutant("ONNX: the remedy not named", "onnx", "pip install onnx onnxscript\"", "\"",
           f"{ONNX} -k without_onnxscript"),
    Mutant("traced: our operator, which ONNX's old exporter does not know", "dispatch",
           "elif torch._C._is_tracing():", "elif False:", OLD_EXPORTER),
    Mutant("recipes: torch's order of gates", "onnx", "value_ints=[0, 3, 1, 2]",
           "value_ints=[0, 1, 2, 3]", RECIPE),
    Mutant("recipes: a dynamic length holds torch's", "export",
           "return not torch.fx.experimental.symbolic_shapes.has_static_value(steps)",
           "return False", RECIPE),
    Mutant("a full GPU: any error instead of torch's", "ops",
           'if "CUDA out of memory" in str(error) else error', "if False else error",
           f"{CUDA} -k full_gpu"),
    Mutant("a full GPU: every error becomes it", "ops",
           'if "CUDA out of memory" in str(error) else error', "", f"{CUDA} -k any_other_error"),
    Mutant("biases share one gradient's memory", "function",
           "results[k].clone() if shared else results[k]", "results[k]",
           "tests/test_gradients.py -k share_no_memory"),
    Mutant("two processes: gradients doubled", "function",
           "return spread(results, wanted, _NO_GRADIENTS)",
           "return spread([r * 2 for r in results], wanted, _NO_GRADIENTS)", PAIR),
    Mutant("two processes: the state of the second layer lost", "dispatch",
           "y, h, c = layer_of(y, batch_sizes, h0, c0, *own)",
           "y, h, c = layer_of(y if layer == 0 else y * 0, batch_sizes, h0, c0, *own)", PAIR),
    Mutant("two processes: torch computes for DDP and FSDP", "dispatch",
           "    if x.is_cpu:\n        if x.dtype not in _KERNEL_DTYPES:",
           "    if torch.distributed.is_initialized():\n        return True\n"
           "    if x.is_cpu:\n        if x.dtype not in _KERNEL_DTYPES:", PAIR),
    Mutant("two processes: the weights of the first call, under FSDP2", "modules",
           "return [parameters[name] for name in self._flat_weights_names]  # type: ignore[misc]",
           'return self.__dict__.setdefault("kept", [parameters[n].detach().clone() '
           "for n in self._flat_weights_names])", PAIR),
    Mutant("checkpoint: h_n without a gradient", "function",
           "ctx.mark_non_differentiable(reserve)",
           "ctx.mark_non_differentiable(reserve, output[1])",
           f"{DISTRIBUTED} -k checkpoint"),
    Mutant("checkpoint: no second derivative", "function",
           "whole = torch.is_grad_enabled() or", "whole = False and", f"{DISTRIBUTED} -k double"),
    Mutant("zoneout: the two probabilities swapped", "masks", "(T, B, units), h, c), h, c",
           "(T, B, units), c, h), h, c", f"{EXTRAS} -k as_often"),
    Mutant("masks: one for both layers", "masks", "layer * _KINDS + kind", "kind",
           f"{EXTRAS} -k as_often"),
    Mutant("masks: not scaled", "masks", "1.0 / (1.0 - p) if p < 1 else 0.0", "1.0",
           f"{EXTRAS} -k loop_with_the_same"),
    Mutant("masks: drawn in evaluation", "masks", "training and extras.draws", "extras.draws",
           f"{EXTRAS} -k loop_with_the_same"),
    Mutant("masks: always one seed", "masks", "torch.randint(least, 2**63 - 1, (),",
           "torch.full((), least,", f"{EXTRAS} -k seed"),
    Mutant("pieces: the reverse direction from the front", "checkpointing",
           "for begin in reversed(begins) if reverse else begins:", "for begin in begins:",
           f"{EXTRAS} -k memory_modes"),
    Mutant("pieces: the state lost between two", "checkpointing", "piece, *own, h, c, h_factors,",
           "piece, *own, None, c, h_factors,", f"{EXTRAS} -k memory_modes"),
    Mutant("short way: taken under autograd", "direct", "torch.is_grad_enabled()", "False",
           "tests/test_direct.py -k who_watches"),
    Mutant("short way: a mode does not see it", "direct",
           "or torch._C._len_torch_dispatch_stack() > 0", "", "tests/test_direct.py -k modes"),
    Mutant("frozen: a fused step of an optimizer unseen", "frozen", "    _watch_optimizers()\n", "",
           "tests/test_frozen.py -k in_one_kernel"),
    Mutant("pieces: all kept", "options",
           "if extras.checkpoint_steps and torch.is_grad_enabled() and not dispatch._transforms():",
           "if False:", f"{EXTRAS} -k no_reserve"),
    Mutant("recompute: passed over", "options", "            extras.recompute,\n",
           "            False,\n", f"{EXTRAS} -k a_fifth"),
    Mutant("zoneout: forgotten in a second derivative", "marked",
           "return reference_layer(*tensors, *ctx.how)",
           "return reference_layer(*tensors, 0.0, 0.0, False)", f"{EXTRAS} -k gradgradcheck"),
    Mutant("extras: lost on the way to torch", "convert",
           'if getattr(module, "extras", None) is not None:', "if False:",
           f"{EXTRAS} -k goes_lost"),
    Mutant("convert: silent about what stays", "convert", "elif kept_lines:", "elif False:", STAYS),
    Mutant("convert: a half converted model after an error", "convert",
           'object.__setattr__(module, "__class__", before)', "pass", f"{CONVERT} -k midway"),
    Mutant("convert: nn.LSTM's references not renewed", "convert", "module._init_flat_weights()  #",
           "pass  #", f"{CONVERT} -k reverted_lists"),
    Mutant("convert: quantised modules too", "convert",
           'cls.__module__.startswith("torch.ao.")', "False", STAYS),
    Mutant("convert: what has no weights yet", "convert", "if any(map(is_lazy,",
           "if False and any(map(is_lazy,", STAYS),
    Mutant("convert: what fully_shard wraps", "convert", '.__name__ == "FSDPModule"', " is None",
           f"{CONVERT} -k distributed"),
    Mutant("convert: a forward that computes by itself", "convert",
           'return code is not None and {"super", "forward"} <= set(code.co_names)', "return True",
           STAYS),
    Mutant("convert: an override passed over", "convert",
           "(torch_class is nn.LSTM and name in _USED_BY_TORCH)", "False", STAYS),
    Mutant("convert: parametrizations not taken along", "convert",
           "if not (parametrize.is_parametrized(module) and", "if not (False and",
           f"{CONVERT} -k parametri"),
    Mutant("convert: subclasses cannot be pickled", "convert",
           "            __reduce_ex__=_reduce_ex,\n", "", f"{CONVERT} -k copied"),
    Mutant("convert: scripted modules not named", "convert",
           'if module.original_name in ("LSTM", "LSTMCell"):', "if False:", STAYS),
    Mutant("convert: its own hooks lost", "convert",
           'object.__setattr__(module, "__class__", after)  #',
           'module._forward_hooks.clear(); object.__setattr__(module, "__class__", after)  #',
           f"{CONVERT} -k hooks"),
    Mutant("vmap: packed rows of one call only", "batching", "else inputs[1] * N", "else inputs[1]",
           FUNC),
    Mutant("vmap: rows of the calls mixed", "batching",
           "return _unfold(N, t).flatten(0, -3).transpose(0, 1)",
           "return t.reshape(N, -1, t.shape[-1])", FUNC),
    Mutant("vmap: h after each step", "batching", "[y[1:], first] if d else [first, y[:-1]]",
           "[first, y[:-1]] if d else [y[1:], first]", FUNC),
    Mutant("vmap: gradients of a bias averaged", "batching", "rows.sum(0) if", "rows.mean(0) if",
           FUNC),
    Mutant("vmap: the reserve of other rows", "batching",
           "if any(d is not None for d in dims[3:7]):", "if True:", FUNC),
    Mutant("forward mode: by the kernels, which have none", "dispatch",
           "if forward_ad._current_level >= 0:", "if False:",
           "tests/test_transforms.py -k forward_mode"),
    Mutant("fake c_n as wide as h_n", "ops",
           "x.new_empty((directions, batch, hidden)),\n        x.new_empty((nbytes,)",
           "x.new_empty((directions, batch, p)),\n        x.new_empty((nbytes,)", OPCHECK),
    Mutant("fake gradient of W_hr lies down", "ops", "(4 * hidden,), (p, hidden)]",
           "(4 * hidden,), (hidden, p)]", OPCHECK),
    Mutant("dW_hh of a variant without its initial state", "recurrence",
           "return dw if h0 is None else dw + first.t() @ h0", "return dw",
           f"{VARIANTS} -k agrees"),
    Mutant("dW_hh of a variant: each direction's h from the other", "recurrence",
           "(dzh[:-1], y[1:], dzh[-1]) if reverse else",
           "(dzh[:-1], y[1:], dzh[-1]) if not reverse else", f"{VARIANTS} -k agrees"),
    Mutant("dropout of a variant once for each direction", "variants",
           "if layer > 0 and not reverse and self.training", "if layer > 0 and self.training",
           f"{VARIANTS} -k dropout"),
    Mutant("packed variant: states of ended rows in the order they ended", "variants",
           "zip(state, *reversed(ended), strict=True)", "zip(state, *ended, strict=True)",
           f"{VARIANTS} -k packed"),
    Mutant("packed variant: rows that begin late from the first rows' state", "variants",
           "begin = [t[before:rows] for t in hx]", "begin = [t[: rows - before] for t in hx]",
           f"{VARIANTS} -k packed"),
    Mutant("packed variant: states in the order of the packed rows", "variants",
           "if back is not None:", "if back is None:", f"{VARIANTS} -k packed"),
    Mutant("a variant on a GPU by the specification", "variants",
           "by_kernel = not (dispatch._transforms()",
           "by_kernel = x.is_cpu and not (dispatch._transforms()", f"{CUDA} -k variants"),
    Mutant("fake reserve of a variant on a GPU as on the CPU", "ops",
           'if zx.device.type != "cuda":', "if True:", f"{CUDA} -k variants"),
    Mutant("coupled gates opened by the forget bias", "init", "bias_ih[:hidden] -= value",
           "bias_ih[:hidden] += value", f"{VARIANTS} -k first_values"),
    Mutant("autocast: c_n rounded", "dispatch", "result_dtypes = (low, low, torch.float32)",
           "result_dtypes = (low, low, low)", "tests/test_autocast.py -k padded"),
    Mutant("autocast: float64 mixes", "dispatch",
           "if any(t.dtype is torch.float64 for t in everything):", "if False:",
           "tests/test_autocast.py -k float64"),
    Mutant("autocast on a GPU: float64 lowered", "dispatch",
           "return t if t.dtype is torch.float64 else t.to(low)", "return t.to(low)",
           f"{CUDA} -k autocast"),
    Mutant("wavefront: forward does not wait for the layer below", "wavefront",
           "lanes.wait(lane, done[layer - 1][k])", "pass", f"{WAVEFRONT} -k every_read"),
    Mutant("wavefront: backward does not wait for the layer above", "wavefront",
           "lanes.wait(lane, done[layer + 1][k])", "pass", f"{WAVEFRONT} -k every_read"),
    Mutant("wavefront: waits for the chunk before", "wavefront",
           "done[layer - 1][k])", "done[layer - 1][max(k - 1, 0)])",
           f"{WAVEFRONT} -k every_read"),
    Mutant("wavefront: y is not lent to the caller", "wavefront",
           "lanes.lend(CALLER, *ys[-1], *h, *c)", "lanes.lend(CALLER, *h, *c)",
           f"{WAVEFRONT} -k every_read"),
    Mutant("wavefront: gradients of weights are not lent to the caller", "wavefront",
           "lanes.lend(CALLER, dh[layer], dc[layer], *sums[layer])",
           "lanes.lend(CALLER, dh[layer], dc[layer])", f"{WAVEFRONT} -k every_read"),
    Mutant("wavefront: dh stops between chunks", "wavefront",
           "k > 0 or wanted.h0, k > 0 or wanted.c0]", "wanted.h0, wanted.c0]",
           f"{WAVEFRONT} -k no_gradient"),
    Mutant("wavefront: dx for nobody", "wavefront",
           "wanted.x if layer == 0 else layer > lowest", "True", f"{WAVEFRONT} -k no_gradient"),
    Mutant("wavefront: layers below the lowest compute too", "wavefront",
           "lowest = wanted.lowest", "lowest = 0", f"{WAVEFRONT} -k no_gradient"),
    Mutant("wavefront: sums in 16 bits", "wavefront", "t.float() if t.dtype.itemsize < 4 else t",
           "t", f"{WAVEFRONT} -k added_in"),
    Mutant("wavefront: y saved as it was", "wavefront",
           "ctx.save_for_backward(*tensors, y, *between",
           "ctx.save_for_backward(*tensors, y.clone(), *between", f"{WAVEFRONT} -k an_edit"),
    Mutant("wavefront: more layers than there is room for", "wavefront",
           "lanes = min(L, *(one", "lanes = max(L, *(one", f"{WAVEFRONT} -k room"),
    Mutant("wavefront: with dropout", "dispatch",
           "return not (options.bidirectional or options.proj_size or drops)",
           "return not (options.bidirectional or options.proj_size)",
           f"{WAVEFRONT} -k which_calls"),
    Mutant("tuning: families do not take turns", "tuning",
           "for _ in range(ROUNDS):\n            for family in families:\n",
           "for family in families:\n            for _ in range(ROUNDS):\n",
           f"{TUNING} -k first_call"),
    Mutant("tuning: the last run counts", "tuning",
           "times[family] = min(times[family], clock(run))", "times[family] = clock(run)",
           f"{TUNING} -k several_runs"),
    Mutant("tuning: under a forced family", "tuning", "or module.forced_family() is not None", "",
           f"{TUNING} -k when_nothing"),
    Mutant("tuning: while something traces", "tuning", "not ops.computes_now(x) or x.numel()",
           "x.numel()", f"{TUNING} -k when_nothing"),
    Mutant("tuning: a choice is left behind by an error", "tuning",
           "    finally:\n        choose(None)", "    finally:\n        pass",
           f"{TUNING} -k another_error"),
    Mutant("tuning: written in place", "tuning", "os.replace(temporary, path)",
           "path.write_text(Path(temporary).read_text()); os.replace(temporary, path)",
           f"{TUNING} -k write_that_fails"),
    Mutant("tuning: what others wrote is lost", "tuning",
           "devices, may_write = _read(path, module)", "devices, may_write = {}, True",
           f"{TUNING} -k another_process"),
    Mutant("tuning: times of other families", "tuning", "if set(times) != set(fit):",
           "if not times:",
           f"{TUNING} -k other_families"),
    Mutant("tuning: a torn file is an error", "tuning", "except ValueError as error:",
           "except KeyError as error:", f"{TUNING} -k cannot_be_used"),
    Mutant("frozen: versions not looked at", "frozen", "or now._version != self.version", "",
           f"{FROZEN} -k change_is_seen"),
    Mutant("frozen: edits through .data unseen", "frozen",
           "return self.detach()  # which", "return torch.Tensor.data.__get__(self)  # which",
           f"{FROZEN} -k change_is_seen"),
    Mutant("frozen: int8 cut off, not rounded", "frozen", ".round_().to(torch.int8)",
           ".to(torch.int8)", f"{FROZEN} -k computes_what"),
]  # fmt: skip

CONTROLS = [
    Mutant("nothing changed", "", "", "", test)
    for test in sorted({mutant.test for mutant in MUTANTS})
]


def try_mutant(mutant: Mutant, folder: Path) -> str:
    """Empty when a test fails on the mutant, or all pass on a control; else what is wrong."""
    package = folder / "fused_lstm"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "fused_lstm", package, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant.file:
        path = package / f"{mutant.file}.py"
        text = path.read_text("utf-8")
        if text.count(mutant.old) != 1:
            return f"applies {text.count(mutant.old)} times to {path.name}, expected once"
        path.write_text(text.replace(mutant.old, mutant.new), "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *mutant.test.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    seen = done.returncode == 1
    if seen if mutant.file else done.returncode == 0 and " skipped" not in done.stdout:
        return ""
    last = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["silent"])[-1]
    return f"pytest ended with {done.returncode}: {last}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="*", default=[""], help="name or test contains one of these"
    )
    parser.add_argument("--no-controls", action="store_true", help="where the tests just passed")
    options = parser.parse_args()
    chosen = MUTANTS if options.no_controls else CONTROLS + MUTANTS
    chosen = [m for m in chosen if any(word in f"{m.name} {m.test}" for word in options.only)]
    survivors = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        leave = shutil.ignore_patterns("__pycache__", "simt", "native", "gpu")
        shutil.copytree(ROOT / "tests", folder / "tests", ignore=leave)
        for file in ("pyproject.toml", "docs/compile-export.md"):
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copy2(ROOT / file, folder / file)
        for mutant in chosen:
            problem = try_mutant(mutant, folder)
            survivors += bool(problem)
            said = f"FAIL {mutant.name}: {problem}" if problem else f"seen {mutant.name}"
            print(f"{said} ({mutant.test})", flush=True)
    print(f"mutants (Python): {len(chosen) - survivors} passed, {survivors} failed")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
