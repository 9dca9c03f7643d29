"""Intervals and paired differences: determinism, exactness, and agreement with plain loops."""

import tracemalloc

import numpy as np
import pytest
from scipy.sparse import csr_array

from phrase_loc.evaluation import statistics
from phrase_loc.evaluation.statistics import Sums, draws, interval, paired

VALUES = np.array([1.0, 0, 1, 1, 0, 1])
IMAGE = np.array([0, 0, 1, 1, 1, 3])
LABELS = [("a",), ("b",), ("a", "b"), ("a",), ("b",), ("c",)]


def test_a_value_is_a_ratio_of_sums():
    assert Sums.of(VALUES, IMAGE, 4).value().tolist() == [4 / 6]


def test_a_mean_over_labels_counts_each_label_once():
    sums = Sums.of(VALUES, IMAGE, 4, LABELS)
    assert sums.labels == ("a", "b", "c")
    assert sums.value()[0] == pytest.approx((1 + 1 / 3 + 1) / 3)


def test_weights_repeat_images():
    weights = draws(4, 50)
    assert (weights.sum(1) == 4).all()
    for sums in (Sums.of(VALUES, IMAGE, 4), Sums.of(VALUES, IMAGE, 4, LABELS)):
        for row, found in zip(weights, sums.value(weights), strict=True):
            rates = []
            for label in range(len(sums.labels)):
                count = sum(row[i] * sums.counts[i, label] for i in range(4))
                if count:
                    rates.append(sum(row[i] * sums.sums[i, label] for i in range(4)) / count)
            assert found == pytest.approx(np.mean(rates) if rates else np.nan, nan_ok=True)


def test_draws_are_the_same_every_time():
    first = draws(20, 10).copy()
    draws.cache_clear()
    assert (draws(20, 10) == first).all()


def test_draws_in_parts_are_those_of_one_call(monkeypatch):
    whole = np.random.default_rng(statistics.SEED).multinomial(20, np.full(20, 1 / 20), size=50)
    monkeypatch.setattr(statistics, "AT_ONCE", 70)
    draws.cache_clear()
    assert (draws(20, 50) == whole).all()
    dense = Sums(("a", "b"), whole[:20, :2] / 7.0, whole[20:40, :2] + 0.0)
    sparse = Sums(("a", "b"), csr_array(dense.sums), csr_array(dense.counts))
    rates = (whole @ dense.sums) / (whole @ dense.counts)
    assert dense.value(draws(20, 50)) == pytest.approx(rates.mean(1), abs=1e-15)
    assert sparse.value(draws(20, 50)) == pytest.approx(rates.mean(1), abs=1e-15)
    draws.cache_clear()


def test_memory_stays_small_at_fifty_thousand_images():
    """A dense table of ImageNet's images and classes is 381 MiB, and the draws were 763."""
    image = np.arange(50_000)
    tracemalloc.start()
    sums = Sums.of(np.ones(50_000), image, 50_000, [(f"n{i % 1000}",) for i in image])
    assert sums.value(draws(50_000, 20))[0] == 1
    assert tracemalloc.get_traced_memory()[1] < 150e6
    tracemalloc.stop()
    draws.cache_clear()


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """200 experiments of 60 images, each image 0 to 4 coins of probability 0.3 that fall together."""
    generator, covered = np.random.default_rng(1), 0
    for _ in range(200):
        image = np.repeat(np.arange(60), generator.integers(0, 5, 60))
        values = (generator.random(60) < 0.3).astype(float)[image]
        low, high = interval(Sums.of(values, image, 60).value(draws(60, 400)))
        covered += low <= 30 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_an_interval_of_nothing_is_empty():
    assert interval(np.array([np.nan])) == []


def test_cells_survive_json():
    for sums in (Sums.of(VALUES, IMAGE, 4), Sums.of(VALUES, IMAGE, 4, LABELS)):
        again = Sums.from_dict(sums.to_dict(), 4)
        for own, found in ((sums.sums, again.sums), (sums.counts, again.counts)):
            assert (own.toarray() == found.toarray()).all()
        assert list(again.labels) == list(sums.labels)


def test_a_method_does_not_differ_from_itself():
    sums = Sums.of(VALUES, IMAGE, 4)
    same = paired(sums, sums, 100)
    assert (same["value"], same["ci95"], same["p_value"]) == (0.0, [0.0, 0.0], 1.0)


def test_pairing_sees_a_small_difference_that_intervals_hide():
    """b misses one phrase of each tenth image that a hits; both vary between images far more."""
    generator = np.random.default_rng(0)
    image = np.repeat(np.arange(300), 4)
    a = (generator.random(300) < 0.5).astype(float)[image]
    b = a.copy()
    b[np.flatnonzero(a)[::20]] = 0
    one, other = Sums.of(a, image, 300), Sums.of(b, image, 300)
    change = paired(one, other, 500)
    assert change["value"] == pytest.approx(100 * (a.mean() - b.mean()), abs=0.006)
    assert 0 < change["ci95"][0] < change["value"] < change["ci95"][1]
    assert change["p_value"] == 0
    assert interval(one.value(draws(300, 500)))[0] < 100 * b.mean()  # the two intervals overlap
