"""A tenth of the mutated annotation trees of benchmarks/robustness.py: no traceback, nothing lost without a word."""

from benchmarks.attacks.annotations import attack


def test_mutated_annotations(tmp_path):
    tally = attack(200, seed=0, folder=tmp_path)
    assert tally.wrong == []
    assert tally.tried == 200
    assert tally.answered > 5
    assert tally.refused > 100
