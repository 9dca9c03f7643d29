"""A tenth of benchmarks/attacks/shards.py."""

from pathlib import Path

import pytest

from benchmarks.attacks.shards import attack


def test_no_sample_of_a_mutated_shard_or_table_is_lost_without_a_word(tmp_path: Path):
    pytest.importorskip("pyarrow")
    tally = attack(200, 0, tmp_path)
    assert tally.wrong == []
    assert tally.tried == 200
    assert tally.answered > 100  # whole samples beside damaged ones are delivered, not refused
