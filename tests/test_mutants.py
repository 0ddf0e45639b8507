"""The planted errors of mutants.py still fit the code; `make mutants` sees whether tests notice."""

import mutants
import pytest

if not (mutants.ROOT / "docs").exists():
    pytest.skip("the source folder is not there", allow_module_level=True)


def test_every_planted_error_applies_once() -> None:
    assert len(mutants.MUTANTS) > 30
    for mutant in mutants.MUTANTS:
        text = (mutants.ROOT / "fused_lstm" / f"{mutant.file}.py").read_text("utf-8")
        assert text.count(mutant.old) == 1, mutant.name
        assert mutant.old != mutant.new
