"""The probability that a phrase is there: pairs, folds and figures on cases worked by hand."""

import numpy as np
import pytest

from phrase_loc.evaluation.calibration import (
    Pairs,
    binned,
    calibrate,
    cross_validated,
    platt,
    score_pairs,
    thresholds,
)
from phrase_loc.structures import GroundingSample, Phrase


def test_calibration_error_by_hand():
    positive = np.array([1, 1, 0, 0, 1, 0])
    said = np.array([0.95, 0.95, 0.95, 0.05, 0.05, 0.05])
    # two bins of three: said .95 but seen 2/3; said .05 but seen 1/3
    assert binned(said, positive).error == pytest.approx((abs(2 / 3 - 0.95) + abs(1 / 3 - 0.05)) / 2)
    assert binned(np.array([1.0, 0.0]), np.array([1, 0])).error == 0


def test_platt_recovers_a_logistic_curve():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=20_000)
    positive = rng.random(20_000) < 1 / (1 + np.exp(-(2 * scores - 1)))
    slope, offset = platt(scores, positive)
    assert slope == pytest.approx(2, abs=0.1)
    assert offset == pytest.approx(-1, abs=0.1)


def test_thresholds_by_hand():
    said = np.arange(100) / 100
    there = said >= 0.6
    there[1] = True
    fit = thresholds(said, there)  # from .5 on 40 of 50 are there, from .49 on 40 of 51
    assert fit["found_at"] == 0.5
    assert fit["absent_below"] == pytest.approx(
        0.01 + 0.4 * 0.59
    )  # a hundredth of the way from the first to the last
    assert thresholds(said, said == 0) == {"absent_below": 0.0, "found_at": 1.0}


def test_an_image_never_judges_itself():
    # the score tells the image, and the image the label: only leaving images out shows that nothing was learned
    image = np.repeat(np.arange(20), 10)
    rng = np.random.default_rng(1)
    pairs = Pairs(rng.normal(size=200), rng.random(200) < 0.5, image)
    held_out = cross_validated(pairs)
    assert held_out.shape == (200,)
    assert abs(held_out.mean() - 0.5) < 0.15


def test_negatives_share_no_word_with_the_captions(tiny_localizer, drawn_image, tmp_path):
    path = tmp_path / "photo.png"
    drawn_image.save(path)
    texts = [["a man"], ["the dog", "red hat"], ["a dog", "zorglub"]]
    samples = [
        GroundingSample(
            str(i), path, (80, 120), tuple(Phrase(t) for t in said), ((),) * len(said), {"captions": said}
        )
        for i, said in enumerate(texts)
    ]
    pairs = score_pairs(tiny_localizer, samples)
    # image 0: one phrase, one negative; 1: two and two ("a man" twice); 2: one known phrase and one negative
    assert np.bincount(pairs.image).tolist() == [2, 4, 2]
    assert pairs.positive.sum() == 4
    again = score_pairs(tiny_localizer, samples)
    assert np.array_equal(pairs.scores, again.scores)


def test_calibrate_reports_its_counts(tiny_localizer, drawn_image, tmp_path):
    path = tmp_path / "photo.png"
    drawn_image.save(path)
    said = [["a man"], ["the dog"], ["a hat"], ["red"], ["two men"], ["dogs"]]
    samples = [
        GroundingSample(str(i), path, (80, 120), (Phrase(t[0]),), ((),), {"captions": t})
        for i, t in enumerate(said)
    ]
    fit = calibrate(tiny_localizer, samples)
    assert fit["pairs"] == 12
    assert fit["images"] == 6
    assert 0 <= fit["auc"] <= 1
    assert 0 <= fit["absent_below"] <= fit["found_at"] <= 1
