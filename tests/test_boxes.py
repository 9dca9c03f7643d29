"""Boxes against a twin that counts pixels."""

import itertools

import pytest
import torch

from phrase_loc.boxes import area, clip, enclosing, iou, rescale
from phrase_loc.evaluation.scoring import inside_any


def pixels(box: list[int], offset: int) -> set[tuple[int, int]]:
    """The slow twin: every pixel of an integer box; with offset 1 the far border is inside."""
    x1, y1, x2, y2 = box
    return set(itertools.product(range(x1, x2 + offset), range(y1, y2 + offset)))


BOXES = [[0, 0, 4, 4], [2, 1, 6, 3], [4, 4, 8, 8], [0, 0, 8, 8], [3, 3, 3, 3], [5, 0, 7, 2]]


@pytest.mark.parametrize("offset", [0, 1])
def test_iou_counts_pixels(offset: int):
    boxes = torch.tensor(BOXES, dtype=torch.float32)
    ours = iou(boxes, boxes, offset)
    for i, a in enumerate(BOXES):
        for j, b in enumerate(BOXES):
            one, two = pixels(a, offset), pixels(b, offset)
            expected = len(one & two) / len(one | two) if one | two else 0.0
            assert ours[i, j].item() == pytest.approx(expected, abs=1e-6), (a, b)


@pytest.mark.parametrize("offset", [0, 1])
def test_area_counts_pixels(offset: int):
    boxes = torch.tensor(BOXES, dtype=torch.float32)
    assert area(boxes, offset).tolist() == [len(pixels(b, offset)) for b in BOXES]


def test_empty_sets_of_boxes():
    none, one = torch.zeros(0, 4), torch.tensor([[0.0, 0, 2, 2]])
    assert iou(none, one).shape == (0, 1)
    assert iou(one, none).shape == (1, 0)
    assert area(none).shape == (0,)


def test_iou_equals_torchvision():
    torchvision = pytest.importorskip("torchvision")
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(50, 2, generator=generator) * 80
    boxes = torch.cat([corner, corner + torch.rand(50, 2, generator=generator) * 40 + 1], 1)
    torch.testing.assert_close(iou(boxes, boxes), torchvision.ops.box_iou(boxes, boxes))


def test_frames():
    boxes = torch.tensor([[10.0, 20, 110, 60], [-5, -5, 300, 300]])
    assert enclosing(boxes).tolist() == [-5, -5, 300, 300]
    assert clip(boxes, (100, 200)).tolist() == [[10, 20, 110, 60], [0, 0, 200, 100]]
    assert rescale(boxes[:1], (100, 200), (50, 400)).tolist() == [[20, 10, 220, 30]]


@pytest.mark.parametrize(
    ("point", "margin", "strict", "inside"),
    [
        ((10.0, 10.0), 0, False, True),
        ((10.0, 10.0), 0, True, False),
        ((10.5, 10.5), 0, True, True),
        ((9.0, 12.0), 0, False, False),
        ((9.0, 12.0), 1, False, True),
        ((9.0, 12.0), 1, True, False),
    ],
)
def test_inside_borders_and_margins(point, margin, strict, inside):
    box = torch.tensor([[[10.0, 10, 20, 20]]])
    assert inside_any(torch.tensor([point]), box, margin, strict).tolist() == [inside]
