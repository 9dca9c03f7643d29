"""benchmarks/student.py: halves, targets and the average precision that is asked of both students."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = str(Path(__file__).resolve().parent.parent / "benchmarks")


@pytest.fixture(scope="module")
def student():
    """The script as a module."""
    sys.path.insert(0, BENCHMARKS)
    try:
        import student as module
    finally:
        sys.path.remove(BENCHMARKS)
    return module


@pytest.fixture(scope="module")
def pictures(student, tmp_path_factory):
    """Generated pictures as samples, their names of classes and their boxes."""
    names = list(student.SHAPES)
    student.PICTURES = 16
    root = student.shapes(tmp_path_factory.mktemp("shapes"))
    samples = list(student.DATASETS["yolo"](root=root, names=names))
    return samples, names, {s.image_id: student.of_classes(s, names) for s in samples}


class Knowing(torch.nn.Module):
    """A student that answers what it is told, one picture after the other."""

    def __init__(self, answers):
        super().__init__()
        self.answers = iter(answers)

    def forward(self, images):
        return [next(self.answers)]


def test_the_truth_has_full_precision_and_a_wrong_class_none(student, pictures):
    samples, names, truth = pictures
    test = [(s, student.pixels(s)) for s in samples]
    told = [student.target(s, truth[s.image_id], names, x[0], False) for s, x in test]
    right = [t | {"scores": torch.ones(len(t["boxes"]))} for t in told]
    assert student.ap50(Knowing(right), test, truth, names) == pytest.approx(100)
    wrong = [t | {"labels": (t["labels"] + 1) % len(names)} for t in right]
    assert student.ap50(Knowing(wrong), test, truth, names) < 10
    nothing = [{k: v[:0] for k, v in t.items()} for t in right]
    assert student.ap50(Knowing(nothing), test, truth, names) == 0


def test_a_mirrored_target_is_mirrored(student, pictures):
    samples, names, truth = pictures
    x = torch.zeros(3, 72, 72)
    one, other = (student.target(samples[0], truth[samples[0].image_id], names, x, m) for m in (False, True))
    assert torch.allclose(one["boxes"][:, [0, 2]] + other["boxes"][:, [2, 0]], torch.tensor(72.0))
    assert torch.equal(one["boxes"][:, 1::2], other["boxes"][:, 1::2])


def test_the_same_seed_learns_the_same_and_learns(student, pictures):
    samples, names, truth = pictures
    train = [(s, student.pixels(s)) for s in samples]
    made = [student.learn(train, truth, names, 0, steps, False) for steps in (4, 4)]
    assert all(
        torch.equal(a, b)
        for a, b in zip(made[0].state_dict().values(), made[1].state_dict().values(), strict=True)
    )
    learnt = student.learn(train, truth, names, 0, 40, False)
    assert student.ap50(learnt, train, truth, names) > student.ap50(made[0], train, truth, names) + 5
    student.learn(train, {}, names, 0, 2, False)  # a half that no label was found for


def test_over_frozen_features_boxes_are_learnt_in_cells(student, pictures):
    """Features that are the answer, a cell that is 1 inside a thing of a class: the head must find the boxes."""
    samples, names, truth = pictures
    train = []
    for s in samples:
        x = torch.zeros(112, 20, 20)
        boxes = student.target(s, truth[s.image_id], names, x, False)
        for (x1, y1, x2, y2), kind in zip(
            boxes["boxes"].round().int().tolist(), boxes["labels"].tolist(), strict=True
        ):
            x[kind, y1:y2, x1:x2] = 1.0
        train.append((s, [x]))
    learnt = student.learn(train, truth, names, 0, 30, True)
    assert student.ap50(learnt, train, truth, names) > 20


def test_halves_are_by_name_alone_and_labels_are_judged(student, pictures):
    samples, _, truth = pictures
    assert {student.half(s.image_id) for s in samples} == {0, 1}
    assert student.agreement(truth, truth).endswith(
        f"{sum(len(b) for of in truth.values() for b in of.values())} overlap one of their class by half"
    )
    shifted = {i: {n: b + 500 for n, b in of.items()} for i, of in truth.items()}
    assert ", 0 overlap" in student.agreement(shifted, truth)
