"""What a figure depends on: processor, versions, settings, command, commit.

It is stored with each result. Nothing in it names a host, a user or a folder.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

__all__ = ["RESTRICTIONS", "describe", "machine_slug", "restricted_environment"]

# Settings that hold fused_lstm, torch (own kernels, oneDNN, MKL) and XLA to one instruction set.
# ONNX Runtime has no such switch, so it takes no part in a restricted run.
RESTRICTIONS: dict[str, dict[str, str]] = {
    "portable": {
        "FUSED_LSTM_ISA": "portable",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2",
    },
    "avx2": {
        "FUSED_LSTM_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    },
    "avx512": {
        "FUSED_LSTM_ISA": "avx512",
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX512",
    },
}

_FLAGS = re.compile(
    r"sse4_2|avx.*|f16c|fma|amx_.*|hypervisor|asimd(hp|dp)?|bf16|i8mm|sve.*"  # x86-64, aarch64
)
_PACKAGES = ("torch", "numpy", "onnxruntime", "onnx", "jax", "jaxlib")
_SETTINGS = re.compile(
    r"(OMP|GOMP|KMP|MKL|ONEDNN|DNNL|ATEN|FUSED_LSTM|XLA|MALLOC)_[A-Z0-9_]+|NPROC"
)


def restricted_environment(isa: str) -> dict[str, str]:
    """The environment of this process, with every library held to `isa`."""
    return {**os.environ, **RESTRICTIONS[isa]}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo, empty where there is none."""
    entry = _read("/proc/cpuinfo").split("\n\n", 1)[0]
    lines = (line.split(":", 1) for line in entry.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in lines}


def _cpu_model(info: dict[str, str]) -> str:
    return info.get("model name") or platform.processor() or platform.machine() or "unknown"


def machine_slug(info: dict[str, str] | None = None) -> str:
    """The folder name of this machine's results, derived from the processor's model name.

    A hypervisor may hide the number of the model; then family and model stand in for it.
    """
    info = _cpuinfo() if info is None else info
    name = _cpu_model(info).lower().split("@")[0]
    name = re.sub(r"\((r|tm)\)|\b(cpu|processor|with radeon.*|\d+-core)\b", " ", name)
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    if not re.search(r"\d", slug) and "model" in info:
        slug += f"-f{info.get('cpu family', '0')}m{info['model']}"
    return slug or "unknown"


def _git() -> dict[str, Any]:
    """Commit and whether tracked files differ from it; None values outside a repository."""

    def ask(*arguments: str) -> str | None:
        try:
            result = subprocess.run(
                ["git", *arguments],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                check=True,
                timeout=30,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return result.stdout.strip()

    status = ask("status", "--porcelain", "--untracked-files=no")
    return {
        # A machine that was sent the working tree alone is told the commit by FUSED_LSTM_COMMIT.
        "commit": ask("rev-parse", "HEAD") or os.environ.get("FUSED_LSTM_COMMIT"),
        "modified": None if status is None else bool(status),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    import torch

    import fused_lstm

    versions["fused_lstm"] = fused_lstm.__version__  # also where it was never installed
    text = torch.__config__.show()
    for name, pattern in (("onednn", r"MKL-DNN v([\d.]+)"), ("mkl", r"Library Version ([\d.]+)")):
        match = re.search(pattern, text)
        if match:
            versions[name] = match[1]
    return versions


def _release() -> str:
    """The kernel's version without the builder's suffix."""
    match = re.match(r"[\d.]+", platform.release())
    return match[0].rstrip(".") if match else ""


def _caches() -> dict[str, str]:
    caches = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind = _read(f"{folder}/level").strip(), _read(f"{folder}/type").strip()
        if kind != "Instruction":
            caches[f"L{level}"] = _read(f"{folder}/size").strip()
    return caches


def describe(command: str) -> dict[str, Any]:
    """Everything about this machine and process that the figures depend on, ready for JSON."""
    import torch

    info = _cpuinfo()
    present = set((info.get("flags") or info.get("Features") or "").split())
    memory = re.search(r"MemTotal:\s+(\d+)", _read("/proc/meminfo"))
    pages = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled"))
    return {
        "cpu": _cpu_model(info),
        "cpu_family_model": [info.get("cpu family"), info.get("model")],
        "cores": os.cpu_count(),
        "flags": sorted(flag for flag in present if _FLAGS.fullmatch(flag)),
        "caches": _caches(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "huge_pages": pages[1] if pages else None,
        "system": f"{platform.system()} {_release()} {platform.machine()}",
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": _versions(),
        "settings": {
            key: value
            for key, value in sorted(os.environ.items())
            if _SETTINGS.fullmatch(key) and os.sep not in value
        },
        "command": command,
        "git": _git(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
