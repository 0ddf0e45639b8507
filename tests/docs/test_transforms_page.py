"""The page docs/transforms-distributed.md: its code runs, from the first block to the last."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "transforms-distributed.md"


def test_the_code_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 9
    script = tmp_path / "page.py"
    # gloo's threads abort the process now and then where something still holds the group.
    script.write_text(
        "\n".join([*blocks, "import gc", "del model, stage, schedule, net", "gc.collect()"])
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
