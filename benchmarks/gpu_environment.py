"""What a GPU's figures depend on besides environment.describe: the device, its driver, its clocks.

Read, never set: clocks, limits and modes are as they were found.
"""

from __future__ import annotations

import re
import subprocess
from typing import Any

import torch

__all__ = ["describe_device", "device_slug"]

_ASKED = (
    "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw",
    "power.limit", "temperature.gpu", "utilization.gpu", "persistence_mode", "compute_mode",
    "mig.mode.current",
)  # fmt: skip


def device_slug(name: str) -> str:
    """The folder of a device's results, from its name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def smi() -> dict[str, str]:
    """What nvidia-smi says of the first GPU now; empty where it says nothing."""
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = done.stdout.strip().splitlines()[0].split(", ")
    return dict(zip(_ASKED, values, strict=False))


def describe_device(device: torch.device) -> dict[str, Any]:
    """Everything about the device, ready for JSON; for the CPU its name alone."""
    if device.type != "cuda":
        return {"name": "cpu"}
    p = torch.cuda.get_device_properties(device)
    return {
        "name": p.name,
        "arch": f"sm_{p.major}{p.minor}",
        "sms": p.multi_processor_count,
        "l2_mib": round(p.L2_cache_size / 2**20, 1),
        "memory_gib": round(p.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "as_found": smi(),
    }
