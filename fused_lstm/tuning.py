"""Autotuning: which family of CUDA kernels is the quickest for a call, found by trying them.

The plan (csrc/kernels/cuda/plan.cpp) chooses by a table of costs. Where autotuning is on, the first
call of a class on a GPU (T up to the same power of two, all else alike: `call_class`) computes its
own inputs a few times by each family that may compute it, between events on its own stream, and
drops what comes out. The winner is handed to the binding, which every later call of the class asks,
and may be kept in a file for other processes. A family that is off is never tried, and nothing is
tried while a family is forced, something traces, or a CUDA graph is captured.

All of it has run with a made-up clock on made-up devices only.
"""

import json
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from . import _extension, ops

__all__ = ["autotune", "device_name", "measure", "microseconds", "prepare"]

ROUNDS = 5  # of which each family's quickest counts: whatever disturbs a run makes it slower
FORMAT = 1  # of the file

_lock = threading.Lock()
_ready: set[tuple[str | None, int, str]] = set()  # file, device, class: nothing is left to do
_times: dict[tuple[int, str], dict[str, float]] = {}  # microseconds of each family


class autotune:  # noqa: N801 - a function, and a context manager, like torch.set_grad_enabled
    """Whether the first call of a kind on a GPU tries our kernel families and keeps the quickest.

    Off by default, as `torch.backends.cudnn.benchmark` is, and to the same end. Takes effect at
    once, in all threads; as a context manager it puts back what was before. What was measured stays
    in use afterwards: turning it off ends the measuring, not the choice.

    Args:
        enabled: whether to measure.
        file: a JSON file to read what other processes have found and to write what this one finds;
            None: in memory only.

    Raises:
        TypeError: `enabled` is no bool.
    """

    def __init__(self, enabled: bool = True, file: "str | os.PathLike[str] | None" = None) -> None:
        if not isinstance(enabled, bool):
            raise TypeError(f"enabled: expected a bool, got {type(enabled).__name__}")
        self._before = (_extension.autotunes, _extension.autotune_file)
        _extension.autotunes = enabled
        _extension.autotune_file = None if file is None else os.fspath(file)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        _extension.autotunes, _extension.autotune_file = self._before


