"""A tenth of the mutated requests of benchmarks/robustness.py."""

from benchmarks.attacks.requests import attack


def test_mutated_requests(tmp_path):
    tally = attack(200, 1, tmp_path)
    assert tally.wrong == []
    assert tally.tried == 200
    assert tally.answered > 20
    assert tally.refused > 100
