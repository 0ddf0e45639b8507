"""The README's table of features says what is so: its quick rows are tried again.

tools/features.py made the table and tries the rest, with peers, inductor, ONNX and two processes.
"""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "features.json"
if not RECORD.exists():
    pytest.skip("the source folder with its documentation is not there", allow_module_level=True)
sys.path.insert(0, str(ROOT / "tools"))  # for the processes that a probe starts, too
features: ModuleType = importlib.import_module("features")
COMMITTED = json.loads(RECORD.read_text("utf-8"))
ROWS = {row["name"]: row for row in COMMITTED["rows"]}
QUICK = [name for name, probe in features.PROBES.items() if probe.quick]


@pytest.mark.parametrize("name", QUICK)
def test_a_row_says_what_is_so(name: str) -> None:
    for column in (features.feature_layers.torchs(), features.feature_layers.ours()):
        is_torchs = column.make is torch.nn.LSTM
        if is_torchs and torch.__version__.partition("+")[0] not in COMMITTED["torch"]:
            print(f"nn.LSTM: the table is about torch {COMMITTED['torch']}")
            continue
        another = features.processor() != COMMITTED["processor"]
        if is_torchs and features.PROBES[name].processor and another:
            print(f"nn.LSTM: the table is about {COMMITTED['processor']}")
            continue
        found = features.attempt(column, name)
        assert found["verdict"] == ROWS[name]["results"][column.name]["verdict"], found["seen"]


def test_tables_are_those_of_the_record() -> None:
    assert features.page(COMMITTED) == features.PAGE.read_text("utf-8")
    readme = features.README.read_text("utf-8")
    table = readme.partition(features.BEGIN)[2].partition(features.END)[0]
    assert table.strip() == features.short_table(COMMITTED).strip()
    assert list(ROWS) == list(features.PROBES)
    assert {name: row["title"] for name, row in ROWS.items()} == {
        name: probe.title for name, probe in features.PROBES.items()
    }


def test_a_wrong_value_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes look at values, not only at whether a call returns."""

    class Wrong(torch.nn.LSTM):
        def forward(self, x, hx=None):  # type: ignore[no-untyped-def]
            y, state = super().forward(x, hx)
            return y + 1e-3 * torch.rand_like(y), state

    wrong = features.Implementation("wrong", "", "", Wrong)
    for name in ("state_dict", "unbatched", "data_edits", "checkpointing"):
        assert "differs by" in features.attempt(wrong, name)["seen"], name
