"""A tenth of the mutated files that `benchmarks/robustness.py` tries."""

from pathlib import Path

from benchmarks.attacks.models import attack


def test_changed_models(tmp_path: Path):
    tally = attack(200, 1, tmp_path)
    assert tally.wrong == []
    assert tally.answered > 20
    assert tally.refused > 20, "both were tried"
