"""`python -m fused_lstm`: versions, what the processor offers, and the plan for one shape.

    python -m fused_lstm --shape 28 64 28 128 --dtype float32 --directions 2 --threads 1
    python -m fused_lstm --shape 28 64 28 128 --proj-size 32 --device cuda

The first thing to look at, and to send along, when something is slow or wrong.
"""

import argparse
import platform
from collections.abc import Sequence

import torch

from . import _extension, dispatch

__all__ = ["describe", "main"]

DTYPES = ("float32", "float64", "bfloat16", "float16")
MEGABYTE = 1 << 20


def describe(
    shape: Sequence[int] = (28, 64, 28, 128),
    dtype: str = "float32",
    directions: int = 1,
    threads: int | None = None,
    proj_size: int = 0,
    device: str = "cpu",
) -> str:
    """What this installation is and how it computes one layer.

    Args:
        shape: T steps, B rows, I features, H hidden units.
        dtype: name of the dtype of x and the weights.
        directions: 1 or 2.
        threads: None for torch's present number; of the CPU.
        proj_size: size P of a projected h, smaller than H; 0 for none.
        device: where x and the weights are, "cpu", "cuda", "cuda:1", ...

    Returns:
        Some lines of text; where the extension is missing, the reason in place of the plan.

    Raises:
        ValueError: a size, dtype or number of threads that no problem can have.
        RuntimeError: a device that torch does not know.
    """
    lines = [
        f"fused_lstm {_installed_version()}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    ]
    if not _extension.available:
        return "\n".join([*lines, _extension.why_missing])
    extension = _extension.require()
    build = extension.build_info()
    offered = [name for name, there in extension.cpu_features().items() if there]
    threads = torch.get_num_threads() if threads is None else threads
    T, B, I, H = shape  # noqa: E741
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype}")
    if not 0 <= proj_size < H:
        raise ValueError(f"proj_size: expected 0 to hidden_size - 1 = {H - 1}, got {proj_size}")
    place = torch.device(device)
    sizes = (T, B, I, H, proj_size or H, directions, dtype)
    lines += [
        f"built with {build['compiler']} for torch >= {build['torch_target']}",
        _cuda_line(),
        f"processor: {', '.join(offered) or 'no vector extension known here'}",
        f"instruction sets that run here: {', '.join(extension.isas())}; in use: {extension.isa()}",
        f"scratch pool: {_megabytes(extension.cache_bytes())} kept, "
        f"at most {_megabytes(extension.cache_limit())}",
        f"T={T} B={B} I={I} H={H}{f' P={proj_size}' if proj_size else ''}, "
        f"{directions} direction(s), {dtype}, on {place}, {threads} thread(s):",
    ]
    for training, name in ((False, "inference"), (True, "training")):
        plan = dispatch.explain_plan(
            (T, B, I, H),
            bidirectional=directions == 2,
            proj_size=proj_size,
            dtype=getattr(torch, dtype),
            device=place,
            training=training,
            threads=threads,
        )
        if place.type == "cpu":
            plan += (
                f"; workspace {_megabytes(extension.workspace_bytes(*sizes, training, threads))}"
            )
        lines.append(f"  {name}: {plan}")
    if place.type == "cpu":
        kept = _megabytes(extension.reserve_bytes(*sizes))
        lines.append(f"  kept from forward to backward: {kept}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints `describe`; returns 1 when the extension is missing, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m fused_lstm", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--shape",
        nargs=4,
        type=int,
        metavar=("T", "B", "I", "H"),
        default=(28, 64, 28, 128),
        help="steps, rows, input features, hidden units (default: 28 64 28 128)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--directions", type=int, choices=(1, 2), default=1)
    parser.add_argument("--threads", type=int, help="default: torch's present number")
    parser.add_argument("--proj-size", type=int, default=0, help="size of a projected h (0: none)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    options = parser.parse_args(arguments)
    try:
        print(describe(**vars(options)))
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    return 0 if _extension.available else 1


def _cuda_line() -> str:
    if _extension.why_no_cuda:
        return f"CUDA kernels: none; {_extension.why_no_cuda}"
    build = _extension.require_cuda().build_info()
    known = f"CUDA kernels: toolkit {build['toolkit']}, for {', '.join(build['architectures'])}"
    if not torch.cuda.is_available():
        return f"{known}; torch sees no GPU here"
    obstacle = _extension.cuda_obstacle(torch.cuda.current_device())
    return f"{known}; {obstacle or 'turned on'}"


def _installed_version() -> str:
    from . import __version__

    return __version__


def _megabytes(size: int) -> str:
    return f"{size / MEGABYTE:.1f} MB"
