"""Was the machine ours while we measured? Reads /proc before and after, and names who disturbed.

A benchmark on a shared machine is worth what this file can tell about it: how many cores' worth of
time other processes took meanwhile, and how much the hypervisor gave to other guests (steal). Where
there is no /proc (macOS) the answer is "unknown", never "quiet".
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Disturbance", "Watch"]

_QUIET = 0.15  # cores' worth of foreign work that a figure bears without being marked


@dataclass(frozen=True)
class Disturbance:
    """What went on beside the measurement, in cores (1.0: one core all the time)."""

    other_cores: float | None  # other processes; None: unknown here
    stolen_cores: float | None  # taken by the hypervisor
    busiest: str | None  # name of the process that took most, when it took much
    noisy: bool | None

    def describe(self) -> str:
        """One clause for the report, empty when the machine was quiet."""
        if not self.noisy:
            return ""
        who = f", most by {self.busiest!r}" if self.busiest else ""
        foreign = (self.other_cores or 0) + (self.stolen_cores or 0)
        return f"NOISY: other work took {foreign:.2f} cores meanwhile{who}"


def _machine_seconds() -> tuple[float, float] | None:
    """(busy, stolen) seconds of all cores since boot."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    ticks = [int(field) for field in fields] + [0] * 8
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks[:8]
    hertz = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / hertz, steal / hertz


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _process_seconds() -> dict[int, tuple[str, float]]:
    """CPU seconds and name of every other process that can be seen."""
    found: dict[int, tuple[str, float]] = {}
    hertz = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text()
        except OSError:
            continue  # it ended meanwhile
        name = text[text.index("(") + 1 : text.rindex(")")]
        fields = text[text.rindex(")") + 2 :].split()
        if int(folder.name) != os.getpid():
            found[int(folder.name)] = (name, (int(fields[11]) + int(fields[12])) / hertz)
    return found


class Watch:
    """Started before a measurement that uses `threads` threads; `stop()` after it."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._machine = _machine_seconds()
        self._processes = _process_seconds() if self._machine else {}
        self._own = _own_seconds()
        self._wall = time.perf_counter()

    def stop(self) -> Disturbance:
        """What happened since the start.

        Foreign work counts as noise above 0.15 cores; on a machine with cores to spare, above half
        of those that the measurement leaves idle (one is kept for the system).
        """
        wall = time.perf_counter() - self._wall
        own = _own_seconds() - self._own
        machine = _machine_seconds()
        if machine is None or self._machine is None or wall < 0.05:  # /proc counts in 10 ms ticks
            return Disturbance(None, None, None, None)
        other = max(0.0, machine[0] - self._machine[0] - own) / wall
        stolen = max(0.0, machine[1] - self._machine[1]) / wall
        bearable = max(_QUIET, ((os.cpu_count() or 1) - self._threads - 1) / 2)
        noisy = other + stolen > bearable
        busiest = None
        if noisy:
            growth = {
                name: seconds - self._processes.get(pid, (name, 0.0))[1]
                for pid, (name, seconds) in _process_seconds().items()
            }
            name = max(growth, key=lambda key: growth[key], default=None)
            if name is not None and growth[name] > _QUIET * wall / 2:
                busiest = name
        return Disturbance(round(other, 3), round(stolen, 3), busiest, noisy)
