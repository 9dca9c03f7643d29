"""A tenth of the mutated pictures that `benchmarks/robustness.py` tries."""

from pathlib import Path

import pytest

from benchmarks.attacks.pictures import attack


@pytest.mark.filterwarnings("ignore")
def test_mutated_pictures_are_read_or_refused(tmp_path: Path):
    tally = attack(1_000, 1, tmp_path)
    assert tally.wrong == []
    assert tally.answered > 300 < tally.refused, "both were tried"
