"""The machine's multiply-add peak, measured in the same run as what is compared with it.

`peak.cpp` is compiled with $CXX or g++ into a temporary folder and called through ctypes. Where
there is no compiler the peak is unknown (None) and no share of it is reported.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["ISAS", "PeakMeter"]

ISAS = {"portable": 0, "avx2": 1, "avx512": 2}  # the numbering of peak.cpp


class PeakMeter:
    """Measures GF/s of multiply-adds per instruction set, width of the type, and thread count.

    `reason` says why there is no measurement, or is None.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fused_lstm_peak_")
        self._library: ctypes.CDLL | None = None
        self.reason: str | None = None
        self._best: dict[tuple[str, str, int], float] = {}
        compiler = shutil.which(os.environ.get("CXX", "g++").split()[0])
        if compiler is None:
            self.reason = "no C++ compiler found (set CXX, or install g++)"
            return
        library = Path(self._folder.name) / "peak.so"
        source = Path(__file__).with_name("peak.cpp")
        flags = ["-O2", "-std=c++17", "-ffp-contract=fast", "-Wno-psabi", "-shared", "-fPIC"]
        built = subprocess.run(
            [compiler, *flags, "-pthread", str(source), "-o", str(library)],
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode != 0:
            self.reason = f"peak.cpp did not compile: {built.stderr.strip().splitlines()[:1]}"
            return
        self._library = ctypes.CDLL(str(library))
        self._library.fma_peak.restype = ctypes.c_double
        self._library.fma_peak.argtypes = [
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_double,
        ]

    def measure(
        self, isa: str, dtype: str = "float32", threads: int = 1, seconds: float = 0.05
    ) -> float | None:
        """Best of three runs, in GF/s; None where it cannot be measured here.

        bfloat16 and float16 are accumulated in float32, so float32's peak is their ceiling.
        """
        if self._library is None or isa not in ISAS:
            return None
        bits = 64 if dtype == "float64" else 32
        best = max(self._library.fma_peak(ISAS[isa], bits, threads, seconds) for _ in range(3))
        return best or None

    def best(self, isa: str, dtype: str, threads: int) -> float | None:
        """The highest of all measurements so far and a new, short one, in GF/s.

        Asked before every row of a run, so that a moment in which another process held a core, or
        the processor had not yet raised its frequency, does not lower the ceiling.
        """
        key = (isa, dtype, threads)
        now = self.measure(isa, dtype, threads, 0.01)
        if now is not None:
            self._best[key] = max(now, self._best.get(key, 0.0))
        return self._best.get(key)

    def close(self) -> None:
        """Removes the temporary folder."""
        self._library = None
        self._folder.cleanup()
