"""The probability that a phrase is there: pairs, folds and figures on cases worked by hand."""

import numpy as np
import pytest
import torch

from phrase_loc.evaluation.calibration import (
    ANY_WORD,
    ELSEWHERE,
    OWN,
    SAME_KIND,
    Pairs,
    binned,
    calibrate,
    cross_validated,
    draw_pairs,
    fit,
    thresholds,
)
from phrase_loc.structures import GroundingSample, Phrase


def test_calibration_error_by_hand():
    positive = np.array([1, 1, 0, 0, 1, 0])
    said = np.array([0.95, 0.95, 0.95, 0.05, 0.05, 0.05])
    # two bins of three: said .95 but seen 2/3; said .05 but seen 1/3
    assert binned(said, positive).error == pytest.approx((abs(2 / 3 - 0.95) + abs(1 / 3 - 0.05)) / 2)
    assert binned(np.array([1.0, 0.0]), np.array([1, 0])).error == 0


def test_thresholds_by_hand():
    said = np.arange(100) / 100
    there = said >= 0.6
    there[1] = True
    fit = thresholds(said, there, np.ones(100))  # from .56 on 40 of 44 are there, from .55 on 40 of 45
    assert fit["found_at"] == 0.56
    assert fit["absent_below"] == pytest.approx(0.01 + 0.8 * 0.59)  # of 41 places, .02 * 40 from the first
    assert thresholds(said, said == 0, np.ones(100)) == {"absent_below": 0.0, "found_at": 1.0}


def worked_pairs(rng, images=20):
    """Each image with a shown phrase and a negative of each kind; three words, of which the last is noise."""
    image = np.repeat(np.arange(images), 4)
    kind = np.tile([OWN, ELSEWHERE, SAME_KIND, ANY_WORD], images)
    text = rng.integers(3, size=len(kind))
    scores = rng.normal(size=(images, 3))
    return Pairs(text, image, kind, scores, [(np.array([w]), np.array([1.0])) for w in range(3)])


def test_an_image_never_judges_itself():
    # scores tell the image and nothing of the pair: only leaving images out shows that nothing was learned
    pairs = worked_pairs(np.random.default_rng(1), images=200)
    held_out = cross_validated(pairs, by_word=True)
    assert held_out.shape == (800,)
    assert abs(held_out[pairs.positive].mean() - held_out[~pairs.positive].mean()) < 0.02


def test_positives_weigh_as_much_as_all_negatives_and_kinds_alike():
    pairs = worked_pairs(np.random.default_rng(0))
    pairs = pairs._replace(kind=np.where(pairs.image < 5, pairs.kind, np.minimum(pairs.kind, 1)))
    weight = {kind: pairs.weights[pairs.kind == kind].sum() for kind in np.unique(pairs.kind)}
    assert weight[OWN] == pytest.approx(sum(w for kind, w in weight.items() if kind != OWN))
    assert weight[ELSEWHERE] == pytest.approx(weight[SAME_KIND])


def test_a_word_that_always_scores_high_is_held_back():
    """Word 0 scores 5 more than word 1 in every image, shown or not; its bias takes that off."""
    rng = np.random.default_rng(2)
    image, text = np.repeat(np.arange(200), 2), np.tile([0, 1], 200)
    shown = rng.random(400) < 0.5
    scores = (shown * 2.0 + rng.normal(size=400)).reshape(200, 2) + np.array([5.0, 0.0])
    mixtures = [(np.array([w]), np.array([1.0])) for w in range(2)]
    pairs = Pairs(text, image, np.where(shown, OWN, ELSEWHERE), scores, mixtures)
    slope, _, bias = fit(pairs, np.arange(400), by_word=True)
    assert bias[0] - bias[1] == pytest.approx(-5, abs=0.3)
    assert slope == pytest.approx(2, abs=0.5)
    right = (cross_validated(pairs, by_word=True) > 0.5) == shown
    assert right.mean() > 0.8 > ((cross_validated(pairs, by_word=False) > 0.5) == shown).mean()


def drawn_samples(drawn_image, tmp_path, texts, labels=()):
    path = tmp_path / "photo.png"
    drawn_image.save(path)
    return [
        GroundingSample(
            str(i),
            path,
            (80, 120),
            tuple(Phrase(t, labels) for t in said),
            ((),) * len(said),
            {"captions": said},
        )
        for i, said in enumerate(texts)
    ]


def test_negatives_share_no_word_with_the_captions(tiny_localizer, drawn_image, tmp_path):
    texts = [["a man"], ["the dog", "red hat"], ["a dog", "zorglub"]]
    pairs = draw_pairs(tiny_localizer, drawn_samples(drawn_image, tmp_path, texts, ("things",)), 0)
    for i, text, kind in pairs:
        assert (kind == OWN) == any(set(text.split()) & set(t.split()) - {"a", "the"} for t in texts[i])
    kinds = {kind for _, _, kind in pairs}
    assert kinds == {OWN, ELSEWHERE, SAME_KIND, ANY_WORD}
    assert [text for _, text, kind in pairs if kind == OWN] == ["a man", "the dog", "red hat", "a dog"]
    untyped = draw_pairs(tiny_localizer, drawn_samples(drawn_image, tmp_path, texts, ("other",)), 0)
    assert SAME_KIND not in {kind for _, _, kind in untyped}


def test_calibrate_reports_its_counts_and_presence_follows(tiny_localizer, drawn_image, tmp_path):
    said = [["a man"], ["the dog"], ["a hat"], ["red"], ["two men"], ["dogs"]]
    samples = drawn_samples(drawn_image, tmp_path, said)
    scene = tiny_localizer.look(drawn_image)
    raw = tiny_localizer.word_scores(scene, torch.arange(len(tiny_localizer.model.words)))
    fit = calibrate(tiny_localizer, samples)
    assert fit["pairs"] == 2 * fit["images"]
    assert 0 <= fit["auc"] <= 1
    assert 0 <= fit["absent_below"] <= fit["found_at"] <= 1
    row = tiny_localizer.encode(["dog"])[0].ids[0]
    with_bias = float(raw[row] + tiny_localizer.model.words.presence_bias[row])
    assert tiny_localizer.presence(scene, ["dog"]) == pytest.approx([with_bias])
