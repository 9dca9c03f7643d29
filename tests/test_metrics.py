"""Metrics against slow twins written from their definitions, and cases worked by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from phrase_loc.boxes import iou
from phrase_loc.evaluation.protocols import PROTOCOLS, faithful
from phrase_loc.evaluation.scoring import Answers, average_precision, gather, inside_any, recall
from phrase_loc.structures import GroundingSample, Phrase

NAN = float("nan")


def test_nothing_in_nothing_out():
    assert inside_any(torch.zeros(0, 2), torch.zeros(0, 0, 4)).shape == (0,)
    assert iou(torch.zeros(0, 3, 4), torch.zeros(0, 2, 4)).shape == (0, 3, 2)


@pytest.mark.parametrize(
    "point, margin, closed, strict",
    [
        ((5, 5), 0, True, True),
        ((0, 5), 0, True, False),
        ((10, 10), 0, True, False),
        ((10.001, 5), 0, False, False),
        ((12, 5), 2, True, False),
        ((12, 5), 3, True, True),
        ((NAN, NAN), 99, False, False),
    ],
)
def test_inside_any(point, margin, closed, strict):
    boxes = torch.tensor([[[0.0, 0, 10, 10], [NAN] * 4, [50, 50, 60, 60]]])
    points = torch.tensor([point], dtype=torch.float32)
    assert inside_any(points, boxes, margin).tolist() == [closed]
    assert inside_any(points, boxes, margin, strict=True).tolist() == [strict]


def pixels(box):
    """The pixels of an inclusive integer box."""
    return {(x, y) for x in range(box[0], box[2] + 1) for y in range(box[1], box[3] + 1)}


def test_overlaps_with_inclusive_widths_count_pixels():
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 12, (40, 2, 2), generator=generator).sort(1).values.reshape(2, 20, 4)
    found = iou(corners[:, :15].double(), corners[:, 15:].double(), offset=1.0)
    for p in range(2):
        for r in range(15):
            for m in range(5):
                a, b = pixels(corners[p, r].tolist()), pixels(corners[p, 15 + m].tolist())
                assert found[p, r, m] == pytest.approx(len(a & b) / len(a | b), abs=1e-12)


def test_overlap_with_padding_is_zero():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [NAN] * 4]])
    assert iou(boxes, boxes).tolist() == [[[1, 0], [0, 0]]]


def test_the_first_correct_box_and_an_overlap_of_exactly_a_half():
    """Boxes over the upper part of the truth: a tenth of its height overlaps by 0.1."""
    truth, protocol = torch.tensor([[0.0, 0, 10, 10]]), replace(PROTOCOLS["recall_any"], offset=0.0)
    sample = GroundingSample("1", Path("1.jpg"), (20, 20), (Phrase("one"), Phrase("other")), (truth, truth))
    ranked = torch.tensor([[[0.0, 0, 10, y, 1] for y in heights] for heights in ((2, 5, 9), (1, 2, 3))])
    answers = Answers(torch.tensor([True, True]), {}, ranked)
    for test, first in ((protocol, [1, 3]), (faithful(protocol), [2, 3])):
        found = recall(test, gather(test, sample), answers)
        assert found["first"].tolist() == first
        assert found["R@1"].tolist() == [0, 0]
        assert found["R@5"].tolist() == [1, 0]
    nothing = recall(protocol, gather(protocol, sample), Answers(answers.known, {}, ranked[:, :0]))
    assert nothing["R@10"].tolist() == [0, 0]


def eleven_points(scores, correct, image, times, positives):
    """AP from its definition: every detection repeated, sorted, precision at eleven recalls."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    true = false = 0
    curve = []
    for i in order:
        for _ in range(int(times[image[i]])):
            true, false = true + correct[i], false + (not correct[i])
        if times[image[i]]:
            curve.append((true, true / (true + false)))
    found = [max((p for t, p in curve if 10 * t >= k * positives), default=0.0) for k in range(11)]
    return sum(found) / 11


def test_average_precision_by_hand():
    """Two phrases; correct, wrong, correct: precision 1 up to recall 0.5 (6 points), then 2 / 3 (5 points)."""
    found = average_precision(
        np.array([0.9, 0.8, 0.7]),
        np.array([True, False, True]),
        np.array([0, 0, 1]),
        np.ones((1, 2)),
        np.array([2.0]),
    )
    assert found[0] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_average_precision_of_equal_scores_keeps_the_order_given():
    found = average_precision(
        np.array([0.5, 0.5]), np.array([True, False]), np.array([0, 0]), np.ones((1, 1)), np.array([1.0])
    )
    assert found[0] == 1


def test_average_precision_without_anything():
    empty = (np.zeros(0), np.zeros(0, bool), np.zeros(0, int), np.ones((1, 2)))
    assert average_precision(*empty, np.array([3.0])).tolist() == [0]
    assert np.isnan(average_precision(*empty, np.array([0.0]))).all()


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_with_weights_is_that_of_repeated_images(seed):
    generator = np.random.default_rng(seed)
    count, images = 60, 6
    scores = generator.random(count).round(1)  # with ties
    correct = generator.random(count) < 0.3
    image = generator.integers(0, images, count)
    weights = generator.integers(0, 3, (4, images)).astype(float)
    positives = weights[:, image[correct]].sum(1) + 1
    found = average_precision(scores, correct, image, weights, positives)
    expected = [
        eleven_points(scores, correct, image, times, p) for times, p in zip(weights, positives, strict=True)
    ]
    assert found == pytest.approx(expected)
