"""The planted errors of the three lists still fit the code they are planted into. Whether tests
notice them is seen by `make mutants`, here and in tests/native and tests/simt.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
LISTS = ("mutants.py", "native/mutants.py", "simt/mutants.py")

if not (ROOT / "docs").exists():
    pytest.skip("the source folder is not there", allow_module_level=True)


def load(file: str) -> ModuleType:
    name = file.removesuffix(".py").replace("/", "_") + "_list"
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / file)
    assert spec
    assert spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", LISTS)
def test_every_planted_error_applies_once(file: str) -> None:
    of_package = file == "mutants.py"
    planted = load(file).MUTANTS
    assert len(planted) > 30
    for mutant in planted:
        path = f"fused_lstm/{mutant.file}.py" if of_package else f"csrc/kernels/{mutant.file}"
        assert (ROOT / path).read_text("utf-8").count(mutant.old) == 1, mutant.name
        assert mutant.old != mutant.new
