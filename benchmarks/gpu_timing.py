"""Timing on a GPU: by the device's own events, in the rounds of timing.interleave."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.timing import Turn, wall_turn

__all__ = ["event_turn", "turn_for"]


def event_turn(call: Callable[[], object], calls: int) -> tuple[float, float]:
    """Seconds between two events around `calls` calls, and the host's processor seconds.

    Where the host is slower than the GPU the host's time is what passes between the events, as it
    would in an application.
    """
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    cpu = time.process_time()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, time.process_time() - cpu


def turn_for(device: torch.device) -> Turn:
    """How turns on this device are timed."""
    return event_turn if device.type == "cuda" else wall_turn
