"""What of the documentation takes seconds: slow blocks with their pages, and the examples.

`make test-docs` runs it; `make test` does not come here.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest
import torch

ROOT = pages.ROOT
SLOW = [path for path in pages.pages() if any(b.mark == "slow" for b in pages.blocks(path))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# A figure that an example prints, and what it has to reach in the end: it learns, or it agrees.
REACHES = {
    "ddp.py": (r"largest difference between the processes ([\d.e+-]+)", 0.0, 0.0),
    "mnist_rows.py": (r"test accuracy ([\d.]+)", 0.9, 1.0),
    "rl_rollout.py": (r"mean return ([\d.]+)", 0.9, 1.0),
    "speech_packed.py": (r"accuracy ([\d.]+)", 0.9, 1.0),
    "streaming.py": (r"and 60: largest difference ([\d.e+-]+)", 0.0, 1e-5),
    "time_series.py": (r"error of the forecast ([\d.]+)", 0.0, 0.3),
}


@pytest.mark.parametrize("page", SLOW, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_whole_page_runs(page: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pages.run([block for block in pages.blocks(page) if not block.mark.startswith("not run")])
    finally:
        torch.set_num_threads(threads)


def test_there_are_slow_pages_and_each_example_is_known() -> None:
    assert SLOW
    assert {path.name for path in EXAMPLES} == set(REACHES)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.name)
def test_example_runs_and_reaches_its_figure(example: Path) -> None:
    command = [sys.executable, str(example)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # small work: quickest so, and steady
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    pattern, low, high = REACHES[example.name]
    figures = re.findall(pattern, done.stdout)
    assert figures, f"{example.name}: expected {pattern!r}, printed:\n{done.stdout}"
    assert low <= float(figures[-1]) <= high, done.stdout
