"""Laps count where they should and cost nothing where nobody watches."""

import threading
import time

import pytest

from phrase_loc.profiling import lap, watching


@lap("inner")
def sleeping() -> str:
    """A decorated function."""
    time.sleep(0.02)
    return "done"


def test_laps_are_summed_and_the_rest_is_told():
    with watching() as watch:
        assert sleeping() == sleeping() == "done"
        time.sleep(0.02)
        table = watch.table()
    assert watch.seconds["inner"] >= 0.04
    assert [line.split("  ")[0] for line in table.splitlines()] == ["inner", "everything else", "total"]


def test_a_lap_within_a_lap_counts_once():
    with watching() as watch, lap("outer"):
        sleeping()
    assert list(watch.seconds) == ["outer"]


def test_a_lap_that_raises_is_closed():
    with watching() as watch:
        with pytest.raises(ValueError, match="no"), lap("broken"):
            raise ValueError("no")
        sleeping()
    assert list(watch.seconds) == ["broken", "inner"]


def test_nobody_watches_before_after_and_in_other_threads():
    with watching() as watch:
        thread = threading.Thread(target=sleeping)
        thread.start()
        thread.join()
    sleeping()
    assert watch.seconds == {}