def prepare(
    arguments: Sequence[Any],  # of ops.forward, without its last two
    needs: int,  # which gradients will be asked for, see ops.backward; 0: none
    tf32: bool,
) -> None:
    """Sees to it that the binding knows the quickest family for a call, if it can be found out."""
    x, batch_sizes, w_ih, w_hh, reverse = *arguments[:2], *arguments[4:6], arguments[9]
    if not ops.computes_now(x) or x.numel() == 0:
        return  # not here, or by no kernel
    module = _extension.require_cuda()
    packed = batch_sizes is not None
    T, B = (len(batch_sizes), int(batch_sizes[0])) if packed else x.shape[:2]
    directions = 1 if reverse is None else 2
    sizes = (T, B, x.shape[-1], w_ih.shape[0] // 4, w_hh.shape[1], directions)
    call = (*sizes, str(x.dtype).removeprefix("torch."), needs != 0, tf32)
    file, index = _extension.autotune_file, x.device.index
    name = module.call_class(*call, packed)
    if (file, index, name) in _ready or module.forced_family() is not None:
        return

    def choose(family: str | None) -> None:
        module.set_choice(index, *call, packed, family)

    def run() -> None:
        y, _, _, reserve = ops.forward(*arguments, needs != 0, tf32)
        if needs:  # y is as good a gradient of y as any
            ops.backward(y, None, None, *arguments, y, reserve, needs, tf32)

    with _lock, torch.no_grad():
        if (file, index, name) in _ready:
            return  # another thread was here
        fit = [one["family"] for one in module.families(*call, module.device_facts(index))]
        if len(fit) > 1:
            kept = {} if file is None else _find(file, index, name, module)
            times = kept or _times.get((index, name), {})
            if set(times) != set(fit):  # nothing is known, or what was found under other switches
                times = measure(fit, choose, run, lambda call: microseconds(call, index))
            if file is not None and times and times != kept:
                _keep(file, index, name, times, module)
            _times[index, name] = times
            choose(min(times, key=times.__getitem__) if times else None)
        _ready.add((file, index, name))


def measure(
    families: Sequence[str],
    choose: Callable[[str | None], None],  # has the call computed by a family, None: by the plan's
    run: Callable[[], None],  # the call
    clock: Callable[[Callable[[], None]], float],  # microseconds that running it once takes
) -> dict[str, float]:
    """Microseconds of a call by each of the families; empty where memory does not suffice.

    They take turns, so that what slows the GPU for a while slows all of them. An error ends it, and
    leaves the choice to the plan.
    """
    times: dict[str, float] = dict.fromkeys(families, float("inf"))
    try:
        for family in families:  # loads code, and has the allocator reserve what is needed
            choose(family)
            run()
        for _ in range(ROUNDS):
            for family in families:
                choose(family)
                times[family] = min(times[family], clock(run))
    except torch.OutOfMemoryError:
        times = {}
    finally:
        choose(None)
    return times


def microseconds(run: Callable[[], None], index: int) -> float:
    """What a GPU takes for `run` on its current stream; the host waits for it."""
    with torch.cuda.device(index):  # whose current stream the events are recorded on
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
    end.synchronize()
    return 1000 * begin.elapsed_time(end)


def device_name(index: int) -> str:
    """A GPU and what runs on it, as far as one's measurements say nothing of another."""
    facts = _extension.require_cuda().device_facts(index)
    driver: int = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    return (
        f"{torch.cuda.get_device_properties(index).name}, sm_{facts['arch']}, "
        f"{facts['sms']} multiprocessors, driver {driver}, CUDA {torch.version.cuda}"
    )


# ---- the file ------------------------------------------------------------------------------------
#
#   {"fused_lstm": "0.1.0", "format": 1, "devices": {device: {class: {family: microseconds}}}}
#
# Replaced as a whole, so that a reader meets the old one or the new one. Two processes that write
# at the same moment may lose one entry, which is then measured again.

Devices = dict[str, dict[str, dict[str, float]]]
_told: set[str] = set()  # files that there has been a warning about


def _find(file: str, index: int, name: str, module: ModuleType) -> dict[str, float]:
    """The times of one class on one GPU, as a file has them; empty where it has not."""
    devices, _ = _read(Path(file), module)
    return devices.get(device_name(index), {}).get(name, {})


def _read(path: Path, module: ModuleType) -> tuple[Devices, bool]:
    """What a file holds for kernels of this version, and whether it may be written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, True
    except OSError as error:
        _warn(path, f"cannot be read: {error}")
        return {}, False
    except ValueError as error:
        _warn(path, f"is torn ({error}): it is ignored, and replaced by what is measured next")
        return {}, True
    if not isinstance(content, dict) or "fused_lstm" not in content:
        _warn(path, "is no file of fused_lstm.autotune: it is neither used nor written")
        return {}, False
    if content["fused_lstm"] != module.build_info()["version"] or content.get("format") != FORMAT:
        return {}, True  # of other kernels
    devices: Any = content.get("devices")
    if not _is_devices(devices):
        _warn(path, "is damaged: it is ignored, and replaced by what is measured next")
        return {}, True
    return devices, True


def _is_devices(content: Any) -> bool:
    def is_map(value: Any, holds: Callable[[Any], bool]) -> bool:
        return isinstance(value, dict) and all(holds(part) for part in value.values())

    def is_times(value: Any) -> bool:
        return bool(value) and is_map(value, lambda us: type(us) is float and 0 < us < float("inf"))

    return is_map(content, lambda classes: is_map(classes, is_times))


def _keep(file: str, index: int, name: str, times: dict[str, float], module: ModuleType) -> None:
    """Adds the times of one class on one GPU to a file."""
    path = Path(file)
    devices, may_write = _read(path, module)
    if not may_write:
        return
    devices.setdefault(device_name(index), {})[name] = times
    version = module.build_info()["version"]
    content = {"fused_lstm": version, "format": FORMAT, "devices": devices}
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=path.name, delete=False
        ) as stream:
            temporary = stream.name
            json.dump(content, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        _warn(path, f"cannot be written: {error}")


def _warn(path: Path, what: str) -> None:
    if str(path) not in _told:
        _told.add(str(path))
        warnings.warn(f"fused_lstm.autotune: {path} {what}", RuntimeWarning, stacklevel=2)
